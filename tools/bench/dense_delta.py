"""Measure held-out loss against file size for the change of a whole model: SmolLM2-135M, fine-tuned in full on E2E.

    python tools/bench/dense_delta.py --cache DIR [--ratios 16 32 64 128] [--mergekit PATH] [--json FILE]

The models are those of full_finetune.py, kept in --cache. The loss is that of tools/e2e_loss.py on held-out
rows, in nats a target token. Every change is added to the weights of the base in float32. In all rows but the first
two, the embeddings are those of the base (`encode-delta` leaves them out unless asked). A ratio is the 16-bit size of
the changed and coded weights over the size of a file, and no file is larger than that.

There are two peers. `mergekit-extract-lora` has the largest rank whose file fits; --mergekit names the program, and
without it its documented method is done here: the truncated SVD of every matrix in bfloat16. The other peer is a sign
code, from which BitDelta starts: one bit a parameter of the matrices and one scale a matrix, the mean magnitude, not
trained. Both keep norms in 16 bits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import table
from full_finetune import fine_tuned
from task_peers import base_directory

import nola_codec
from nola_codec.adapters.dialects.weight_changes import totals
from nola_codec.api.decoding import read_adapter
from nola_codec.fit.truncated_svd import truncated_svd

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

    def __init__(self, base: Path, rows: int) -> None:
        import e2e_loss
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._evaluate, self._torch = e2e_loss, torch
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._weights = dict(self._model.named_parameters())
        self._rows = e2e_loss.rows("test", rows)

    def loss(self, made: Changes) -> float:
        """Return the held-out loss with the changes added."""
        torch = self._torch
        before = {name: self._weights[name].detach().clone() for name in made}
        with torch.no_grad():
            for name, delta in made.items():
                self._weights[name].add_(torch.from_numpy(np.asarray(delta, np.float32)))
            value: float = self._evaluate.loss(self._model, self._tokenizer, self._rows)
            for name, weight in before.items():
                self._weights[name].copy_(weight)
        return value


def ours(base: Path, tuned: Path, ratio: float, folder: Path, **options: Any) -> tuple[int, Changes, dict[str, Any]]:
    """Return the bytes and the decoded changes of a file, and the figures of its report."""
    file = folder / "change.nola"
    start = time.perf_counter()
    report = nola_codec.encode_delta(tuned, base, file, ratio=ratio, overwrite=True, **options)
    said = {"nmse": report.nmse, "effective_error": report.effective_error, "seconds": time.perf_counter() - start}
    return file.stat().st_size, dict(totals(read_adapter(file))), said


def rows(arguments: argparse.Namespace, base: Path, tuned: Path) -> Iterator[dict[str, Any]]:
    """Yield one row for each file, as soon as it is measured."""
    model = Model(base, arguments.rows)
    everything = changes(base, tuned)
    found = {name: delta for name, delta in everything.items() if "embed_tokens" not in name}
    whole = 2 * sum(delta.size for delta in found.values())
    yield {"what": "base", "loss": model.loss({})}
    yield {"what": "tuned, embeddings too", "bytes": 2 * sum(d.size for d in everything.values()),
           "loss": model.loss(everything)}  # fmt: skip
    yield {"what": "tuned", "bytes": whole, "loss": model.loss(found)}
    size, made = sign_code(found)
    yield {"what": "sign code (BitDelta's start)", "bytes": size, "loss": model.loss(made)}
    with tempfile.TemporaryDirectory() as folder:
        for ratio in arguments.ratios:
            limit = int(whole / ratio)
            what, size, made = extracted(found, limit, arguments.mergekit, base, tuned)
            yield {"what": what, "ratio": ratio, "bytes": size, "loss": model.loss(made)}
            size, made, said = ours(base, tuned, ratio, Path(folder))
            yield {"what": f"ours, 1/{ratio:g}", "ratio": ratio, "bytes": size, "loss": model.loss(made), **said}
            if arguments.parts:
                size, made, said = ours(base, tuned, ratio, Path(folder), residue=False)
                yield {"what": f"ours, 1/{ratio:g}, no residue", "ratio": ratio, "bytes": size,
                       "loss": model.loss(made), **said}  # fmt: skip


def show(found: Sequence[dict[str, Any]]) -> str:
    """Return the table as text."""
    high, low = found[0]["loss"], found[2]["loss"]
    return table(
        [
            [r["what"], f"{r.get('bytes', 0):,}", f"{r['loss']:.4f}", f"{(high - r['loss']) / (high - low):.1%}"]
            for r in found
        ],
        ["what", "bytes", "loss", "of the gain"],
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="the base model of the fine-tune, if that is not made yet")
    parser.add_argument("--ratios", type=float, nargs="*", default=[16, 32, 64, 128])
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
