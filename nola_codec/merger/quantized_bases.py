"""Refuse to change a quantized weight, and name the method of the quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nola_codec.adapters.base_model import MergeTarget
from nola_codec.errors import AdapterError
from nola_codec.merger.matching import wanted_names
from nola_codec.merger.model_names import ModelNames
from nola_codec.merger.part_places import EACH_EXPERT


def require_unquantized_targets(
    targets: Iterable[MergeTarget], names: ModelNames, quantized: Mapping[str, str], where: str = ""
) -> None:
    """Check that no weight that gets a delta is quantized. This comes before shapes, since packed weights have others.

    Args:
        targets: The deltas of an adapter.
        names: The names of the stored weights and of the quantized ones.
        quantized: The method of each quantized weight, by name (`checkpoints.quantization.quantized_weights`).
        where: The model's path, for messages.

    Raises:
        AdapterError: ``quantized-base``.
    """
    if not quantized:
        return
    found: list[str] = []
    for target in targets:
        wanted = [name.replace(EACH_EXPERT, "0") for name in wanted_names(target)]
        found += names.find_all(wanted) or [part.stored for part in names.find_parts(wanted[0])[1]]
    require_unquantized(found, quantized, where)


def require_unquantized(weights: Iterable[str], quantized: Mapping[str, str], where: str = "") -> None:
    """Check that none of these weights is quantized; arguments and errors as in `require_unquantized_targets`."""
    found = [name for name in weights if name in quantized]
    if found:
        others = f", {len(found)} such weights" if len(found) > 1 else ""
        message = (
            f"the weight is quantized ({quantized[found[0]]}{others}), so it cannot be changed by a merge; merge into "
            "the unquantized model, and quantize the result"
        )
        raise AdapterError(message, code="quantized-base", where=f"{where}: {found[0]}" if where else found[0])
