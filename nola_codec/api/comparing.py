"""`compare`: the deltas of two adapters, each a `.nola` file or anything that `encode` reads, in any dialects."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nola_codec.adapters import deltas, dialect_of
from nola_codec.adapters.adapter_delta import AdapterDelta
from nola_codec.adapters.conversion import in_one_layout, matching_names
from nola_codec.api.decoding import is_nola, read_adapter
from nola_codec.api.live_sources import AdapterInput
from nola_codec.container.limits import Limits
from nola_codec.container.reader import open_container
from nola_codec.encoder.report_rendering import LARGE_NMSE
from nola_codec.errors import AdapterError
from nola_codec.fit.components import delta_energy, squared_error
from nola_codec.model.adapter import Adapter
from nola_codec.progress import Progress
from nola_codec.references.finding import References
from nola_codec.remote import accepts_urls
from nola_codec.rendering import render_error, render_named_table

_LISTED = 10
"""The number of names that are listed of each group when a comparison is printed."""
SIGNAL_CHANGE = 0.25
"""How far from 1 the signal of a usable file may be."""


@dataclass(frozen=True)
class TensorComparison:
    """The comparison of one weight.

    Attributes:
        name: The module path, or the key of a tensor.
        shape: The shape (out, in) of delta_W, convolutions flattened; or a tensor's own shape.
        nmse: ||delta_A - delta_B||_F^2 / ||delta_A||_F^2; infinite if only delta_A is zero.
        error: ||delta_A - delta_B||_F^2.
        energy: ||delta_A||_F^2.
        inner: <delta_A, delta_B>; over the energy it is the signal of this weight.
    """

    name: str
    shape: tuple[int, ...]
    nmse: float
    error: float
    energy: float
    inner: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two adapters, A and B. `print(comparison)` shows what the command line shows.

    Attributes:
        nmse: The NMSE over all weights that both have; NaN if there is none.
        tensors: The comparison of each of these weights.
        only_in_a, only_in_b: The weights that the other adapter lacks.
        carried_equal, carried_different: The carried tensors whose bits are equal, and all others. Between dialects,
            whose keys differ, all are different.
        dialects: The dialects of A and B.
        scale_origins: The places that the scalings of A and B came from, as in `EncodeReport`.
        notes: Sentences that tell how the adapters were read.
        signal: The share of A that B holds, <A, B> / ||A||_F^2 over all deltas that both have: noise does not lower it.
            NaN if there is no such delta, or if those of A are zero.
        is_effective: True if B is a `.nola` file whose encoder kept the effective error small, and not the NMSE.
    """

    nmse: float
    tensors: tuple[TensorComparison, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    carried_equal: tuple[str, ...]
    carried_different: tuple[str, ...]
    dialects: tuple[str, str]
    scale_origins: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()
    signal: float = math.nan
    is_effective: bool = False

    @property
    def same_structure(self) -> bool:
        """True if both adapters have the same weights, and equal carried tensors."""
        return not (self.only_in_a or self.only_in_b or self.carried_different)

    def __str__(self) -> str:
        lines = ["NMSE     undefined: no weight is in both adapters"]
        if self.tensors:
            worst = max(self.tensors, key=lambda tensor: tensor.nmse)
            count = "1 delta" if len(self.tensors) == 1 else f"{len(self.tensors)} deltas"
            lines = [
                f"NMSE     {render_error(self.nmse)}  over {count}{self.explanation}",
                _fit_name(f"worst    {render_error(worst.nmse)}", worst.name),
            ]
            if not math.isnan(self.signal):
                lines.insert(1, f"signal   {self.signal:.4f}  the share of A that is in B")
        if self.carried_equal or self.carried_different:
            equal, different = len(self.carried_equal), len(self.carried_different)
            lines.append(f"carried  {equal} equal to the bit, {different} different")
        groups = (
            ("only in A", self.only_in_a), ("only in B", self.only_in_b), ("differs", self.carried_different),
        )  # fmt: skip
        for label, names in groups:
            lines += [f"{label}: {name}" for name in names[:_LISTED]]
            lines += [f"{label}: and {len(names) - _LISTED} more"] * (len(names) > _LISTED)
        return "\n".join(lines)

    @property
    def explanation(self) -> str:
        """Words behind a large NMSE that is not bad: the encoder of B kept signal and let noise in. Else empty."""
        is_file_of_a = abs(1 - self.signal) < SIGNAL_CHANGE  # another version of A may differ in more than noise
        is_noise = is_file_of_a and self.nmse > LARGE_NMSE and self.nmse > 3 * (1 - self.signal) ** 2
        return ": noise, mostly, which models hardly see" if is_noise and self.is_effective else ""

    def tensor_table(self, width: int | None = None) -> str:
        """Every delta as a line of a table, the largest error first.

        Args:
            width: Columns of the screen. If a row is wider, each name stands on a line of its own. None stands for
                any width.
        """
        rows = [["NMSE", "shape", "name"]]
        rows += [
            [render_error(tensor.nmse), "x".join(map(str, tensor.shape)), tensor.name]
            for tensor in sorted(self.tensors, key=lambda item: -item.nmse)
        ]
        return "\n".join(render_named_table(rows, width=width))


def _fit_name(figures: str, name: str, width: int = 80) -> str:
    """Return figures and the name that they belong to, in two lines if they are wider than a screen."""
    line = f"{figures}  {name}"
    return line if len(line) <= width else f"{figures}\n  {name}"


@accepts_urls("a", "b")
def compare(
    a: AdapterInput,
    b: AdapterInput,
    *,
    scale: float | None = None,
    progress: Progress | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> Comparison:
    """Compare the deltas of two adapters, scaling included. `a` is the reference.

    Args:
        a: The reference, a `.nola` file or what `encode` reads, such as a model with an adapter.
        b: The other adapter.
        scale: The scaling of each of the two that is no `.nola` file and does not say its scaling.
        progress: Called as (stage, done, total).
        references: Where the earlier versions are that files need which were encoded against one; as in `decode`.
        limits: What a `.nola` file may declare; as in `load`.

    Raises:
        AdapterError: ``option``: both adapters say their scaling; or an adapter cannot be read, a weight differs in
            shape, or the dialects have no names in common.
        FormatError, ChecksumMismatch: A `.nola` file is damaged.
    """
    pair = read_pair(a, b, scale=scale, progress=progress, references=references, limits=limits)
    return compare_pair(pair, progress=progress, is_effective=_is_effective_file(b, limits))


@dataclass(frozen=True)
class AdapterPair:
    """Two adapters in one layout, A and B, ready to be compared.

    Attributes:
        first, second: The adapters in one layout.
        read: The adapters as they were read, in layouts of their own.
    """

    first: Adapter
    second: Adapter
    read: tuple[Adapter, Adapter]

    @property
    def is_relaid(self) -> bool:
        """True if one of them was brought into the layout of the other."""
        return any(each is not own for each, own in zip((self.first, self.second), self.read, strict=True))

    def matching(self) -> Iterator[tuple[AdapterDelta, AdapterDelta]]:
        """Yield (delta of A, delta of B) of each weight that both have, in the order of A's names."""
        keys_a, keys_b = matching_names(self.first, self.second)
        others = {keys_b[delta.name]: delta for delta in deltas(self.second)}
        for delta in deltas(self.first):
            if (other := others.get(keys_a[delta.name])) is not None:
                yield delta, other


def read_pair(
    a: AdapterInput,
    b: AdapterInput,
    *,
    scale: float | None = None,
    progress: Progress | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> AdapterPair:
    """Read two adapters, and bring them into one layout. Arguments and errors are those of `compare`."""
    first, second = (
        dialect_of(each).prepare_comparison(each) for each in _read_both(a, b, scale, progress, references, limits)
    )
    first, second = _in_one_form(first, second)
    # A conversion into one layout keeps the deltas, but not what the adapters say of themselves.
    read = (first, second)
    return AdapterPair(*in_one_layout(first, second), read)


def compare_pair(pair: AdapterPair, *, progress: Progress | None = None, is_effective: bool = False) -> Comparison:
    """Compare two adapters that were read. `is_effective` is that of `Comparison`.

    Raises:
        AdapterError: A weight differs in shape, or the dialects have no names in common.
    """
    first, second, read = pair.first, pair.second, pair.read
    keys_a, keys_b = matching_names(first, second)
    tensors = []
    lost = energy = energy_b = 0.0
    for number, (delta, other) in enumerate(pair.matching()):
        if progress is not None:
            progress("comparing", number, len(keys_a))
        error, own, of_other, shape = _error(delta, other)
        lost, energy, energy_b = lost + error, energy + own, energy_b + of_other
        inner = (own + of_other - error) / 2
        tensors.append(TensorComparison(delta.name, shape, nmse_of(error, own), error, own, inner))
    carried = sorted(set(first.raw) | set(second.raw))
    equal = tuple(key for key in carried if first.raw.get(key) == second.raw.get(key))
    return Comparison(
        nmse=nmse_of(lost, energy) if tensors else float("nan"),
        tensors=tuple(tensors),
        only_in_a=_alone(first, keys_a, set(keys_b.values()), pair.is_relaid),
        only_in_b=_alone(second, keys_b, set(keys_a.values()), pair.is_relaid),
        carried_equal=equal,
        carried_different=tuple(key for key in carried if key not in equal),
        dialects=(read[0].dialect, read[1].dialect),
        scale_origins=(_origin(read[0]), _origin(read[1])),
        signal=(energy + energy_b - lost) / 2 / energy if energy else math.nan,
        is_effective=is_effective,
        notes=tuple(f"{name}: {note}" for name, each in zip("AB", read, strict=True) for note in each.notes),
    )


def _in_one_form(first: Adapter, second: Adapter) -> tuple[Adapter, Adapter]:
    """Return two adapters with the same carried tensors, if one of them was brought into the form that a rate codes."""
    found = []
    for each in (first, second):
        reduce = dialect_of(each).coding_rules(each).reduce
        found.append(each if reduce is None else reduce(each))
    one, two = found
    if (one is first) == (two is second):
        return first, second
    return replace(one, notes=first.notes), replace(two, notes=second.notes)


def _alone(adapter: Adapter, keys: Mapping[str, str], others: Collection[str], is_relaid: bool) -> tuple[str, ...]:
    """Return the names of the deltas that the other adapter lacks.

    Where an adapter was brought into another layout, parts of a joined module that are zero are left out.
    """
    zero = {delta.name for delta in deltas(adapter) if is_relaid and _is_zero(delta)}
    return tuple(sorted(name for name, key in keys.items() if key not in others and name not in zero))


def _is_effective_file(source: AdapterInput, limits: Limits | None) -> bool:
    """Return True for a `.nola` file whose encoder kept the effective error small."""
    if not isinstance(source, str | os.PathLike | bytes) or not is_nola(source):
        return False
    with open_container(source, limits) as container:
        return "effective_error" in container.header.measured


def _is_zero(delta: AdapterDelta) -> bool:
    product = delta.product
    return product is not None and not (product.lora_B.any() and product.lora_A.any() and product.scaling)


def _origin(adapter: Adapter) -> str:
    return adapter.scale_origin or dialect_of(adapter).scale_origin(adapter.config, adapter.metadata)


def _read_both(
    a: AdapterInput,
    b: AdapterInput,
    scale: float | None,
    progress: Progress | None,
    references: References,
    limits: Limits | None,
) -> tuple[Adapter, Adapter]:
    """Read two adapters; those that do not say their scaling get `scale`. Raises AdapterError ``option``."""
    first, second = (
        read_adapter(each, scale=scale, progress=progress, references=references, limits=limits) for each in (a, b)
    )
    if scale is not None and "option" not in (first.scale_origin, second.scale_origin):
        raise AdapterError("both adapters say their scaling themselves; leave out scale", code="option")
    return first, second


def _error(a: AdapterDelta, b: AdapterDelta) -> tuple[float, float, float, tuple[int, ...]]:
    """Return the squared error of b, the energies of a and of b, and the shape of both."""
    one, two = a.product, b.product
    if one is not None and two is not None:
        shape = (one.lora_B.shape[0], one.lora_A.shape[1])
        _require_shape(a, shape, (two.lora_B.shape[0], two.lora_A.shape[1]))
        energy, other = (delta_energy(each.lora_B, each.lora_A) * each.scaling**2 for each in (one, two))
        error = squared_error(one.lora_B * one.scaling, one.lora_A, two.lora_B * two.scaling, two.lora_A)
        return error, energy, other, shape
    first, second = a.dense(), b.dense()
    if first.size == second.size and first.shape[:1] == second.shape[:1]:
        second = second.reshape(first.shape)  # a kernel may be flattened
    _require_shape(a, first.shape, second.shape)
    error, energy, other = (float(np.square(each).sum()) for each in (first - second, first, second))
    return error, energy, other, first.shape


def _require_shape(delta: AdapterDelta, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    if first != second:
        message = f"delta shapes differ: {first} and {second}"
        if len(first) != len(second):
            message += "; one of them is in a form whose deltas only the base model tells: merge both and compare those"
        raise AdapterError(message, code="shape", where=delta.name)


def nmse_of(error: float, energy: float) -> float:
    """Return error / energy, the NMSE of deltas with these squared norms; infinite if only the energy is zero."""
    if energy > 0:
        return error / energy
    return 0.0 if error == 0 else float("inf")
