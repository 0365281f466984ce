"""Code integers with probabilities that adapt: codec 3, for units sections (specification, "Adaptive integers").

A section of this codec needs no table: each bit of an integer is coded with the probability that earlier bits at the
same place of earlier integers of the same role suggest. It goes bit by bit, so it serves for the integers of a units
section, a few thousand, and not for coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nola_codec.errors import FormatError
from nola_codec.kernels import library
from nola_codec.kernels.integers import AdaptiveReader, write_integers
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

id: Final = 3
MAX_BITS: Final = 20
"""The most bits that the magnitude of an integer may have."""
_HALF: Final = 1 << 15
_MOST_SEEN: Final = 60
_LEAST_RANGE: Final = 1 << 24

_Contexts = dict[int, dict[int, list[int]]]
"""For each role, and for the bits of an integer so far: [probability of 0 in 1/65536, number of bits seen]."""


def _adapt(context: list[int], bit: int) -> None:
    share, seen = context
    context[0] = share - share // (seen + 2) if bit else share + (65536 - share) // (seen + 2)
    if seen < _MOST_SEEN:
        context[1] = seen + 1


class IntegerWriter:
    """A writer of adaptive integers."""

    def __init__(self) -> None:
        self._roles: list[int] = []
        self._values: list[int] = []

    def write(self, role: int, value: int) -> None:
        """Append an integer of a role. Raises ValueError if its magnitude has more than `MAX_BITS` bits."""
        if abs(value).bit_length() > MAX_BITS:
            raise ValueError(f"{value} does not fit into a units section")
        self._roles.append(role)
        self._values.append(value)

    def finish(self) -> bytes:
        """Return the bytes of all integers. The writer cannot be used any more."""
        lib = library()
        if lib is not None:
            return write_integers(lib, self._roles, self._values).rstrip(b"\0")
        coder = _Coder()
        for role, value in zip(self._roles, self._values, strict=True):
            coder.write(role, value)
        return coder.finish()


class _Coder:
    """What `IntegerWriter` does without the compiled kernel."""

    def __init__(self) -> None:
        self._contexts: _Contexts = {}
        self._low, self._range = 0, (1 << 32) - 1
        self._out = bytearray()

    def write(self, role: int, value: int) -> None:
        """Code an integer of a role."""
        magnitude = abs(value)
        length = magnitude.bit_length()
        bits = [1] * length + [0]
        if length:
            bits.append(int(value < 0))
            bits += [magnitude >> place & 1 for place in range(length - 2, -1, -1)]
        contexts, path = self._contexts.setdefault(role, {}), 1
        for bit in bits:
            self._write_bit(contexts.setdefault(path, [_HALF, 0]), bit)
            path = path << 1 | bit

    def finish(self) -> bytes:
        """Return the bytes of all integers."""
        for zeros in range(32, -1, -1):  # the number in the last range that ends in the most zeros
            mask = (1 << zeros) - 1
            number = (self._low + mask) & ~mask
            if number < self._low + self._range:
                break
        self._low = number
        for _ in range(4):
            self._push()
        return bytes(self._out).rstrip(b"\0")

    def _write_bit(self, context: list[int], bit: int) -> None:
        bound = (self._range >> 16) * context[0]
        if bit:
            self._low += bound
            self._range -= bound
        else:
            self._range = bound
        _adapt(context, bit)
        while self._range < _LEAST_RANGE:
            self._push()
            self._range <<= 8

    def _push(self) -> None:
        """Move the highest byte of the lower end to the output, with its carry."""
        if self._low >> 32:
            last = len(self._out) - 1
            while self._out[last] == 255:
                self._out[last] = 0
                last -= 1
            self._out[last] += 1
        self._out.append(self._low >> 24 & 255)
        self._low = (self._low & 0xFFFFFF) << 8


class IntegerReader:
    """A reader of adaptive integers."""

    def __init__(self, data: bytes, what: str, *, is_short: bool = False) -> None:
        """Begin to read a section.

        Args:
            data: The stored bytes.
            what: The name of the section in errors.
            is_short: True if so few integers will be read that it does not pay to load the compiled kernel and NumPy.

        Raises:
            FormatError: ``symbols``: the first bytes are out of range.
        """
        self._what = what
        self._contexts: _Contexts = {}
        self._range = (1 << 32) - 1
        self._data, self._position = data, 4
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        if self._code >= self._range:
            raise FormatError(f"{what}: the first four bytes are out of range", code="symbols")
        lib = None if is_short else library()
        self._kernel = None if lib is None else AdaptiveReader(lib, data, self._code, self._range, self._position)

    def read(self, role: int) -> int:
        """Return the next integer, of a role. Raises FormatError ``symbols`` if it has too many bits."""
        if self._kernel is None:
            return self._read(role)
        value = self._kernel.read_one(role)
        if value is None:
            raise self._too_long()
        return value

    def read_many(self, roles: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the next integers, int64 (roles,), one of each role. Raises FormatError ``symbols`` as `read` does."""
        if self._kernel is None:
            return np.array([self._read(int(role)) for role in roles], np.int64)
        values = self._kernel.read(roles)
        if len(values) < len(roles):
            raise self._too_long()
        return values

    def read_list(self, roles: Sequence[int]) -> list[int]:
        """Return what `read_many` does as a list, without NumPy in a reader that is short."""
        if self._kernel is None:
            return [self._read(role) for role in roles]
        found: list[int] = self.read_many(roles).tolist()
        return found

    def read_totals(self, role: int, groups: Sequence[int]) -> list[int]:
        """Return totals: each is the latest total of its group, or 0, and the next integer.

        The integer has the role `role` + min(total, 2), with the total before it. No total follows one below 0, which
        has no role.

        Args:
            role: The role of an integer whose total is 0.
            groups: The number of the group of each total, from 0 on.

        Raises:
            FormatError: ``symbols``, as `read` does.
        """
        if self._kernel is not None:
            found, is_whole = self._kernel.read_totals(role, groups)
            if not is_whole:
                raise self._too_long()
            return found
        latest: dict[int, int] = {}
        totals: list[int] = []
        for group in groups:
            before = latest.get(group, 0)
            total = latest[group] = before + self._read(role + min(before, 2))
            totals.append(total)
            if total < 0:
                break
        return totals

    def finish(self) -> None:
        """Check that all bytes were used. Raises FormatError ``symbols`` if some are left."""
        position = self._position if self._kernel is None else self._kernel.position
        if len(self._data) > position:
            raise FormatError(f"{self._what}: {len(self._data) - position} bytes are left over", code="symbols")

    def _too_long(self) -> FormatError:
        return FormatError(f"{self._what}: an integer of more than {MAX_BITS} bits", code="symbols")

    def _read(self, role: int) -> int:
        contexts, path, length = self._contexts.setdefault(role, {}), 1, 0
        while self._read_bit(contexts.setdefault(path, [_HALF, 0])):
            path, length = path << 1 | 1, length + 1
            if length > MAX_BITS:
                raise self._too_long()
        if length == 0:
            return 0
        path <<= 1
        negative = self._read_bit(contexts.setdefault(path, [_HALF, 0]))
        path, magnitude = path << 1 | negative, 1
        for _ in range(length - 1):
            bit = self._read_bit(contexts.setdefault(path, [_HALF, 0]))
            path, magnitude = path << 1 | bit, magnitude << 1 | bit
        return -magnitude if negative else magnitude

    def _read_bit(self, context: list[int]) -> int:
        bound = (self._range >> 16) * context[0]
        bit = int(self._code >= bound)
        if bit:
            self._code -= bound
            self._range -= bound
        else:
            self._range = bound
        _adapt(context, bit)
        while self._range < _LEAST_RANGE:
            byte = self._data[self._position] if self._position < len(self._data) else 0
            self._code, self._range = self._code << 8 | byte, self._range << 8
            self._position += 1
        return bit
