"""Keep the scalar ``<module>.alpha`` tensors of kohya and similar dialects in a few bytes.

A section for each of several hundred scalars would be a large part of a small file, and nearly always all alphas are
equal. So an adapter's `config` holds them: one value, dtype and shape for all, and the exceptions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from nola_codec.adapters.ranks import raise_rank
from nola_codec.errors import AdapterError, mismatch
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import SCALAR_DTYPES, from_scalar, to_scalar
from nola_codec.stores.tensor_store import TensorStore

SUFFIX = ".alpha"


def read_alphas(
    store: TensorStore, keys: Iterable[str], unused: Container[str] = ()
) -> dict[str, tuple[RawTensor, float]]:
    """Read alphas. Return the tensor and the value of each, by the name of the module.

    Args:
        store: The file that holds them.
        keys: The keys of the alphas.
        unused: The names of modules whose alpha has no effect. It may be infinite: float16 has no 10^10, which some
            tools write there.

    Raises:
        AdapterError: ``bad-alpha``: an alpha is not a single finite number.
    """
    alphas = {}
    for key in keys:
        where = f"{store.name}: {key}"
        info = store.tensors[key]
        if math.prod(info.shape) != 1 or len(info.shape) > 4 or info.dtype not in SCALAR_DTYPES:
            raise AdapterError(
                mismatch("alpha", "one number", f"{info.dtype} {list(info.shape)}"), code="bad-alpha", where=where
            )
        tensor = store.read(key)
        value = to_scalar(tensor, where=where)
        if not math.isfinite(value) and key.removesuffix(SUFFIX) not in unused:
            raise AdapterError(mismatch("alpha", "a finite number", value), code="bad-alpha", where=where)
        alphas[key.removesuffix(SUFFIX)] = tensor, value
    return alphas


def pack_alphas(
    alphas: Mapping[str, tuple[RawTensor, float]], modules: Iterable[str]
) -> tuple[dict[str, Any] | None, dict[str, RawTensor]]:
    """Return the entry for the alphas in an adapter's `config`, and the alphas that are carried as tensors instead.

    Args:
        alphas: The result of `read_alphas`.
        modules: The names of all modules, with or without an alpha.

    Returns:
        The entry (None if there are no alphas), and the tensors by key whose dtype or shape differs from most, or
        which are infinite.
    """
    finite = {name: alpha for name, alpha in alphas.items() if math.isfinite(alpha[1])}
    if not finite:
        return None, {name + SUFFIX: tensor for name, (tensor, _) in alphas.items()}
    kinds = Counter((tensor.dtype, tensor.shape) for tensor, _ in finite.values())
    dtype, shape = kinds.most_common(1)[0][0]
    packed = {name: value for name, (tensor, value) in finite.items() if (tensor.dtype, tensor.shape) == (dtype, shape)}
    carried = {name + SUFFIX: tensor for name, (tensor, _) in alphas.items() if name not in packed}
    return _pack(packed, {*modules, *packed}, dtype, list(shape)), carried


def with_alphas(adapter: Adapter, *, stem_of: Callable[[str], str] = str) -> Adapter:
    """Return an adapter without alphas with one for each module, alpha = scaling * r, in `config`.

    Args:
        adapter: The adapter.
        stem_of: Returns the name M for which the alpha of a module is called ``M.alpha``.
    """
    scalings = {stem_of(m.name): m.scaling for m in adapter.modules}
    entry = alphas_of(scalings, {stem_of(m.name): m.rank for m in adapter.modules})
    return replace(adapter, config={**(adapter.config or {}), "alpha": entry})


def alphas_of(scalings: Mapping[str, float], ranks: Mapping[str, int], without: Iterable[str] = ()) -> dict[str, Any]:
    """Return the entry in `config` for alphas with alpha / r = scaling: float32 if that is exact, else float64.

    Args:
        scalings: The scalings by the name of the module.
        ranks: The ranks by the name of the module.
        without: The names of modules that have no alpha.
    """
    alphas = {name: scaling * ranks[name] for name, scaling in scalings.items()}
    exact = all(_rounded(alpha, "F32") / ranks[name] == scalings[name] for name, alpha in alphas.items())
    dtype = "F32" if exact else "F64"
    rounded = {name: _rounded(alpha, dtype) for name, alpha in alphas.items()}
    return _pack(rounded, {*rounded, *without}, dtype, [])


class Alphas:
    """The alphas of an adapter: those in its `config`, and those that are carried tensors."""

    def __init__(self, adapter: Adapter) -> None:
        """Check the entry in `config`. Raises AdapterError ``bad-config``."""
        self._raw = adapter.raw
        self._config = _alpha_entry(adapter)
        self._without = frozenset() if self._config is None else frozenset(self._config.get("without", ()))

    def of(self, module: str) -> float | None:
        """Return the alpha of a module; None if it has none."""
        carried = self._raw.get(module + SUFFIX)
        if carried is not None:
            return to_scalar(carried, where=module + SUFFIX)
        if self._config is None or module in self._without:
            return None
        return float(self._config.get("others", {}).get(module, self._config["value"]))

    def tensors(self, modules: Iterable[str]) -> dict[str, RawTensor]:
        """Make the ``.alpha`` tensors of modules from `config`, by key; those that are carried are left out."""
        if self._config is None:
            return {}
        tensors = {}
        for module in modules:
            value = self.of(module)
            if value is not None and module + SUFFIX not in self._raw:
                key, shape = module + SUFFIX, tuple(self._config["shape"])
                tensors[key] = from_scalar(value, self._config["dtype"], shape, where=key)
        return tensors


def fit_alphas(
    adapter: Adapter,
    modules: Sequence[LoraModule],
    stems: Iterable[str] = (),
    *,
    stem_of: Callable[[str], str] = str,
    factor: Callable[[str], float] = lambda module: 1.0,
) -> Adapter:
    """Return an adapter with other modules, and with the alphas that give their scalings at their ranks.

    If the modules of the adapter have no alphas and every scaling is 1, the result has none either. Zero components are
    added to a module at whose rank no alpha is exact.

    Args:
        adapter: The adapter whose `config` holds the alphas now.
        modules: The new modules.
        stems: The names of all other parts of the adapter that may have an alpha; these alphas stay.
        stem_of: Returns the name M for which the alpha of a module is called ``M.alpha``.
        factor: Returns the number that the dialect multiplies alpha / r by.

    Raises:
        AdapterError: ``not-expressible``, ``bad-config``.
    """
    old = Alphas(adapter)
    modules = sorted(modules, key=lambda module: module.name)
    own = {name for module in modules for name in (module.name, stem_of(module.name))}
    others = [stem for stem in stems if stem not in own and stem + SUFFIX not in adapter.raw]
    kept = {stem: value for stem in others if (value := old.of(stem)) is not None}
    raw = {key: t for key, t in adapter.raw.items() if not (key.endswith(SUFFIX) and key.removesuffix(SUFFIX) in own)}
    had = {m.name for m in modules if old.of(m.name) is not None or old.of(stem_of(m.name)) is not None}
    stated = [m for m in modules if m.name in had or m.scaling != factor(m.name)]
    if not stated and not kept:
        rest = {key: value for key, value in (adapter.config or {}).items() if key != "alpha"}
        return replace(adapter, modules=tuple(modules), raw=raw, config=rest or None)
    entry = _alpha_entry(adapter) or {"dtype": "F32", "shape": []}

    def alpha(module: LoraModule, dtype: str, rank: int) -> float:
        return _rounded(module.scaling / factor(module.name) * rank, dtype)

    def fits(module: LoraModule, dtype: str, rank: int) -> bool:
        return alpha(module, dtype, rank) / rank * factor(module.name) == module.scaling

    dtype: str = entry["dtype"] if all(fits(m, entry["dtype"], m.rank) for m in stated) else "F32"
    fitted = {m.name: raise_rank(m, partial(fits, m, dtype), adapter.dialect) for m in stated}
    values = kept | {stem_of(m.name): alpha(m, dtype, m.rank) for m in fitted.values()}
    names = {stem_of(m.name) for m in modules} | set(stems)
    config = {**(adapter.config or {}), "alpha": _pack(values, names, dtype, list(entry["shape"]))}
    return replace(adapter, modules=tuple(fitted.get(m.name, m) for m in modules), raw=raw, config=config)


def _pack(values: Mapping[str, float], stems: Iterable[str], dtype: str, shape: list[int]) -> dict[str, Any]:
    """Return the entry in `config` for some alphas; the stems that have none are listed."""
    common = Counter(values.values()).most_common(1)[0][0]
    config: dict[str, Any] = {"dtype": dtype, "shape": shape, "value": common}
    others = {name: value for name, value in sorted(values.items()) if value != common}
    without = sorted(set(stems) - set(values))
    return config | ({"others": others} if others else {}) | ({"without": without} if without else {})


def _rounded(value: float, dtype: str) -> float:
    """Return a value as a dtype holds it; infinity if the dtype does not have it."""
    try:
        return to_scalar(from_scalar(value, dtype, ()))
    except AdapterError:
        return math.inf


def _alpha_entry(adapter: Adapter) -> Mapping[str, Any] | None:
    """Return the entry for the alphas in `config`, after a check, since a stranger's `.nola` file may hold anything."""
    found = None if adapter.config is None else adapter.config.get("alpha")
    if found is None:
        return None
    good = (
        isinstance(found, Mapping)
        and found.get("dtype") in SCALAR_DTYPES
        and isinstance(found.get("shape"), list)
        and len(found["shape"]) <= 4
        and all(type(n) is int and n == 1 for n in found["shape"])
        and _is_number(found.get("value"))
        and isinstance(found.get("others", {}), Mapping)
        and all(_is_number(value) for value in found.get("others", {}).values())
        and isinstance(found.get("without", []), list)
        and all(isinstance(name, str) for name in found.get("without", []))
    )
    if not good:
        raise AdapterError("these are not the alphas of an adapter", code="bad-config", where="config: alpha")
    return found  # type: ignore[no-any-return]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
