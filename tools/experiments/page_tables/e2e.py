"""The tables of `tools/experiments/methods.py` and `quantization.py`."""

from __future__ import annotations

from typing import Any

from results import Result, as_table, mean_and_spread

_NAMES = {
    "base": "base model", "lora": "LoRA", "nola": "NOLA", "pranc": "PRANC", "vera": "VeRA", "randlora": "RandLoRA"
}  # fmt: skip
_HEADER = ["method", "trained", "bytes", "loss", "deviation", "seeds"]
_WHOLE = {"base_bits": None, "layers": None, "bits": None}
_KEPT = ("method", "rank", "num_basis", "total", "bits", "base_bits", "layers", "steps")


def methods(found: list[Result]) -> str:
    """All layers, 100 and 200 steps."""
    return _losses([r for r in found if r["settings"].get("steps", 100) >= 100], _WHOLE)


def small(found: list[Result]) -> str:
    """The last layers, few steps."""
    return _losses(found, {"base_bits": None, "layers": 4, "steps": 20})


def quantized_base(found: list[Result]) -> str:
    """A base of 8 bits, 40 steps."""
    return _losses(found, {"base_bits": 8, "steps": 40})


def rounding(found: list[Result]) -> str:
    """NOLA with few bits, rounded after training and trained so; the first seed."""
    own = [r for r in found if r["settings"]["method"] == "nola" and r["settings"]["seed"] == 0]
    own = [r for r in own if _is(r["settings"], {"steps": 100, "base_bits": None, "layers": None})]
    rows = []
    for result in (r for r in own if "ptq" in r["figures"]):
        count, plain = result["settings"]["num_basis"], result["figures"]["loss"]
        aware = {r["settings"].get("bits"): r["figures"]["loss"] for r in own if r["settings"]["num_basis"] == count}
        for bits, loss in {16: plain, **{int(b): v for b, v in result["figures"]["ptq"].items()}}.items():
            trained = aware.get(bits)
            rows.append([
                f"k={count}, {bits} bits", f"{loss:.4f}", f"{loss - plain:+.4f}",
                "" if trained is None else f"{trained:.4f}", "" if trained is None else f"{trained - plain:+.4f}",
            ])  # fmt: skip
    header = ["coefficients", "rounded after training", "against 16 bits", "trained so", "against 16 bits"]
    return as_table(header, rows)


def _is(settings: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(settings.get(key) == value for key, value in wanted.items())


def _place(item: tuple[tuple[Any, ...], list[Result]]) -> tuple[int, int, int]:
    """The base model comes first; then each method with its largest size and fewest steps before the others."""
    (method, *_, steps), own = item
    return list(_NAMES).index(method), -own[0]["figures"].get("parameters", 0), steps or 0


def _losses(found: list[Result], wanted: dict[str, Any]) -> str:
    """Mean and deviation of the loss over seeds; the base model has no steps."""
    by: dict[tuple[Any, ...], list[Result]] = {}
    for result in found:
        settings = result["settings"]
        if settings["method"] == "base":
            chosen = settings.get("base_bits") == wanted.get("base_bits")
        else:
            chosen = _is(settings, {"basis": None, "shared": None, **wanted})
        if chosen:
            by.setdefault(tuple(settings.get(key) for key in _KEPT), []).append(result)
    usual = wanted.get("steps", 100)
    rows = []
    for (method, rank, num_basis, total, *_, steps), own in sorted(by.items(), key=_place):
        name = _NAMES[method] + (f" r={rank}" if rank else "") + (f" k={num_basis}" if num_basis else "")
        name += f", {total:,} shared out" if total else ""
        name += f", {steps} steps" if steps not in (None, usual) else ""
        loss, spread = mean_and_spread(own, "loss")
        figures = own[0]["figures"]
        rows.append([
            name, f"{figures['parameters']:,}" if "parameters" in figures else "",
            f"{figures['bytes']:,}" if "bytes" in figures else "", f"{loss:.4f}",
            "" if spread is None else f"{spread:.4f}", len(own),
        ])  # fmt: skip
    return as_table(_HEADER, rows)
