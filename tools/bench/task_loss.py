"""Held-out loss against file size on a real task: SmolLM2-135M with the `smollm2_e2e` adapter, on E2E NLG.

    python tools/bench/task_loss.py [--sizes 90KB 53KB ...] [--seeds 0 1 2] [--rows 96] [--peers svd dare ...] [--json]
    python tools/bench/task_loss.py --trained [--rows 192] [--seeds 0 1 2]

The loss is that of tools/e2e_loss.py, nats a target token. Ours is the whole file. Peers: the SVD truncated in
fp16 to the same size, the strongest components of all layers first; the SVD at every uniform rank with group-64
rounding; DARE on the factors with the same rounding; LoRAQuant and LoRDBA at several sizes (`rivals/`); all but the
first as files after zstd. The last column is a peer's bytes over ours at equal loss, ours interpolated between the
--sizes; where our curve is flat (the largest sizes) it is as uncertain as the loss is. Seeds change the basis: the
spread between them is the noise of a single figure.

With `--trained` the rivals are trained from nothing instead, LoRA-XS and Uni-LoRA, in 100 steps of 8 rows. That takes
five minutes a file. Our files with that training are those of tools/experiments/self_taught.py --doors data.

What was evaluated is kept, by the numbers that were added to the model, so that a second call is quick;
`tools/experiments/results.py` says where.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator

import numpy as np
from common import ROOT, load, singular_components, table
from real_data import adapter
from task_peers import (
    Case,
    Deltas,
    Result,
    added,
    as_json,
    base_directory,
    cases,
    ratios,
    render_error,
    task_options,
)

sys.path.insert(0, str(ROOT / "tools" / "experiments"))
import results

NAME = "task_loss"
PEERS = ("svd", "rounded", "dare", "rivals")
VALIDATED = 8
"""Rows of the validation split on which a rival's gain is chosen."""


def content(deltas: Deltas) -> str:
    """Return a short hash of the numbers that are added to the model."""
    sha = hashlib.sha256()
    for name, pair in sorted(deltas.items()):
        sha.update(name.encode())
        for side in pair:
            sha.update(np.ascontiguousarray(side, np.float32).tobytes())
    return sha.hexdigest()[:16]


def evaluated(case: Case, rows: int, loss: Callable[[], float]) -> Result:
    """Return the result of a case; `loss` is called if these deltas were not evaluated before."""
    settings = {
        "kind": case.kind,
        "what": case.name,
        "group": case.group,
        "rows": rows,
        "content": content(case.deltas),
    }
    said = {"bytes": case.bytes, "effective_error": case.effective_error}
    found = results.measure(NAME, settings, lambda: {**said, "loss": loss()})["figures"]
    return Result(case.kind, case.name, found["bytes"], found["loss"], case.group,
                  effective_error=found["effective_error"])  # fmt: skip


def every_case(arguments: argparse.Namespace, validate: Callable[[Deltas], float]) -> Iterator[Case]:
    """Yield all that is to be evaluated."""
    source = adapter("smollm2_e2e")
    peers = arguments.peers
    grid = (arguments.ranks if "rounded" in peers else (), (8, 4, 3, 2))
    drops = (arguments.drops if "dare" in peers else (), (8, 4))
    for case in cases(source, arguments.sizes, arguments.seeds, {}, grid, drops):
        if "svd" in peers or not case.name.startswith("SVD fp16"):
            yield case
    if "rivals" in peers:
        from rivals.weights_only import weights_only

        yield from weights_only([singular_components(pair) for pair in load(source)], validate)


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task_options(
        parser, sizes=["200KB", "90KB", "53KB", "29KB", "20KB", "10KB", "5KB"], rows=96, ranks=list(range(8, 0, -1))
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="which peers; all by default")
    parser.add_argument("--trained", action="store_true", help="only the rivals that are trained")
    arguments = parser.parse_args()
    import torch
    from rivals.text import TextTask

    torch.set_num_threads(arguments.threads)
    task = TextTask(arguments.base or base_directory())
    if arguments.trained:
        from rivals.trained import measure_all

        measure_all(task, arguments.rows, arguments.seeds)
        return
    weights = dict(task.model.named_parameters())

    def loss(deltas: Deltas, split: str, rows: int) -> float:
        with added(weights, deltas):
            return task.loss(task.rows(split, 0, rows))

    def validate(deltas: Deltas) -> float:
        settings = {"kind": "choice", "what": "", "group": "", "rows": VALIDATED, "content": content(deltas)}
        kept = results.measure(NAME, settings, lambda: {"loss": loss(deltas, "valid", VALIDATED)})
        found: float = kept["figures"]["loss"]
        return found

    found = []
    for case in every_case(arguments, validate):
        result = evaluated(case, arguments.rows, lambda case=case: loss(case.deltas, "test", arguments.rows))  # type: ignore[misc]
        found.append(result)
        print(f"{case.name}: {case.bytes:,} bytes, {result.loss:.4f}", file=sys.stderr, flush=True)
    show(found, arguments.json)


def show(found: list[Result], as_text: bool) -> None:
    """Print the table, or JSON."""
    if as_text:
        print(json.dumps(as_json(found), indent=2))
        return
    low, high = found[1].loss, found[0].loss
    rows = [
        [r.name, f"{r.bytes:,}", render_error(r), f"{r.loss:.4f}", f"{(high - r.loss) / (high - low):.1%}", ratio]
        for r, ratio in zip(found, ratios(found), strict=True)
    ]
    print(table(rows, ["what", "bytes", "eff. error", "loss", "of the gain", "bytes / ours at equal loss"]))


if __name__ == "__main__":
    main()
