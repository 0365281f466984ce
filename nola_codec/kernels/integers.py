"""A reader and a writer of adaptive integers (c/integers.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nola_codec.kernels.arguments import require
from nola_codec.kernels.loading import Library
from nola_codec.lazy import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_ROLES, _MAX_BITS = 272, 20
_AT_ONCE = 512
"""Integers of one call: it must have room for what they may add to the memory of probabilities."""


class AdaptiveReader:
    """Reads integers with probabilities that adapt.

    Attributes:
        position: The number of bytes that were used.
    """

    def __init__(self, lib: Library, data: bytes, code: int, span: int, position: int) -> None:
        """Begin after `position` bytes, at the number `code` of a range of `span`, as `entropy.adaptive` does."""
        self._lib = lib
        self._data = np.frombuffer(data, np.uint8)
        self._state = np.array([code, span, position, _ROLES], np.int64)
        self._nodes = np.zeros((_ROLES, 4), np.int32)  # next bit 0, next bit 1, probability of 0 in 1/65536, bits seen
        self._nodes[:, 2] = 1 << 15
        self._one = np.zeros(2, np.int64)  # a role, and the integer that was read
        self._find_addresses()

    @property
    def position(self) -> int:
        return int(self._state[2])

    def read(self, roles: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Read an integer of each role, 0 to 271. There are fewer than asked for if the next one has too many bits."""
        asked = np.array(roles, np.int64)
        if asked.size and not 0 <= int(asked.min()) <= int(asked.max()) < _ROLES:
            raise ValueError(f"roles go to {_ROLES - 1}, found {int(asked.min())} to {int(asked.max())}")
        values = np.empty(len(asked), np.int64)
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            self._make_room(len(part) * (2 * _MAX_BITS + 2))
            done = self._lib.call("nola_read_integers", self._data, self._data.size, self._state, self._nodes, part,
                                  len(part), values[start:])  # fmt: skip
            if done < len(part):
                return values[: start + done]
        return values

    def read_totals(self, role: int, groups: Sequence[int]) -> tuple[list[int], bool]:
        """Return totals as `entropy.adaptive` says, and False if the integer after them has too many bits."""
        require(0 <= role <= _ROLES - 3, f"roles go to {_ROLES - 1}; {role}")
        asked = np.array(groups, np.int64)
        require(not asked.size or int(asked.min()) >= 0, "numbers of groups")
        latest = np.zeros(int(asked.max(initial=-1)) + 1, np.int64)
        totals = np.empty(len(asked), np.int64)
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            self._make_room(len(part) * (2 * _MAX_BITS + 2))
            done = self._lib.call("nola_read_totals", self._data, self._data.size, self._state, self._nodes, role, part,
                                  len(part), latest, totals[start:])  # fmt: skip
            is_below = done > 0 and int(totals[start + done - 1]) < 0
            if done < len(part) or is_below:
                return totals[: start + done].tolist(), is_below
        return totals.tolist(), True

    def read_one(self, role: int) -> int | None:
        """Read an integer of a role, 0 to 271; None if it has too many bits."""
        require(0 <= role < _ROLES, f"roles go to {_ROLES - 1}; {role}")
        self._make_room(2 * _MAX_BITS + 2)
        self._one[0] = role
        data, state, nodes, one = self._addresses
        done = self._lib.call("nola_read_integers", data, self._data.size, state, nodes, one, 1, one + 8)
        return int(self._one[1]) if done else None

    def _find_addresses(self) -> None:
        """Keep the addresses of the arrays, which NumPy takes longer to find than a kernel to read an integer."""
        arrays = self._data, self._state, self._nodes, self._one
        self._addresses = tuple(int(array.ctypes.data) for array in arrays)

    def _make_room(self, count: int) -> None:
        used = int(self._state[3])
        if len(self._nodes) < used + count:
            grown = np.zeros((2 * used + count, 4), np.int32)
            grown[:used] = self._nodes[:used]
            self._nodes = grown
            self._find_addresses()


def write_integers(lib: Library, roles: Sequence[int], values: Sequence[int]) -> bytes:
    """Return the bytes of a section of integers, with the zeros at its end, as `entropy.adaptive` codes them.

    Args:
        lib: The library.
        roles: The role of each integer, 0 to 271.
        values: The integers, each of at most 20 bits and a sign.

    Raises:
        ValueError: A role or an integer is out of range.
    """
    asked, given = np.array(roles, np.int64), np.array(values, np.int64)
    require(asked.shape == given.shape and bool(((asked >= 0) & (asked < _ROLES)).all()), "a role of each integer")
    require(bool((np.abs(given) < 1 << _MAX_BITS).all()), "integers of 20 bits")
    room = len(given) * (2 * _MAX_BITS + 2)
    nodes = np.zeros((_ROLES + room, 4), np.int32)
    nodes[:, 2] = 1 << 15
    out = np.empty(2 * room + 8, np.uint8)
    size = lib.call("nola_write_integers", asked, given, len(given), nodes, out)
    return out[:size].tobytes()
