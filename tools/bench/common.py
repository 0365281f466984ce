"""The common parts of the benchmarks: adapters as pairs of factors, their errors, adapters that are made, and tables.

A pair is ``delta_W = scaling * B @ A`` with B (out, r) and A (r, in). The dense product is never formed: norms and
errors of low-rank matrices come from r x r Gram matrices.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from svd_codecs.columns import Component, component

from nola_codec.adapters import read

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
Floats = npt.NDArray[Any]
TARGETS = (0.01, 0.03, 0.1, 0.3, 0.5)


@dataclass(frozen=True)
class Pair:
    """One adapted weight: B (out, r) and A (r, in) in float32."""

    name: str
    B: Floats
    A: Floats
    scaling: float = 1.0


def source_itemsize(path: Path) -> int:
    """Return the bytes of a number in the adapter's own file: 4 for float32, 2 for float16 and bfloat16."""
    if path.suffix == ".bin":
        return 4
    with (next(path.glob("*.safetensors")) if path.is_dir() else path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return 2 if {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F16", "BF16"} else 4


def load(path: Path) -> list[Pair]:
    """Return the factor pairs of an adapter in any dialect; other tensors are left out."""
    return [
        Pair(m.name, m.lora_B, m.lora_A, m.scaling) for m in sorted(read(path).modules, key=lambda module: module.name)
    ]


def write_peft(folder: Path, state: Mapping[str, Floats], rank: int, alpha: int) -> None:
    """Write an adapter as PEFT does: a directory of tensors, under PEFT's keys, and the configuration of a LoRA."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "use_rslora": False,
              "task_type": "CAUSAL_LM", "target_modules": sorted({key.split(".")[-3] for key in state})}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def singular_components(pair: Pair) -> Component:
    """Return the singular components of a pair."""
    return component(pair.name, pair.B, pair.A, pair.scaling)


def nmse(pairs: Sequence[Pair], decoded: Sequence[tuple[Floats, Floats]]) -> float:
    """Return the share of the file's ||delta_W||_F^2 that is lost; `decoded` has (B', A') with the scaling included.

    ``||BA - B'A'||^2 = <B^T B, A A^T> - 2 <B'^T B, A' A^T> + <B'^T B', A' A'^T>`` in float64.
    """
    energy = error = 0.0
    for pair, (b_new, a_new) in zip(pairs, decoded, strict=True):
        b, a = pair.scaling * pair.B.astype(np.float64), pair.A.astype(np.float64)
        b_new, a_new = b_new.astype(np.float64), a_new.astype(np.float64)
        own = float(np.sum((b.T @ b) * (a @ a.T)))
        cross = float(np.sum((b_new.T @ b) * (a_new @ a.T)))
        energy += own
        error += own - 2 * cross + float(np.sum((b_new.T @ b_new) * (a_new @ a_new.T)))
    return max(error, 0.0) / energy


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> str:
    """Return a Markdown table; its first column is flush left, and the others are flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, cells)])


def size(count: float) -> str:
    """Return a number of bytes as text, such as '1,235 KB'; KB is 1000 bytes."""
    return f"{count / 1000:,.0f} KB" if count >= 100_000 else f"{count / 1000:,.1f} KB"
