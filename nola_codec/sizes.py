"""Parse sizes as people write them."""

from __future__ import annotations

import math
import re

from nola_codec.errors import EncodeError

_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"\s*([0-9_]*\.?[0-9]+)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Return the number of bytes of ``200KB``, ``64KiB``, ``1.5 MB`` or ``90000``. KB is 1000 bytes, KiB is 1024.

    Raises:
        EncodeError: ``option``: The text is not a size.

    >>> parse_size("64KiB")
    65536
    """
    match = _SIZE.fullmatch(text)
    value = float(match[1].replace("_", "")) if match else 0.0
    if match is None or match[2].upper() not in _UNITS or not 0 < value < math.inf:
        raise EncodeError(f"size {text!r}: expected a positive number and B, KB, MB, KiB or MiB", code="option")
    return int(value * _UNITS[match[2].upper()])
