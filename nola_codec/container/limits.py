"""Limits that a reader checks before it allocates memory for what a file declares (specification, "Limits").

Limits()                                the limits of the specification
INSPECT_LIMITS                          far lower ones, for a reader that decodes nothing
parse_limits("memory=500MB,units=4096") limits as users write them, on the command line or in NOLA_LIMITS
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import cast

from nola_codec.errors import FormatError, NolaError, mismatch
from nola_codec.sizes import parse_size

VARIABLE = "NOLA_LIMITS"
"""The environment variable with the limits of callers that give none; `parse_limits` reads it."""


@dataclass(frozen=True)
class Limits:
    """Upper bounds, inclusive. A caller with larger models may pass larger ones.

    The specification explains each of them. Together they bound the memory and the time that a file can ask for.

    Attributes:
        header_stored, header_plain: The bytes of the header, compressed and not.
        header_values: The MessagePack values of the header, those inside of ``config`` and ``metadata`` included.
        records, kinds, quantizers, rungs, sections: How many of them a header lists.
        rows: The rows of the allocation tables of a rung.
        units: The units of all records, added over all rungs.
        look_ups: The rows of allocation tables that units look up, over all sides and rungs.
        record_rungs: The number of coded records times that of rungs.
        rank, dimensions, dimension: What a shape may be.
        factor_elements: The elements of one factor or vector record.
        total_elements: The elements of all factors and vector records, and the bytes of all other tensors.
        rung_elements: The same, times the number of rungs, since each rung has a hash of all of it.
        delta_elements: The elements of the products of all factors in a file of the dialect ``delta``.
        name, name_characters: The characters of a name, and of all names of records together.
        metadata: The characters of one value of ``metadata``.
        coefficients: The coefficients of all records as if all units were kept, times the number of rungs.
        dense_products: The basis entries times coefficients of all records with a dense basis, times that of rungs.
        lane_steps: The steps of the lanes of all rANS sections that are decoded.
        words: The words of MT19937 that it takes to draw all drawn records.
        chain: The files below a file with a reference.
    """

    header_stored: int = 16 << 20
    header_plain: int = 64 << 20
    header_values: int = 1 << 21
    records: int = 1 << 17
    kinds: int = 1 << 16
    quantizers: int = 256
    rungs: int = 64
    rows: int = 1 << 14
    sections: int = 1 << 18
    units: int = 1 << 24
    look_ups: int = 1 << 26
    record_rungs: int = 1 << 20
    rank: int = 1 << 16
    dimensions: int = 8
    dimension: int = 1 << 31
    factor_elements: int = 1 << 31
    total_elements: int = 1 << 34
    rung_elements: int = 1 << 36
    delta_elements: int = 1 << 36
    name: int = 1024
    name_characters: int = 1 << 24
    metadata: int = 1 << 24
    coefficients: int = 1 << 34
    dense_products: int = 1 << 37
    lane_steps: int = 1 << 26
    words: int = 1 << 34
    chain: int = 32

    def within_memory(self, memory: int) -> Limits:
        """Return these limits, lowered so that a file takes at most about so many bytes of memory.

        Decoding takes up to 12 bytes for an element of a factor and 16 for one of a dense change. A budget of the
        operating system (`ulimit -v`, a container) bounds it exactly; exceeding that one is the error `OutOfMemory`.

        Raises:
            NolaError: ``option``: The memory is less than 1 MB.
        """
        if memory < 10**6:
            raise NolaError(mismatch("memory", "at least 1MB", memory), code="option")
        shares = {
            "header_plain": 16, "header_values": 256, "name_characters": 16, "units": 128, "look_ups": 64,
            "record_rungs": 512, "factor_elements": 12, "total_elements": 12, "delta_elements": 16, "coefficients": 6,
        }  # fmt: skip
        return replace(self, **{name: min(getattr(self, name), memory // share) for name, share in shares.items()})

    def require(self, name: str, found: int, what: str) -> None:
        """Raise FormatError ``limit`` if a file exceeds a limit.

        Args:
            name: The name of the limit.
            found: What the file declares.
            what: The part of the file that declares it.
        """
        most: int = getattr(self, name)
        if found > most:
            way = f"`--limits {name}={found}` or nola_codec.Limits({name}={found}) allows it"
            raise FormatError(f"{mismatch(what, f'at most {most}', found)}; {way}", code="limit")


DEFAULT_LIMITS = Limits()
"""The limits of the specification."""

INSPECT_LIMITS = Limits(
    header_stored=4 << 20, header_plain=8 << 20, header_values=1 << 18, kinds=1 << 13, rows=1 << 11, units=1 << 18,
    look_ups=1 << 22, record_rungs=1 << 16, name_characters=1 << 22,
)  # fmt: skip
"""The default limits of `inspect`. A stranger's small file then costs less than a second and 200 MB."""

_NAMES = tuple(field.name for field in fields(Limits))


def parse_limits(text: str, default: Limits = DEFAULT_LIMITS) -> Limits:
    """Return limits with some of them changed, as ``name=value`` separated by commas.

    Args:
        text: The changes. A value is an integer, or a size such as ``500MB``. ``memory`` stands for
            `Limits.within_memory`, which is applied first.
        default: The limits that are changed.

    Raises:
        NolaError: ``option``: A name is unknown, or a value is not a positive number.

    Example:
        >>> parse_limits("units=4096").units
        4096
    """
    values: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in (*_NAMES, "memory"):
            raise NolaError(mismatch("limits", f"name=value with one of memory, {', '.join(_NAMES)}", repr(part)),
                            code="option")  # fmt: skip
        try:
            values[name] = int(value) if value.isdecimal() else parse_size(value)
        except NolaError as error:
            raise error.within(f"limit {name}") from error
        if values[name] < 1:
            raise NolaError(mismatch(f"limit {name}", "a positive number", repr(value)), code="option")
    memory = values.pop("memory", None)
    limits = default if memory is None else default.within_memory(memory)
    return replace(limits, **values)


def resolve_limits(limits: Limits | None, default: Limits = DEFAULT_LIMITS) -> Limits:
    """Return the limits that a caller gave; for None those of the environment variable NOLA_LIMITS, or the default.

    Raises:
        NolaError: ``option``: The variable cannot be read, or `limits` is something else.
    """
    if limits is not None:
        if not isinstance(cast("object", limits), Limits):
            wanted = "Limits, such as nola_codec.Limits().within_memory(500 * 10**6)"
            raise NolaError(mismatch("limits", wanted, type(limits).__name__), code="option")
        return limits
    try:
        return parse_limits(os.environ.get(VARIABLE, ""), default)
    except NolaError as error:
        raise error.within(VARIABLE) from error
