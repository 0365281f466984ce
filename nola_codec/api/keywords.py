"""The keyword options of `encode`, `encode_delta` and `sweep`: their types, what they mean, and a check of both.

A type checker knows every name and type from here (`**options: Unpack[EncodeKeywords]`), and `check_keywords` refuses
the same mistakes at run time. Defaults and ranges are those of `nola_codec.encoder.options.EncodeOptions`.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from nola_codec.decoder.carried_forms import CarriedForm
from nola_codec.errors import EncodeError

if TYPE_CHECKING:
    from nola_codec.encoder.tuning import Tuner
    from nola_codec.progress import Progress

ObjectiveName = Literal["effective", "nmse"]
Fit = Literal["weights", "task"]
BasisName = Literal["hadamard", "rademacher", "uniform"]


class CodingKeywords(TypedDict, total=False):
    """Options of everything that encodes.

    Attributes:
        importance: Numbers by name or pattern of a weight; each multiplies the weight of its components.
        seed: Seed of the basis, 0 to 2^64 - 1.
        entropy: Names of the entropy codecs that the encoder may choose from: raw, rans.
        thorough: Search for the smallest file over 1 MB too: some 5% smaller, and many times slower.
        progress: A function that is called as (stage, done, total).
    """

    importance: Mapping[str, float] | None
    seed: int
    entropy: Sequence[str]
    thorough: bool
    progress: Progress | None


class RateKeywords(TypedDict, total=False):
    """Options that say how large the file gets. At most one of size, nmse, ratio, error and num_basis/bits.

    Attributes:
        nmse: Share of ||delta_W||_F^2 that may be lost; the objective is then ``nmse``.
        ratio: How many times smaller than the adapter in fp16 the file is.
        error: Error in the chosen objective that the file stays under; 0.02 if no target is given.
        objective: The error that is kept small: ``effective``, the default, or ``nmse``, the only one for adapters with
            other deltas than single products (LoHa, LoKr, VeRA and others).
        progressive: Write a file whose beginnings are coarser files, each a quarter of the next.
        rungs: Sizes of the coarser files, as numbers of bytes or as ``"10KB"``; makes the file progressive.
    """

    nmse: float | None
    ratio: float | None
    error: float | None
    objective: ObjectiveName | None
    progressive: bool
    rungs: Sequence[int | str] | None


class EncodeKeywords(RateKeywords, CodingKeywords, total=False):
    """Options of `encode` and `encode_bytes`.

    Attributes:
        num_basis: Coefficients of a factor; asks for the factor form, the one of the NOLA paper.
        bits: Bits of a coefficient in the factor form, 1 to 8 or 16; 4 if only num_basis is given.
        rank: Components kept at most; in the factor form, the rank that is fitted.
        fit: The goal that the coefficients are fitted to: ``weights`` or ``task``.
        tuner: The object that trains the coefficients, for ``fit="task"`` (`nola_codec.training.TaskTuner`).
        basis: Name of the basis; ``rademacher`` and ``uniform`` serve the factor form only.
        shared_basis: One basis for all weights of one shape.
        carried: The form of heads, embeddings and other carried tensors of floats: ``exact``; ``bf16``; ``int8``, with
            a scale for each row of a matrix; or ``coded``, as vectors whose precision follows the target.
        block_size: Bytes of a block, as a number or as ``"24KiB"``: a reader of one tensor reads little more than one.
            None is 24 KiB, or 1/32 of a large file.
    """

    num_basis: int | None
    bits: int | None
    rank: int | None
    fit: Fit
    tuner: Tuner | None
    basis: BasisName
    shared_basis: bool
    carried: CarriedForm
    block_size: int | str | None


class DeltaKeywords(RateKeywords, CodingKeywords, total=False):
    """Options that `encode_delta` shares with `encode`.

    Attributes:
        block_size: Bytes of a block, as a number or as ``"24KiB"``: a reader of one tensor reads little more than one.
            None is 24 KiB, or 1/32 of a large file.
    """

    block_size: int | str | None


class SweepKeywords(CodingKeywords, total=False):
    """Options that `sweep` shares with `encode`.

    Attributes:
        rank: Components kept at most.
        shared_basis: One basis for all weights of one shape.
    """

    rank: int | None
    shared_basis: bool


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


_NUMBER = ("a number", _is_number)
_INTEGER = ("an integer", _is_integer)
_TEXT = ("text", lambda value: isinstance(value, str))
_TRUTH = ("True or False", lambda value: isinstance(value, bool))
_TABLE = ("a mapping from names", lambda value: isinstance(value, Mapping))
_LIST = ("a list", _is_list)
_FUNCTION = ("a function", callable)
_SIZE = ("a number of bytes or text such as '50KB'", lambda value: _is_number(value) or isinstance(value, str))

_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "size": _SIZE, "block_size": _SIZE,
    "scale": _NUMBER, "nmse": _NUMBER, "ratio": _NUMBER, "error": _NUMBER, "energy": _NUMBER,
    "num_basis": _INTEGER, "bits": _INTEGER, "rank": _INTEGER, "seed": _INTEGER,
    "objective": _TEXT, "fit": _TEXT, "basis": _TEXT, "carried": _TEXT,
    "shared_basis": _TRUTH, "thorough": _TRUTH, "progressive": _TRUTH,
    "importance": _TABLE, "entropy": _LIST, "rungs": _LIST, "progress": _FUNCTION,
}  # fmt: skip
_MAY_BE_NONE = (
    "size", "scale", "nmse", "ratio", "error", "energy", "num_basis", "bits", "rank", "objective", "importance",
    "rungs", "block_size", "progress",
)  # fmt: skip


def keyword_names(keywords: type) -> tuple[str, ...]:
    """Names of the options in one of the classes above, in order."""
    return tuple(keywords.__annotations__)


def check_keywords(function: str, options: Mapping[str, object], keywords: type, *more: str) -> None:
    """Refuse an unknown option, and a value of a wrong type.

    Args:
        function: Name of the function, for messages.
        options: The options given.
        keywords: The class above that lists the function's options.
        more: Names of options that the function takes besides.

    Raises:
        EncodeError: ``option``.
    """
    known = (*keyword_names(keywords), *more)
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise EncodeError(f"{function}() got an unexpected keyword argument {name!r}{hint}", code="option")
        if name not in _TYPES or (value is None and name in _MAY_BE_NONE):
            continue
        wanted, fits = _TYPES[name]
        if not fits(value):
            raise EncodeError(f"{name}: expected {wanted}, found {value!r:.80}", code="option")
