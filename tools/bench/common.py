"""What every benchmark needs: real adapters of any naming as plain factor pairs, their error, tables and JSON.

A pair is ``delta_W = scaling * B @ A`` with B (out, r) and A (r, in). The dense product is never formed: norms and
errors of low-rank matrices come from r x r Gram matrices.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nola_codec.peers.columns import Component, component

Floats = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parents[2]
TARGETS = (0.01, 0.03, 0.1, 0.3, 0.5)

# (suffix of the A side, suffix of the B side, stored transposed). The name before the suffix is the module's.
_SUFFIXES = (
    (".lora_A.weight", ".lora_B.weight", False),  # PEFT, diffusers new
    (".lora_A", ".lora_B", False),  # loralib
    (".lora_a", ".lora_b", True),  # MLX: (in, r), (r, out)
    ("_lora.down.weight", "_lora.up.weight", False),  # diffusers old
    (".lora_down.weight", ".lora_up.weight", False),  # kohya
    (":down", ":up", False),  # cloneofsimo
)


@dataclass(frozen=True)
class Pair:
    """One adapted weight: B (out, r) and A (r, in) in float32."""

    name: str
    B: Floats
    A: Floats
    scaling: float = 1.0


def shared_dir() -> Path:
    """The shared folder: $NOLA_SHARED, else ../shared."""
    return Path(os.environ.get("NOLA_SHARED") or ROOT.parent / "shared").resolve()


def adapters() -> dict[str, Path]:
    """Every adapter of shared/data/lora by its short name: directories and lone files."""
    found = {}
    for path in sorted((shared_dir() / "data" / "lora").iterdir()):
        if path.is_dir() and len(list(path.glob("*.safetensors"))) > 1:
            found |= {f"{path.name}/{file.name.split('_')[0]}": file for file in sorted(path.glob("*.safetensors"))}
        else:
            found[path.stem if path.is_file() else path.name] = path
    if not found:
        sys.exit(f"no adapters under {shared_dir()}: set NOLA_SHARED")
    return found


def is_peft(path: Path) -> bool:
    """Whether `path` is a directory as PEFT writes it."""
    return (path / "adapter_config.json").is_file() and (path / "adapter_model.safetensors").is_file()


def tensors(path: Path) -> dict[str, Floats]:
    """All tensors of a safetensors or pickle file, or of the one file in a directory, as float32 arrays.

    A pickle is read with ``weights_only=True``.
    """
    import torch
    from safetensors.torch import load_file

    if path.is_dir():
        path = next(path.glob("*.safetensors"))
    state = (
        load_file(path)
        if path.suffix == ".safetensors"
        else torch.load(path, weights_only=True, map_location="cpu")
    )  # fmt: skip
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def source_itemsize(path: Path) -> int:
    """Bytes a number takes in the adapter's own file: 4 for float32, 2 for float16 and bfloat16."""
    if path.suffix == ".bin":
        return 4
    with (next(path.glob("*.safetensors")) if path.is_dir() else path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return 2 if {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F16", "BF16"} else 4


def load(path: Path) -> list[Pair]:
    """The factor pairs of an adapter in any naming of shared/data/lora; other tensors are left out."""
    state = tensors(path)
    pairs = []
    for name in state:
        if name.startswith("w_a_"):  # SAM LoRA
            pairs.append(Pair(name[4:], state["w_b_" + name[4:]], state[name]))
        for a_end, b_end, transposed in _SUFFIXES:
            stem = name.removesuffix(a_end)
            if stem != name and stem + b_end in state:
                down, up = state[name], state[stem + b_end]
                down, up = (down.T, up.T) if transposed else (down.reshape(len(down), -1), up.reshape(len(up), -1))
                pairs.append(Pair(stem, np.ascontiguousarray(up), np.ascontiguousarray(down), 1.0))
                break
    if not pairs:
        sys.exit(f"{path}: no LoRA factors found")
    scaling = _scaling(path)
    return [Pair(p.name, p.B, p.A, scaling(len(p.A))) for p in sorted(pairs, key=lambda p: p.name)]


def as_peft(pairs: Sequence[Pair], folder: Path) -> Path:
    """Write pairs of any origin as a PEFT directory, one module each, so that a PEFT reader gets the same deltas.

    The scaling goes into B; alpha equals the rank of each module.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    state, ranks = {}, {}
    for pair in pairs:
        module = pair.name.replace(":", ".").removeprefix("base_model.model.")
        ranks[module] = len(pair.A)
        state[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(pair.A, np.float32)
        state[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(pair.B * pair.scaling, np.float32)
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    patterns = ranks if len(set(ranks.values())) > 1 else {}  # of one rank for all, PEFT writes none either
    config = {
        "peft_type": "LORA", "r": max(ranks.values()), "lora_alpha": max(ranks.values()),
        "target_modules": sorted({module.rpartition(".")[2] for module in ranks}),
        "rank_pattern": patterns, "alpha_pattern": patterns, "use_rslora": False, "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _scaling(path: Path) -> Callable[[int], float]:
    """Rank -> scaling. Where the file does not say, 1: a constant factor touches no NMSE. (No patterns here.)"""
    file = (path if path.is_dir() else path.parent) / "adapter_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if "lora_parameters" in config:
        return lambda rank: float(config["lora_parameters"]["scale"])
    if "lora_alpha" in config:
        return lambda rank: config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return lambda rank: 1.0


def canonical(pair: Pair) -> Component:
    """A pair's singular components."""
    return component(pair.name, pair.B, pair.A, pair.scaling)


def nmse(pairs: Sequence[Pair], decoded: Sequence[tuple[Floats, Floats]]) -> float:
    """Share of the file's ||delta_W||_F^2 that is lost; `decoded` holds (B', A') with the scaling already in them.

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
    """A Markdown table, first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, cells)])


def size(count: float) -> str:
    """1234567 -> '1,235 KB' (KB = 1000 bytes)."""
    return f"{count / 1000:,.0f} KB" if count >= 100_000 else f"{count / 1000:,.1f} KB"
