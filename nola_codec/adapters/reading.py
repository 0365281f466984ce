"""`read`: read an adapter of any dialect. The first dialect of the registry that knows the keys reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nola_codec.adapters.contract import Dialect
from nola_codec.adapters.dialects.key_hints import describe_keys
from nola_codec.adapters.dialects.refused_keys import find_refusal
from nola_codec.adapters.folders import carry_beside, find_adapter, open_adapter
from nola_codec.adapters.gathered import require_gathered
from nola_codec.adapters.plain_keys import with_plain_keys
from nola_codec.adapters.registry import DIALECTS, load_entry_points
from nola_codec.adapters.scales import apply_scale, require_scale
from nola_codec.adapters.sources import AdapterSource, Readable
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter


def read(
    source: Readable,
    *,
    config: Mapping[str, Any] | None = None,
    carry_unknown: bool = False,
    scale: float | None = None,
    must_use_scale: bool = True,
) -> Adapter:
    """Read an adapter of any known dialect.

    Args:
        source: A directory, a file, bytes, a binary stream or tensors in memory.
        config: The adapter's configuration, such as for bytes and streams. It is used in place of a configuration file.
        carry_unknown: True to carry tensors that the dialect does not know; False to refuse them.
        scale: The scaling for an adapter that does not say it: in a tensor, its metadata or a configuration.
        must_use_scale: True to refuse an adapter that says another scaling; False to leave that as it is.

    Raises:
        AdapterError: ``option``: the adapter says its scaling, and it is not `scale`; ``foreign-dialect``: the keys
            look like those of a dialect that is not read, which the message names; ``empty-adapter``: the keys look
            like no dialect; ``bad-dialect``; those of `find_adapter`, `with_plain_keys` and `require_gathered`; or an
            error of the dialect.
    """
    scale = None if scale is None else require_scale(scale)
    place = find_adapter(source)
    with open_adapter(place, config=config, scale=scale) as stored:
        opened, notes = with_plain_keys(stored, keep_frozen=carry_unknown)
        require_gathered(opened)
        found = _detect(opened)
        if found is None:
            load_entry_points()
            found = _detect(opened)
        if found is not None:
            adapter = found.variant(opened.config).read_source(opened, carry_unknown=carry_unknown)
            adapter = carry_beside(adapter, place, carry=carry_unknown)
            adapter = replace(adapter, notes=(*place.notes, *notes, *adapter.notes))
            return adapter if scale is None else apply_scale(adapter, scale, opened.where, must_use=must_use_scale)
        refusal = find_refusal(opened.file.tensors, opened.where)
        if refusal is not None:
            raise refusal
        looks_like = describe_keys(opened.file.tensors)
        if looks_like is None:
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=opened.where)
        message = f"the keys look like {looks_like}, which this version cannot read in this form"
        raise AdapterError(message, code="foreign-dialect", where=opened.where)


def _detect(source: AdapterSource) -> Dialect | None:
    return next((dialect for dialect in DIALECTS.values() if dialect.detect(source)), None)
