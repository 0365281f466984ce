"""The table of `tools/bench/peft_methods.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results import as_table

_TITLES = {
    "UniLoraConfig": "Uni-LoRA", "TinyLoraConfig": "TinyLoRA", "VBLoRAConfig": "VB-LoRA",
    "FourierFTConfig": "FourierFT", "WaveFTConfig": "WaveFT", "PveraConfig": "PVeRA",
}  # fmt: skip


def sizes(found: Sequence[dict[str, Any]]) -> str:
    """Return the bytes of each method: PEFT's files, and `.nola` files exact and at two errors."""
    rows = []
    for result in found:
        figures, settings = result["figures"], result["settings"]
        width = settings["width"]
        rows.append(
            [f"{_TITLES[settings['method']]}, {width} x {width}",
             *(f"{figures[key]:,}" for key in ("numbers", "peft", "peft_config", "exact", "nmse 0.01", "nmse 0.1"))]
        )  # fmt: skip
    header = ["method, layers", "trained numbers", "PEFT's tensors", "its configuration", "`.nola`, exact",
              "NMSE 0.01", "NMSE 0.1"]  # fmt: skip
    return as_table(header, rows)
