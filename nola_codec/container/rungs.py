"""Make the header of a file that ends at one of its rungs (specification, "Units")."""

from __future__ import annotations

from dataclasses import replace

from nola_codec.model.header import Allocation, Header


def header_at_rung(header: Header, rung: int) -> Header:
    """Return the header, whose units are not read yet, as it is without the rungs after this one."""
    return replace(header, rungs=header.rungs[: rung + 1], sections=header.sections[: header.sections_at(rung)])


def prune_quantizers(header: Header) -> Header:
    """Return the header without the quantizers that its rungs do not use."""
    used = sorted({q for rung in header.rungs for table in rung.allocation for _, q, _ in table if q >= 0})
    number = {-1: -1, **{old: new for new, old in enumerate(used)}}

    def renumber(table: Allocation) -> Allocation:
        return tuple((precision, number[q], weight) for precision, q, weight in table)

    rungs = tuple(
        replace(rung, allocation=tuple(renumber(table) for table in rung.allocation)) for rung in header.rungs
    )
    return replace(header, quantizers=tuple(header.quantizers[q] for q in used), rungs=rungs)
