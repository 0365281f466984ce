"""`selftest`: checks generators, bases, scaling and a whole decode against known answers, on this machine.

Everything here is made of integers, from seeds, so the expected hashes hold for every correct build.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass

import numpy as np

from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.basis import BASES, BasisKey
from nola_codec.decoder.coefficients import Coefficients
from nola_codec.decoder.factors import synthesize_records
from nola_codec.decoder.hashing import DecodedHash
from nola_codec.errors import require_torch
from nola_codec.kernels import kernel_status, using
from nola_codec.model.records import CodedKind, CodedRecord, coded_sides
from nola_codec.prng import PHILOX, SIGNS, words

_KNOWN_WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
"""The words of philox4x32-10 at counter and key zero, as Random123 publishes them."""
_EXPECTED = {
    "philox4x32-10 words": "f26960e6386974a0519e0d88a2a4db4e960ea10967bb73b7dc73b1edc6e8253c",
    "hadamard basis": "f6685b4796a5231fced4ec0327ed43cdce02702952cfc2600abd640718f491bf",
    "rademacher basis": "50ba9d87a3d7d52e5c62bd71824618b94514488674a67419d740a7c5ae2a91c7",
    "uniform basis": "6fc9c37f26d059543b66117a40ea8533340c5ffe7810acbc825ed3e996acf1f5",
    "decoded factors": "03c7020b657dc8965461d1d72404b1649b188a8da21f63852e05f068cb800ef3",
}
_LENGTHS = (1, 3, 36, 97, 576, 1536, 4096)


@dataclass(frozen=True)
class Check:
    """One known answer: what was tried, if it holds, and both hashes."""

    name: str
    passed: bool
    expected: str
    found: str


def selftest(device: object = "cpu") -> list[Check]:
    """Run every check on a device.

    Args:
        device: "cpu" checks the compiled kernels if they are in use, NumPy without them, and PyTorch if that is
            installed; "numpy" checks NumPy alone; any other is what `torch.device` takes.

    Raises:
        MissingPackage: ``needs-torch``: the device is PyTorch's, and PyTorch is not installed.
        NolaError: ``kernels``: as `nola_codec.kernels.library` says.
    """
    if str(device) == "numpy":
        return _numpy_checks()
    if str(device) != "cpu":
        require_torch(f"the device {device!r}")
        return _checks(TorchArrays(device), "")
    lib = kernel_status().library
    checks = [] if lib is None else _checks(NUMPY, f", {lib.variant} kernels")
    checks += _numpy_checks()
    if importlib.util.find_spec("torch") is not None:
        checks += _checks(TorchArrays("cpu"), ", PyTorch")
    return checks


def kernels_in_use() -> dict[str, str | None]:
    """Return the variant of the kernels that compute on the CPU, None for NumPy, and the reason why it is NumPy."""
    status = kernel_status()
    return {"variant": status.library.variant if status.library else None, "reason": status.reason}


def _numpy_checks() -> list[Check]:
    with using("off"):
        return _checks(NUMPY, ", NumPy")


def _checks(xp: Arrays, suffix: str) -> list[Check]:
    found = {"philox4x32-10 words": _words(xp)}
    found |= {f"{basis.name} basis": _basis(number, xp) for number, basis in BASES.items()}
    found["decoded factors"] = _factors(xp)
    return [Check(name + suffix, found[name] == wanted, wanted, found[name]) for name, wanted in _EXPECTED.items()]


def _words(xp: Arrays) -> str:
    made = words(PHILOX, seed=0, stream=0, purpose=SIGNS, start=0, count=4, xp=xp)
    if tuple(int(w) for w in xp.numpy(made)) != _KNOWN_WORDS:
        return "published known-answer vector missed"
    far = words(PHILOX, seed=(1 << 63) + 12345, stream=7, purpose=2, start=(1 << 33) + 5, count=1001, xp=xp)
    return _digest(xp.numpy(made).astype("<u4").tobytes() + xp.numpy(far).astype("<u4").tobytes())


def _symbols(count: int, low: int, high: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    draws = words(PHILOX, seed=2024, stream=1, purpose=4, start=0, count=count, xp=NUMPY)
    return np.asarray(low + draws % (high - low + 1), np.int64)


def _basis(number: int, xp: Arrays) -> str:
    parts = []
    for length in _LENGTHS:
        for count in sorted({length, max(1, length // 3)}) if BASES[number].is_fast else (min(length, 40),):
            keys = (BasisKey(PHILOX, 99, 3), BasisKey(PHILOX, 99, 4))
            coefficients = _symbols(2 * 2 * count, -15, 15).reshape(2, 2, count)
            made = BASES[number].synthesize(xp.asarray(coefficients), length, keys, 15, xp)
            parts.append(xp.numpy(xp.cast(made, "int64")).astype("<i8").tobytes())
    return _digest(b"".join(parts))


def _factors(xp: Arrays) -> str:
    digest = DecodedHash()
    for rows, columns, rank in ((576, 192, 3), (97, 36, 2)):
        kind = CodedKind("x", "F32", 1, coded_sides([(rows, rank), (rank, columns)]))
        codes = _symbols(rank, -300, -250)
        zeros = np.zeros(rank, np.int64)
        record = CodedRecord("x", kind, 5, (-20, -20), zeros, zeros, codes)
        b = _symbols(rank * rows, -200, 200).reshape(rank, rows).astype(np.int32)
        a = _symbols(rank * columns, -200, 200).reshape(rank, columns).astype(np.int32)
        (factors,) = synthesize_records([record], [Coefficients((b, a), 200)], generator=PHILOX, seed=11, xp=xp)
        digest.update(factors, xp)
    return digest.digest().hex()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
