"""The table of `tools/bench/combined_deltas.py`."""

from __future__ import annotations

from collections.abc import Sequence

from results import Result, as_table, show_share


def kept(found: Sequence[Result]) -> str:
    """Return one row for each method and target: the bytes, the error, the loss, and the share of the gain kept."""
    rows: list[list[object]] = [["base model", "", "", "", f"{found[0]['figures']['base']:.3f}", ""]] if found else []
    for result in found:
        figures, method = result["figures"], result["settings"]["method"]
        base, full = figures["base"], figures["adapter"]
        rows.append([f"{method}, not coded", "", "", "", f"{full:.3f}", "100.0%"])
        for each in figures["files"]:
            target = "default" if each["target"] is None else f"{each['target']:g}"
            name = "NMSE" if each["objective"] == "nmse" else "effective"
            rows.append(
                [f"{method}, {target}", name, f"{each['bytes']:,}", f"{each['error']:.3f}", f"{each['loss']:.3f}",
                 show_share(base, full, each["loss"])]
            )  # fmt: skip
    return as_table(["adapter, target", "objective", "bytes", "error", "loss", "of the gain"], rows)
