"""PEFT's dialects for LoHa and LoKr: the parts of LyCORIS under PEFT's keys, and the scaling of `adapter_config.json`.

    base_model.model.<path>.hada_w1_a, .hada_w1_b, .hada_w2_a, .hada_w2_b[, .hada_t1, .hada_t2]
    base_model.model.<path>.lokr_w1, or _a and _b; .lokr_w2, or _a and _b[, .lokr_t2]

The scaling is always alpha / r, also where no part has a rank, in which LyCORIS would take 1. A delta is reshaped to
the weight, so that a convolution may have parts with a flattened kernel (peft 0.21, `tuners/loha/layer.py` and
`tuners/lokr/layer.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.adapters.adapter_delta import CombinedDelta, Values
from nola_codec.adapters.base_model import BaseModel
from nola_codec.adapters.dialects.key_hints import describe_keys
from nola_codec.adapters.dialects.lycoris import LycorisDelta, composite_parts, require_reasonable
from nola_codec.adapters.dialects.lycoris_keys import PART, PRODUCTS
from nola_codec.adapters.dialects.lycoris_parts import PRODUCT_KEYS, find_parts, with_gains
from nola_codec.adapters.dialects.pairs import join_tensors, pair_tensors, read_carried, read_pair, read_vector
from nola_codec.adapters.dialects.peft_base import PeftDialect, module_path
from nola_codec.adapters.dialects.peft_config import PREFIX, is_saved_embedding, is_saved_module, parse_ranks
from nola_codec.adapters.ranks import with_rank
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.array_types import Float64Array
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import from_float32


@dataclass(frozen=True)
class PeftLycorisDelta(LycorisDelta):
    """A delta of LyCORIS as PEFT makes it; the difference is a one-dimensional convolution of LoKr."""

    def combine(self, values: Values) -> Float64Array:
        """Return the delta, (out, in[, kernel]) float64; arguments and errors as in `LycorisDelta`."""
        second = values.get(f"{self.name}.lokr_w2")
        if second is None or second.ndim != 3:
            return super().combine(values)
        # `torch.kron` aligns the last dimensions, and PEFT reshapes its result (c, a d, b k) to that of the weight.
        first = np.asarray(values[f"{self.name}.lokr_w1"], np.float64)
        product = np.asarray(np.kron(first[None], np.asarray(second, np.float64)) * self.scale, np.float64)
        return product.reshape(self.shape({name: value.shape for name, value in values.items()}))


class PeftLycoris(PeftDialect):
    """PEFT's dialect for LoHa or LoKr.

    Attributes:
        start: The start of the names of the method's parts.
    """

    def __init__(self, title: str, config_class: str, start: str) -> None:
        """Make the dialect of a method."""
        self.title = title
        self.config_class = config_class
        self.start = start

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read all of an open source; arguments as in `Dialect`.

        Raises:
            AdapterError: ``empty-adapter``, ``foreign-dialect``, ``missing-partner``, ``mixed-layout``, ``limit``,
                ``unknown-key``, ``bad-config``, and those of `read_pair`.
        """
        store, where, config = source.file, source.where, dict(source.config or {})
        self.check_config(config, f"{where}: {CONFIG_NAME}")
        found = find_parts(store.tensors, where)
        tensors = [key for key in (*found.tucker, *found.others) if self._is_part(key)]
        if not any(self._is_part(part) for part in (*found.products, *tensors)):
            looks_like = describe_keys(store.tensors)
            if looks_like is None:
                raise AdapterError(f"no factors of {self.title} in it", code="empty-adapter", where=where)
            message = f"{CONFIG_NAME} says {self.title}, and the keys look like {looks_like}"
            raise AdapterError(message, code="foreign-dialect", where=where)
        raw = {}
        for key in sorted({*found.tucker, *found.others} - set(tensors)):
            if not carry_unknown and not (is_saved_embedding(key) or is_saved_module(key, config)):
                message = f"unknown key: it does not belong to {self.title}, and is not in {CONFIG_NAME}"
                raise AdapterError(message, code="unknown-key", where=f"{store.name}: {key}")
            raw[key] = read_carried(store, key)
        modules = tuple(read_pair(store, part, PRODUCT_KEYS.of(part)) for part in found.products)
        vectors = tuple(read_vector(store, key) for key in sorted(tensors))
        adapter = Adapter(self.name, modules, raw, config, dict(store.metadata), vectors)
        return with_gains(adapter, self.combined_deltas(adapter))

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """Return all tensors by their keys; arguments as in `Dialect`.

        Raises:
            AdapterError: ``zero-rank``, ``overflow``, ``duplicate-key``.
        """
        # PEFT takes the ranks from the configuration, which is carried unchanged.
        full = [with_rank(m, max(m.rank, m.a_shape[0])) for m in adapter.modules]
        pairs = [pair_tensors(m, PRODUCT_KEYS.of(m.name), dtype) for m in full]
        vectors = {v.name: from_float32(v.values, dtype or v.dtype, where=v.name) for v in adapter.vectors}
        return join_tensors(adapter.raw, *pairs, vectors)

    def check_config(self, config: Mapping[str, Any], where: str) -> None:
        """Raise what `parse_ranks` raises."""
        parse_ranks(config, "alpha", where)

    def require_writable(self, adapter: Adapter, path: Path, *, lone: bool) -> Adapter:
        """Return the adapter unchanged. Raises AdapterError ``needs-directory`` for a lone file."""
        if lone:
            message = "PEFT needs the configuration, and a lone file has no place for it; write a directory"
            raise AdapterError(message, code="needs-directory", where=str(path))
        return adapter

    def combined_deltas(self, adapter: Adapter) -> tuple[CombinedDelta, ...]:
        """Return all deltas.

        Raises:
            AdapterError: ``limit``; ``missing-partner``, ``mixed-layout``; ``bad-config``.
        """
        settings = parse_ranks(adapter.config or {}, "alpha", CONFIG_NAME)
        shapes: dict[str, tuple[int, ...]] = {v.name: v.values.shape for v in adapter.vectors}
        shapes |= {m.name: m.vector_lengths for m in adapter.modules if m.name.endswith(PRODUCTS)}
        made = []
        for stem, parts in sorted(composite_parts(shapes).items()):
            # Two parts of one megabyte each can make a delta of a terabyte.
            require_reasonable(stem, {part: shapes[part] for part in parts})
            made.append(PeftLycorisDelta(stem, tuple(parts), settings.scaling_of(stem.removeprefix(PREFIX))))
        return tuple(made)

    def find_paths(self, names: Sequence[str], base: BaseModel) -> list[str]:
        """Return the names without PEFT's own parts."""
        return [module_path(name) for name in names]

    def _is_part(self, name: str) -> bool:
        match = PART.fullmatch(name)
        return match is not None and match["part"].startswith(self.start)


LOHA = PeftLycoris("LoHa", "LoHaConfig", "hada_")
LOKR = PeftLycoris("LoKr", "LoKrConfig", "lokr_")
