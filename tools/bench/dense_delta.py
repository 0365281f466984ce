"""Measure held-out loss against file size for the change of a whole model: SmolLM2-135M, fine-tuned in full on E2E.

    python tools/bench/dense_delta.py --cache DIR [--ratios 16 32 64 128] [--mergekit PATH] [--json FILE]

The models are those of full_finetune.py, kept in --cache. The loss is that of tools/e2e_loss.py on held-out
rows, in nats a target token. Every change is added to the weights of the base in float32. In all rows but the first
two, the embeddings are those of the base (`encode-delta` leaves them out unless asked). A ratio is the 16-bit size of
the changed and coded weights over the size of a file, and no file is larger than that.

There are five peers. `mergekit-extract-lora` has the largest rank whose file fits; --mergekit names the program, and
without it its documented method is done here: the truncated SVD of every matrix in bfloat16. A sign code, from which
BitDelta starts, has one bit a parameter of the matrices and one scale a matrix, the mean magnitude,
not trained. Delta-CoMe, UltraDelta and D-QReLO are those of `rivals/`, at --rival-ratios. All keep norms in 16 bits.
The factor of UltraDelta is chosen on rows that the model was not trained on, and that no result is measured on.

What was evaluated is kept, by the numbers that were added to the model; `tools/experiments/results.py` says where.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import ROOT, table
from full_finetune import fine_tuned
from rivals.d_qrelo import DQReLO
from rivals.delta_come import DeltaCome
from rivals.dense import DenseChange, DenseFile
from rivals.ultra_delta import UltraDelta
from task_peers import base_directory

import nola_codec
from nola_codec.adapters.dialects.weight_changes import totals
from nola_codec.api.decoding import read_adapter
from nola_codec.fit.truncated_svd import truncated_svd

sys.path.insert(0, str(ROOT / "tools" / "experiments"))
import results

NAME = "dense_delta"
GAINS = (1.25, 1.6)
"""What the whole change is multiplied by, to see if a larger change has a lower loss."""
VALIDATED = (480, 488)
"""Rows of the validation split to choose on: those that full_finetune.py does not train on."""
Floats = npt.NDArray[np.floating]
Changes = Mapping[str, Floats]


def changes(base: Path, tuned: Path) -> dict[str, Floats]:
    """Return the change of every weight, in float32."""
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", "pt") as a, safe_open(tuned / "model.safetensors", "pt") as b:
        return {name: (b.get_tensor(name).float() - a.get_tensor(name).float()).numpy() for name in b.keys()}  # noqa: SIM118


def sign_code(found: Changes) -> tuple[int, Changes]:
    """Return (bytes, changes) of a sign code: a bit a parameter and a scale a matrix; norms have 16 bits."""
    size, made = 0, {}
    for name, delta in found.items():
        if delta.ndim < 2:
            size, made[name] = size + 2 * delta.size, delta
        else:
            size += delta.size // 8 + 2
            made[name] = np.where(delta < 0, -1, 1).astype(np.float32) * np.abs(delta).mean()
    return size, made


def lora_bytes(found: Changes, rank: int) -> int:
    """Return the bytes of a bfloat16 file of factors and whole norms, without its header."""
    return 2 * sum(rank * sum(d.shape) if d.ndim == 2 else d.size for d in found.values())


def extracted(found: Changes, limit: int, program: Path | None, base: Path, tuned: Path) -> tuple[str, int, Changes]:
    """Return (name, bytes, changes) of the LoRA extraction for a size."""
    rank = next(r for r in range(1000, 0, -1) if lora_bytes(found, r) <= 0.99 * limit)
    if program is None:
        return f"truncated SVD, bf16, rank {rank}", lora_bytes(found, rank), dict(_truncated(found, rank))
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--model", tuned, "--base-model", base, "--out-path", folder, "--max-rank", str(rank),
                   "-e", "embed_tokens", "-e", "lm_head"]  # fmt: skip
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        file = Path(folder) / "adapter_model.safetensors"
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        return f"mergekit-extract-lora, rank {rank}", file.stat().st_size, _of_adapter(file, config, found, base)


def _truncated(found: Changes, rank: int) -> Iterator[tuple[str, Floats]]:
    import torch

    for index, (name, delta) in enumerate(found.items()):
        if delta.ndim < 2:
            yield name, delta
            continue
        parts = truncated_svd(delta, rank, seed=0, stream=index)
        root = np.sqrt(parts.s).astype(np.float32)
        left, right = (
            torch.from_numpy(x).bfloat16().float().numpy() for x in (parts.u.T * root, parts.v * root[:, None])
        )
        yield name, left @ right


def _of_adapter(file: Path, config: Mapping[str, Any], found: Changes, base: Path) -> Changes:
    """Return the changes of a PEFT file: products of factors, and the differences of weights that it saves whole."""
    from safetensors import safe_open

    made: dict[str, Floats] = {}
    scaling = config["lora_alpha"] / config["r"]
    with safe_open(file, "pt") as adapter, safe_open(base / "model.safetensors", "pt") as model:
        keys = set(adapter.keys())
        for name in found:
            key = "base_model.model." + name.removesuffix(".weight")
            if f"{key}.lora_A.weight" in keys:
                a, b = (adapter.get_tensor(f"{key}.lora_{x}.weight").float() for x in "AB")
                made[name] = (scaling * b @ a).numpy()
            else:
                whole = adapter.get_tensor("base_model.model." + name).float()
                made[name] = (whole - model.get_tensor(name).float()).numpy()
    return made


class Model:
    """The base model, to which changes are added for one evaluation."""

    def __init__(self, base: Path, rows: int, change: Changes) -> None:
        from rivals.text import TextTask

        self._task, self._rows, self._change = TextTask(base), rows, change
        self._weights = dict(self._task.model.named_parameters())
        self._energy = _inner(change, change)

    def row(self, what: str, made: Changes, ratio: float | None = None, **figures: Any) -> dict[str, Any]:
        """Return a row of the table: the held-out loss with the changes added, and figures. These are kept.

        `signal` is the share of the whole change that the row's changes hold, <change, made> / ||change||^2.
        """
        settings = {"what": what, "ratio": ratio, "content": content(made), "rows": self._rows}
        found = results.measure(NAME, settings, lambda: {"loss": self._loss(made, "test", 0, self._rows), **figures})
        share = {} if ratio is None else {"ratio": ratio}
        return {"what": what, **share, **found["figures"], "signal": _inner(self._change, made) / self._energy}

    def validate(self, made: Changes) -> float:
        """Return the loss on rows to choose on."""
        return self._loss(made, "valid", *VALIDATED)

    def _loss(self, made: Changes, split: str, start: int, stop: int) -> float:
        import torch

        before = {name: self._weights[name].detach().clone() for name in made}
        with torch.no_grad():
            for name, delta in made.items():
                self._weights[name].add_(torch.from_numpy(np.asarray(delta, np.float32)))
            value = self._task.loss(self._task.rows(split, start, stop))
            for name, weight in before.items():
                self._weights[name].copy_(weight)
        return value


def _inner(one: Changes, other: Changes) -> float:
    """Return the inner product of two changes over the weights that both have."""
    both = ((np.asarray(one[n], np.float64), np.asarray(other[n], np.float64)) for n in one if n in other)
    return sum(float((a * b.reshape(a.shape)).sum()) for a, b in both)


def content(made: Changes) -> str:
    """Return a short hash of the numbers that are added to the model."""
    sha = hashlib.sha256()
    for name, delta in sorted(made.items()):
        sha.update(name.encode() + np.ascontiguousarray(delta, np.float32).tobytes())
    return sha.hexdigest()[:16]


def rival_files(
    found: Changes, ratios: Sequence[float], seeds: Sequence[int], model: Model
) -> Iterator[tuple[float, DenseFile]]:
    """Yield (ratio, file) of each rival. The whole form of D-QReLO, which is above 1/16, comes once, with ratio 0."""
    change = DenseChange(found)
    whole = 2 * sum(delta.size for delta in found.values())
    come = DeltaCome(change)
    if ratios:
        yield 0.0, DQReLO(None)(change, int(whole / max(ratios)))
    for ratio in ratios:
        limit = int(whole / ratio)
        yield ratio, come(limit)
        yield ratio, DQReLO(0.5)(change, limit)
        tried = [UltraDelta(bits, seeds[0], factor) for bits in (3, 4) for factor in (0.25, 0.5, 1.0)]
        best = min(tried, key=lambda setting: model.validate(setting(change, limit).changes))
        for seed in seeds:
            yield ratio, replace(best, seed=seed)(change, limit)


def ours(base: Path, tuned: Path, ratio: float, folder: Path, **options: Any) -> tuple[int, Changes, dict[str, Any]]:
    """Return the bytes and the decoded changes of a file, and the figures of its report."""
    file = folder / "change.nola"
    start = time.perf_counter()
    report = nola_codec.encode_delta(tuned, base, file, ratio=ratio, overwrite=True, **options)
    said = {"nmse": report.nmse, "effective_error": report.effective_error, "seconds": time.perf_counter() - start}
    return file.stat().st_size, dict(totals(read_adapter(file))), said


def rows(arguments: argparse.Namespace, base: Path, tuned: Path) -> Iterator[dict[str, Any]]:
    """Yield one row for each file, as soon as it is measured."""
    everything = changes(base, tuned)
    found = {name: delta for name, delta in everything.items() if "embed_tokens" not in name}
    model = Model(base, arguments.rows, found)
    whole = 2 * sum(delta.size for delta in found.values())
    yield model.row("base", {})
    yield model.row("tuned, embeddings too", everything, bytes=2 * sum(d.size for d in everything.values()))
    yield model.row("tuned", found, bytes=whole)
    for gain in GAINS:
        yield model.row(f"tuned, the change times {gain:g}", {name: d * np.float32(gain) for name, d in found.items()})
    size, made = sign_code(found)
    yield model.row("sign code (BitDelta's start)", made, bytes=size)
    with tempfile.TemporaryDirectory() as folder:
        for ratio in arguments.ratios:
            limit = int(whole / ratio)
            what, size, made = extracted(found, limit, arguments.mergekit, base, tuned)
            yield model.row(what, made, ratio, bytes=size)
            size, made, said = ours(base, tuned, ratio, Path(folder))
            yield model.row(f"ours, 1/{ratio:g}", made, ratio, bytes=size, **said)
            if arguments.parts:
                size, made, said = ours(base, tuned, ratio, Path(folder), residue=False)
                yield model.row(f"ours, 1/{ratio:g}, no residue", made, ratio, bytes=size, **said)
    for ratio, file in rival_files(found, arguments.rival_ratios, arguments.seeds, model):
        yield model.row(file.what, file.changes, ratio, bytes=file.bytes)


def show(found: Sequence[dict[str, Any]]) -> str:
    """Return the table as text."""
    high, low = found[0]["loss"], found[2]["loss"]
    return table(
        [
            [
                r["what"],
                f"{r.get('bytes', 0):,}",
                f"{r['loss']:.4f}",
                f"{(high - r['loss']) / (high - low):.1%}",
                f"{r['signal']:.2f}",
            ]
            for r in found
        ],
        ["what", "bytes", "loss", "of the gain", "signal"],
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="the base model of the fine-tune, if that is not made yet")
    parser.add_argument("--ratios", type=float, nargs="*", default=[16, 32, 64, 128])
    parser.add_argument("--rival-ratios", type=float, nargs="*", default=[64, 128], help="ratios of the rivals")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of rivals that draw at random")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--mergekit", type=Path, help="the program mergekit-extract-lora")
    parser.add_argument("--parts", action="store_true", help="also measure our files without the residue")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    made = arguments.cache / "tuned" / "config.json"
    start = arguments.cache if made.is_file() else (arguments.base or base_directory())
    base, tuned = fine_tuned(start, arguments.cache)
    found = []
    for row in rows(arguments, base, tuned):
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=2))
    print(show(found))


if __name__ == "__main__":
    main()
