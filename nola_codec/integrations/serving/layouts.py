"""An adapter as a server reads it: PEFT's dialect, in bfloat16, without components that are zero.

Servers differ in the part of PEFT's configuration that they read. One that knows ``rank_pattern`` and ``alpha_pattern``
gets the ``trimmed`` layout, in which each module has the rank that it needs. One that reads ``r`` and ``lora_alpha``
alone gets the ``uniform`` layout: one rank and one scaling for all modules, and no rsLoRA. To such a server any other
layout would be a wrong scale in silence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from nola_codec.adapters.base_changes import restore_from_base
from nola_codec.adapters.conversion import convert
from nola_codec.adapters.ranks import with_factors, with_largest_rank, without_zeros
from nola_codec.adapters.registry import dialect_of
from nola_codec.adapters.trimming import trim
from nola_codec.arrays import NUMPY
from nola_codec.container.reader import Container
from nola_codec.decoder.adapters import decode_adapter
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.references.finding import References, open_decoder

Layout = Literal["trimmed", "uniform"]
LAYOUTS: tuple[Layout, ...] = ("trimmed", "uniform")

# Options of PEFT that change what the factors mean.
_MORE_THAN_FACTORS = (
    "use_dora", "lora_bias", "trainable_token_indices", "target_parameters", "layer_replication",
    "use_bdlora", "use_qalora", "alora_invocation_tokens",
)  # fmt: skip

LAYOUT_REVISION = 2
"""A number that grows when the layouts change, so that directories of an older version are not used."""


def read_for_server(container: Container, layout: Layout, max_bytes: int, references: References = None) -> Adapter:
    """Decode an open file whose content was checked, in PEFT's dialect and in a layout.

    Args:
        container: The open file.
        layout: The layout.
        max_bytes: The most bytes in bfloat16 that the adapter may take.
        references: Where the earlier version is that the file needs, if it was encoded against one.

    Raises:
        AdapterError: ``limit``: it is larger; ``not-expressible``: PEFT's dialect or the layout has no place for a part
            of it; ``needs-base``: the file holds a change of a tensor of the base model.
        FormatError, ChecksumMismatch: The file is damaged.
    """
    header = container.header
    numbers = sum(record.kind.elements for record in header.coded)
    size = 2 * numbers + sum(record.kind.nbytes for record in header.raw)
    if size > max_bytes:
        raise AdapterError(mismatch("decoded bytes", f"at most {max_bytes}", size), code="limit", where=container.name)
    adapter = restore_from_base(decode_adapter(open_decoder(container, NUMPY, references)), None)
    if adapter.dialect != "peft":
        adapter = convert(adapter, "peft")
    return trim(adapter)[0] if layout == "trimmed" else make_uniform(adapter)


def make_uniform(adapter: Adapter) -> Adapter:
    """Return an adapter of PEFT with the same deltas, whose modules all have one rank and one scaling.

    The rank is the largest that a module needs. The scaling is the most common one. What another module's is larger
    than that is multiplied into its lora_B, with one rounding to float32.

    Raises:
        AdapterError: ``not-expressible``: the adapter is more than products of two factors: it has DoRA, biases,
            modules that are saved whole, or trained tokens, which such servers leave out without a word.
    """
    dialect = dialect_of(adapter)
    _require_plain(adapter)
    trimmed = [without_zeros(module) for module in adapter.modules]
    if not trimmed:
        raise AdapterError("the adapter has no factors", code="not-expressible", where=dialect.title)
    common = Counter(module.scaling for module in trimmed if module.scaling).most_common(1)
    scaling = common[0][0] if common else 1.0
    modules = with_largest_rank([_rescale(module, scaling) for module in trimmed])
    plain = replace(adapter, config={**(adapter.config or {}), "use_rslora": False})
    result = dialect.with_modules(plain, modules)
    config = result.config or {}
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_rslora"):
        message = "its configuration cannot state one rank and one scaling for all modules"
        raise AdapterError(message, code="not-expressible", where=dialect.title)
    return result


def largest_rank(config: dict[str, Any]) -> int:
    """Return the largest rank that a configuration of PEFT states."""
    return max([int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])


def _require_plain(adapter: Adapter) -> None:
    """Raise AdapterError ``not-expressible`` if there is more in an adapter than pairs of factors of whole layers."""
    config = adapter.config or {}
    options = [name for name in _MORE_THAN_FACTORS if config.get(name)]
    # PEFT writes the embeddings of the base model beside their factors; they change nothing.
    others = [key for key in adapter.raw if not key.endswith(".base_layer.weight")]
    others += [vector.name for vector in adapter.vectors]
    if options or others:
        found = f"{options[0]} in its configuration" if options else f"{len(others)} other tensors, such as {others[0]}"
        message = f"expected nothing but pairs of factors, since the server reads no more, found {found}"
        raise AdapterError(message, code="not-expressible", where=dialect_of(adapter).title)


def _rescale(module: LoraModule, scaling: float) -> LoraModule:
    if module.scaling == scaling:
        return module
    lora_B = (module.lora_B.astype(np.float64) * (module.scaling / scaling)).astype(np.float32)
    if not np.isfinite(lora_B).all():
        raise AdapterError("a scaling leaves the range of float32", code="not-expressible", where=module.name)
    return replace(with_factors(module, module.lora_A, lora_B), scaling=scaling)
