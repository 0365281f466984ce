"""The fingerprint of a base model: a hash over what its tensors are called, their shapes, and a few of their bytes.

It tells one model from another, in the time that it takes to read the headers of the weights and half a megabyte. It
does not prove that two models are equal (`spec/conventions.md`, "Base models").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Protocol

_SAMPLES = 8
"""The number of tensors of which bytes are hashed."""
_BYTES = 1 << 16
"""The bytes of each that are hashed, from its beginning; all of a shorter one."""


class TensorShape(Protocol):
    """The dtype and the shape of a stored tensor."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def fingerprint(tensors: Mapping[str, TensorShape], read_start: Callable[[str, int], bytes]) -> bytes:
    """Return the fingerprint of a model, 32 bytes.

    Args:
        tensors: All tensors of the model, by the names that they are stored under.
        read_start: A function that returns at most so many bytes of a tensor, from its beginning.
    """
    names = sorted(tensors, key=str.encode)
    digest = hashlib.sha256()
    for name in names:
        shape = ",".join(map(str, tensors[name].shape))
        digest.update(f"{name}\0{tensors[name].dtype}\0{shape}\n".encode())
    for number in range(_SAMPLES if names else 0):
        digest.update(read_start(names[number * len(names) // _SAMPLES], _BYTES))
    return digest.digest()
