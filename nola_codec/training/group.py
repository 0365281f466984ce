"""The group of coded tensors that one file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.basis import BasisKey
from nola_codec.errors import EncodeError, mismatch
from nola_codec.prng import PHILOX
from nola_codec.training.coded import CodedSide, CodedTensor, RecordDescription
from nola_codec.training.coding import Coding, CodingOptions, TensorOptions, resolve_coding
from nola_codec.training.synthesis import Synthesis
from nola_codec.training.trained_files import decode_group

if TYPE_CHECKING:
    from typing_extensions import Unpack

_COMMON = ("basis", "seed", "bits")
"""The fields of a coding that are the same for all tensors of a file."""


class TensorGroup:
    """Coded tensors that go into one file, and so share its basis, its seed and its bits.

        >>> group = TensorGroup(num_basis=16, seed=7)
        >>> layers = NolaLinear(784, 256, group=group), NolaLinear(256, 10, group=group)  # doctest: +SKIP

    Tensors are numbered in the order in which they were made, and each number has a basis of its own.

    Attributes:
        coding: The coding of a tensor that is not given another one.
        records: The records of the file without their coefficients, by name.
        sides: The sides of the records, in the order in which they were made.
    """

    def __init__(self, coding: Coding | None = None, **options: Unpack[CodingOptions]) -> None:
        """Make an empty group.

        Args:
            coding: The coding of its tensors.
            options: Fields of `Coding`, in place of those of `coding`.

        Raises:
            EncodeError: ``option``.
        """
        self.coding = resolve_coding(coding, options)
        self.records: dict[str, RecordDescription] = {}
        self.sides: list[CodedSide] = []
        self._decoded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._watched: list[torch.Tensor] = []
        self._versions: list[int] = []

    @property
    def basis(self) -> int:
        """The id of the basis in a file."""
        return BASIS_NAMES[self.coding.basis]

    @property
    def seed(self) -> int:
        """The seed of the basis."""
        return self.coding.seed

    @property
    def bits(self) -> int | None:
        """The bits of a coefficient; None if coefficients are not rounded in training."""
        return self.coding.bits

    def make_synthesis(
        self, stream: int, index: int | None, length: int, num_basis: int, *, kept: bool = False
    ) -> Synthesis:
        """Make the basis of one side of the record with this stream.

        Args:
            stream: The generator stream of the record.
            index: 0 for lora_B, 1 for lora_A; None for a vector.
            length: The number of elements of the side.
            num_basis: The number of coefficients; it is cut to `length`, since more would not add anything.
            kept: True if a dense basis stays in memory.
        """
        key = BasisKey(PHILOX, self.seed, 2 * stream + (index or 0))
        grain = 2 if index is None else 1  # scales of vectors are in sixteenths of an octave
        return Synthesis(self.basis, key, length, min(num_basis, length), grain=grain, kept=kept)

    def choose_stream(self, shapes: tuple[tuple[int, ...], ...], *, shared: bool) -> int:
        """Return the generator stream of a new record: a new one, or if shared that of a record of equal shapes."""
        alike = [record.stream for record in self.records.values() if record.shapes == shapes] if shared else []
        return alike[0] if alike else 1 + max((record.stream for record in self.records.values()), default=-1)

    def add(self, name: str | None, record: RecordDescription, sides: Sequence[CodedSide]) -> None:
        """Add a record.

        Args:
            name: The name of the record. None gives it a name until its path in a network is known.
            record: The record without its coefficients.
            sides: The sides of the record, which get its name; empty if the record is not trained.
        """
        if name is None:
            number = len(self.records)
            while f"unnamed.{number}" in self.records:
                number += 1
            name = f"unnamed.{number}"
        for side in sides:
            side.record = name
        self.records[name] = record
        self.sides.extend(sides)

    def decode_tensor(self, tensor: CodedTensor) -> torch.Tensor:
        """Decode one tensor from the file that would be written now: float32 on the CPU, in its shape.

        The result is kept until coefficients change. The tensor's own coefficients are compared by value, since fused
        optimizers do not raise version counters. The coefficients of the other tensors matter too, since they may
        change an exponent that all share; they are compared by their version counters.
        """
        found, side = self._decoded.get(id(tensor)), tensor.side
        if (
            found is not None
            and side is not None
            and self._versions == [watched._version for watched in self._watched]
            and torch.equal(found[0], side.coefficients)
        ):
            return found[1]
        with torch.inference_mode(False), torch.no_grad():  # so that the kept tensor can be used under autograd too
            made = decode_group(self)
            self._watched = [side.coefficients for side in self.sides]
            self._versions = [watched._version for watched in self._watched]
            self._decoded = {
                id(side.tensor): (own.detach().clone(), decoded)
                for side, own, decoded in zip(self.sides, self._watched, made, strict=True)
            }
        return self._decoded[id(tensor)][1]

    def clear_cache(self) -> None:
        """Discard the decoded tensors, so that they are decoded again when they are needed."""
        self._decoded, self._watched = {}, []

    def set_bits(self, bits: int | None) -> None:
        """Set the bits of all coefficients, from the next forward pass on. Raises EncodeError ``option``."""
        self.coding = replace(self.coding, bits=bits)
        for side in self.sides:
            side.loaded = None
        self.clear_cache()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoded": {}, "_watched": []}


def resolve_group(options: TensorOptions) -> tuple[TensorGroup, Coding]:
    """Return the group that a new tensor joins, and the coding of the tensor.

    Args:
        options: The caller's keywords for the tensor: ``group``, ``coding``, and fields of `Coding`.

    Raises:
        EncodeError: ``option``: `Coding` refuses a value, or a value that must be the same in a whole file differs
            from the group's.
    """
    group, given = options.get("group"), options.get("coding")
    others = {name: value for name, value in options.items() if name not in ("group", "coding")}
    if group is None:
        coding = resolve_coding(given, others)
        return TensorGroup(coding), coding
    if not isinstance(group, TensorGroup):
        raise EncodeError(mismatch("group", "a TensorGroup", repr(group)), code="option")
    coding = resolve_coding(group.coding if given is None else given, others)
    for name in _COMMON:
        wanted, found = getattr(group.coding, name), getattr(coding, name)
        if wanted != found:
            raise EncodeError(mismatch(name, f"{wanted!r}, as in the rest of the group", repr(found)), code="option")
    return group, coding
