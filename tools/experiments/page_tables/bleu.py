"""The table of `tools/experiments/bleu.py`."""

from __future__ import annotations

from results import Result, as_table

_ORDER = (
    "base", "adapter", "50KB", "20KB", "10KB", "5KB", "5KB, 16 prompts",
    "LoRA r=8", "LoRA r=1", "NOLA k=128", "NOLA k=32",
)  # fmt: skip
_NAMES = {"base": "base model", "adapter": "adapter `smollm2_e2e`, fp16"}


def scores(found: list[Result]) -> str:
    """BLEU of each model, of the result with the most meanings."""
    rows = []
    for name in _ORDER:
        own = [result for result in found if result["settings"]["model"] == name]
        if own:
            best = max(own, key=lambda result: result["settings"]["meanings"])
            size, _, more = name.partition(", ")
            shown = f"`--size {size}`" + (more and f", {more}") if size.endswith("KB") else _NAMES.get(name, name)
            rows.append([shown, f"{best['figures']['bleu']:.1f}", best["settings"]["meanings"]])
    return as_table(["what", "BLEU", "meanings"], rows)
