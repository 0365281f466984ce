"""Held-out loss against file size on a real task: SmolLM2-135M with the `smollm2_e2e` adapter, on E2E NLG.

    python tools/bench/task_loss.py [--sizes 90KB 53KB ...] [--seeds 0 1 2] [--rows 96] [--json]

The loss is that of tools/e2e_loss.py, nats a target token. Ours is the whole file. Peers: the SVD truncated in
fp16 to the same size, the strongest components of all layers first; the SVD at every uniform rank with group-64
rounding; DARE on the factors with the same rounding; the last two as files after zstd. The last column is a peer's
bytes over ours at equal loss, ours interpolated between the --sizes; where our curve is flat (the largest sizes) it is
as uncertain as the loss is. Seeds change the basis: the spread between them is the noise of a single figure.
An evaluation takes half a minute; `--ranks` and `--drops` without values leave peers out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import table
from real_data import adapter
from task_peers import Deltas, Result, added, as_json, base_directory, cases, ratios, render_error, task_options


class Model:
    """The base model, to which deltas are added for one evaluation."""

    def __init__(self, base: Path, rows: int) -> None:
        import e2e_loss
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._evaluate = e2e_loss
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._weights = dict(self._model.named_parameters())
        self._rows = e2e_loss.rows("test", rows)

    def loss(self, deltas: Deltas) -> float:
        """Held-out loss with B A added to each named weight."""
        with added(self._weights, deltas):
            value: float = self._evaluate.loss(self._model, self._tokenizer, self._rows)
        return value


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task_options(
        parser, sizes=["200KB", "90KB", "53KB", "29KB", "20KB", "10KB", "5KB"], rows=96, ranks=list(range(8, 0, -1))
    )
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    model = Model(arguments.base or base_directory(), arguments.rows)
    source = adapter("smollm2_e2e")
    grid, drops = (arguments.ranks, (8, 4, 3, 2)), (arguments.drops, (8, 4))
    found = []
    for case in cases(source, arguments.sizes, arguments.seeds, {}, grid, drops):
        loss = model.loss(case.deltas)
        result = Result(case.kind, case.name, case.bytes, loss, case.group, effective_error=case.effective_error)
        found.append(result)
        print(f"{case.name}: {case.bytes:,} bytes, {found[-1].loss:.4f}", file=sys.stderr, flush=True)
    if arguments.json:
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
