"""The peers by name: an SVD whose components are truncated and rounded, as tools in use do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nola_codec.reporting.rounding import Half, Integers, Quantizer
from svd_codecs.columns import RESIZE_RULES, Bank, Columns, Component, Mix

EVERY_RULE = (*RESIZE_RULES, "global")
"""The rules of resize_lora, and one threshold over the whole file, which only few tools have."""


def rounded(
    name: str,
    components: Sequence[Component],
    quantizers: Sequence[Quantizer],
    rules: Sequence[str] = EVERY_RULE,
    *,
    compress: bool = True,
) -> Columns:
    """Kept components all at one width: the best of `quantizers` and `rules` for each error asked."""
    mixes = [Mix(rule, {0: 1.0}) for rule in rules]
    return Columns(name, [(Bank(components, [q]), mixes) for q in quantizers], compress=compress)


def svd_peers(components: Sequence[Component]) -> Mapping[str, Callable[[], Columns]]:
    """Makers of the common peers, by name; each holds the adapter once more while it is used."""
    return {
        "SVD fp16, resize_lora": lambda: rounded(
            "SVD fp16, resize_lora", components, [Half()], RESIZE_RULES, compress=False
        ),
        "SVD fp16, one threshold": lambda: rounded(
            "SVD fp16, one threshold", components, [Half()], ["global"], compress=False
        ),
        "SVD int8/64 + zstd": lambda: rounded("SVD int8/64 + zstd", components, [Integers(8)]),
        "SVD int4/64 + zstd": lambda: rounded("SVD int4/64 + zstd", components, [Integers(4)]),
    }
