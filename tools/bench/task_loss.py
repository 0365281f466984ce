"""Held-out loss against file size on a real task: SmolLM2-135M with the `smollm2_e2e` adapter, on E2E NLG.

    python tools/bench/task_loss.py [--sizes 90KB 53KB ...] [--seeds 0 1 2] [--rows 96] [--json]

The loss is that of shared/tools/e2e_eval.py, nats a target token. Ours is the whole file. Peers: the SVD truncated in
fp16 to the same size, the strongest components of all layers first; and the SVD at a uniform rank with group-64
rounding, whose size is codes and scales alone. Seeds change the basis: the spread between them is the noise of a
single figure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Component, Pair, canonical, load, shared_dir, table
from quantizers import Integers

import nola_codec
from nola_codec.arrays import NUMPY
from nola_codec.container.reader import open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.encoder.sizes import parse_size

Deltas = dict[str, tuple[Any, Any]]
ROUNDED = ((8, 4), (4, 2), (2, 2), (1, 4), (1, 2))


class Model:
    """The base model, to which deltas are added for one evaluation."""

    def __init__(self, base: Path, rows: int) -> None:
        sys.path.insert(0, str(shared_dir() / "tools"))
        import e2e_eval
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._evaluate, self._torch = e2e_eval, torch
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._weights = dict(self._model.named_parameters())
        self._rows = e2e_eval.rows("test", rows)

    def loss(self, deltas: Deltas) -> float:
        """Held-out loss with B A added to each named weight."""
        torch = self._torch
        saved = {}
        with torch.no_grad():
            for name, (b, a) in deltas.items():
                weight = self._weights[name.removeprefix("base_model.model.") + ".weight"]
                saved[name] = weight.clone()
                weight += torch.from_numpy(np.asarray(b, np.float32)) @ torch.from_numpy(np.asarray(a, np.float32))
            value: float = self._evaluate.loss(self._model, self._tokenizer, self._rows)
            for name, weight in saved.items():
                self._weights[name.removeprefix("base_model.model.") + ".weight"].copy_(weight)
        return value


def ours(source: Path, size: str, options: dict[str, Any]) -> tuple[int, Deltas]:
    """Bytes and decoded deltas of one encode."""
    data, _ = nola_codec.encode_bytes(source, size=size, **options)
    decoder = Decoder(open_container(data), NUMPY)
    deltas = {}
    for record, factors in zip(decoder.header.lowrank, decoder.checked(), strict=True):
        b, a = factors.float32(NUMPY)
        deltas[record.name] = (b * record.kind.scaling, a)
    return len(data), deltas


def truncated(components: Sequence[Component], limit: int) -> tuple[int, Deltas]:
    """SVD in fp16: components by energy a byte, over all layers, until the size is reached."""
    order = sorted(
        (
            (c.s[i] ** 2 / (len(c.u) + len(c.v)), index, i)
            for index, c in enumerate(components)
            for i in range(len(c.s))
        ),
        reverse=True,
    )
    ranks = [0] * len(components)
    total = 0
    for _, index, _ in order:
        cost = 2 * (len(components[index].u) + len(components[index].v))
        if total + cost > limit:
            break
        ranks[index] += 1
        total += cost
    deltas = {}
    for c, rank in zip(components, ranks, strict=True):
        b, a = _balanced(c, rank)
        deltas[c.name] = (b.astype(np.float16), a.astype(np.float16))
    return total, deltas


def rounded(components: Sequence[Component], rank: int, bits: int) -> tuple[int, Deltas]:
    """SVD at one rank, rounded with a scale for 64 numbers."""
    quantizer = Integers(bits)
    total = 0
    deltas = {}
    for c in components:
        b, a = _balanced(c, rank)
        rows = [quantizer(b.T), quantizer(a)]
        total += sum((0 if q.codes is None else q.codes.size * bits // 8) + sum(x.nbytes for x in q.side) for q in rows)
        deltas[c.name] = (rows[0].values.T, rows[1].values)
    return total, deltas


def _balanced(c: Component, rank: int) -> tuple[Any, Any]:
    root = np.sqrt(c.s[:rank])
    return c.u[:, :rank] * root, (c.v[:, :rank] * root).T


def cases(
    source: Path, sizes: Sequence[str], seeds: Sequence[int], options: dict[str, Any]
) -> Iterator[tuple[str, int, Deltas]]:
    """(name, bytes, deltas) of everything that is evaluated."""
    pairs: list[Pair] = load(source)
    components = [canonical(p) for p in pairs]
    yield "base model", 0, {}
    yield "adapter, fp16", 2 * sum(p.A.size + p.B.size for p in pairs), {p.name: (p.B * p.scaling, p.A) for p in pairs}
    for size in sizes:
        for seed in seeds:
            yield (
                f"nola-codec --size {size}" + (f" seed {seed}" if seed else ""),
                *ours(source, size, {**options, "seed": seed}),
            )
        yield f"SVD fp16, {size}", *truncated(components, parse_size(size))
    for rank, bits in ROUNDED:
        yield f"SVD r={rank}, {bits}-bit g64", *rounded(components, rank, bits)


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["90KB", "53KB", "29KB"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is often faster on a shared machine")
    parser.add_argument("--base", type=Path, help="model directory; made by tools/base_model.py when left out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    base = arguments.base
    if base is None:
        import subprocess

        made = subprocess.run([sys.executable, ROOT / "tools" / "base_model.py"], stdout=subprocess.PIPE, text=True)
        base = Path(made.stdout.strip()) if made.returncode == 0 else sys.exit("no base model")
    model = Model(base, arguments.rows)
    source = shared_dir() / "data" / "lora" / "smollm2_e2e"
    found = []
    for name, size, deltas in cases(source, arguments.sizes, arguments.seeds, {}):
        loss = model.loss(deltas)
        found.append({"name": name, "bytes": size, "loss": loss})
        print(f"{name}: {size:,} bytes, {loss:.4f}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    low, high = found[1]["loss"], found[0]["loss"]
    rows = [
        [f["name"], f"{f['bytes']:,}", f"{f['loss']:.4f}", f"{(high - f['loss']) / (high - low):.1%}"] for f in found
    ]
    print(table(rows, ["what", "bytes", "loss", "of the gain"]))


if __name__ == "__main__":
    main()
