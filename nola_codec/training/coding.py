"""`Coding`: one description, for all fronts and layers, of how tensors are trained as coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, TypedDict

from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.errors import EncodeError, mismatch
from nola_codec.training.quantizer import TRAINED_BITS

if TYPE_CHECKING:
    from nola_codec.training.group import TensorGroup

Form = Literal["nola", "pranc"]
FORMS: tuple[Form, ...] = ("nola", "pranc")


@dataclass(frozen=True, kw_only=True)
class Coding:
    """A way to train tensors as coefficients over a pseudo-random basis.

    A coded vector of n numbers is a combination of k basis vectors, and only its coefficients c are trained:

        vector (n,) = gain * c (k,) @ G (k, n)

    In the form ``nola`` a weight W (rows, columns) is a product of two matrices that are coded so, each with
    coefficients of its own (NOLA, arXiv 2310.02556, eq. 2); in the form ``pranc`` it is one coded vector:

        nola:   W = lora_B (rows, r) @ lora_A (r, columns)
        pranc:  W = vector (rows * columns,), reshaped

    Each front of this package takes a `Coding`, or its fields as keywords, or both. A keyword replaces the field.

        >>> Coding(num_basis=128, bits=4).basis
        'hadamard'

    Attributes:
        num_basis: k, the number of coefficients of each factor, or of each vector. A tensor with fewer numbers than k
            has as many coefficients as numbers. `parametrize` also takes a mapping from the end of a module's path to
            a number. None means 128 for the factors of an adapter, and 64 for all other tensors.
        bits: The bits of a coefficient, 1 to 8. Coefficients are then rounded in every forward pass
            (quantization-aware training). None trains without rounding, and stores 16 bits.
        form: ``nola`` or ``pranc``. The factors of an adapter always have the form ``nola``; its diagonals (VeRA,
            RandLoRA) are always one vector each.
        rank: r of the form ``nola``; None means 4. If a side of the matrix is smaller, it is the rank, except in
            `parametrize_weights`. `parametrize` takes no rank, since an adapter has its own.
        basis: ``hadamard`` (n log n operations whatever k is), ``rademacher`` or ``uniform`` (the dense bases of the
            paper, n k operations).
        shared_basis: True if tensors of equal shapes share one basis (the shared basis of the paper).
        keep_basis: True if a dense basis stays in memory, at 4 bytes an entry. False makes it again in every pass.
        seed: The seed of the basis, 0 to 2^64 - 1.

    Raises:
        EncodeError: ``option``: a value is not allowed.
    """

    num_basis: int | Mapping[str, int] | None = None
    bits: int | None = None
    form: Form = "nola"
    rank: int | None = None
    basis: str = "hadamard"
    shared_basis: bool = False
    keep_basis: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choices = (
            ("form", self.form, FORMS),
            ("basis", self.basis, BASIS_NAMES),
        )
        for option, value, known in choices:
            if value not in known:
                raise EncodeError(mismatch(option, ", ".join(known), repr(value)), code="option")
        if isinstance(self.num_basis, Mapping):
            object.__setattr__(self, "num_basis", dict(self.num_basis))  # the caller may change its own mapping
        for option, number in (*self._num_basis_by_option().items(), ("rank", self.rank)):
            if number is not None and not (_is_integer(number) and number >= 1):
                raise EncodeError(mismatch(option, "a positive integer", repr(number)), code="option")
        if self.bits is not None and not (_is_integer(self.bits) and self.bits in TRAINED_BITS):
            raise EncodeError(mismatch("bits", "1 to 8, or None", repr(self.bits)), code="option")
        if not (_is_integer(self.seed) and 0 <= self.seed < 1 << 64):
            raise EncodeError(mismatch("seed", "0 to 2^64 - 1", repr(self.seed)), code="option")

    def num_basis_for_all(self, default: int) -> int:
        """Return the number of coefficients that holds for all tensors; `default` if the coding does not give one.

        Raises:
            EncodeError: ``option``: the coding has a mapping, which only `parametrize` can use.
        """
        if isinstance(self.num_basis, Mapping):
            message = "one number (a mapping is for the modules of a PEFT model, in parametrize)"
            raise EncodeError(mismatch("num_basis", message, self.num_basis), code="option")
        return default if self.num_basis is None else self.num_basis

    def _num_basis_by_option(self) -> dict[str, int | None]:
        if isinstance(self.num_basis, Mapping):
            return {f"num_basis of {end}": number for end, number in self.num_basis.items()}
        return {"num_basis": self.num_basis}


class CodingOptions(TypedDict, total=False):
    """The fields of `Coding` as keywords of a function."""

    num_basis: int | Mapping[str, int] | None
    bits: int | None
    form: Form
    rank: int | None
    basis: str
    shared_basis: bool
    keep_basis: bool
    seed: int


class TensorOptions(CodingOptions, total=False):
    """Options of a single tensor or layer. `Coding` describes all of them but these two:

    coding: The whole coding. Other keywords replace single fields of it.
    group: The tensors with which this one goes into a file; its coding is the default. None makes a new group.
    """

    coding: Coding | None
    group: TensorGroup | None


def resolve_coding(coding: Coding | None, options: Mapping[str, object]) -> Coding:
    """Return the coding that a caller asked for.

    Args:
        coding: The coding to start from; None is `Coding()`.
        options: The fields to replace, by name.

    Raises:
        EncodeError: ``option``: `coding` is not a `Coding`, an option is unknown, or `Coding` refuses a value.
    """
    if coding is not None and not isinstance(coding, Coding):
        raise EncodeError(
            mismatch("coding", "a Coding, or keywords such as num_basis=128", repr(coding)), code="option"
        )
    known = [field.name for field in fields(Coding)]
    for option in options:
        if option not in known:
            raise EncodeError(mismatch("option", f"one of {', '.join(known)}", repr(option)), code="option")
    return replace(coding or Coding(), **options)  # type: ignore[arg-type]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
