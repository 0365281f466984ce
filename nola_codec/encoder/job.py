"""An encode as one object: the adapter in the order of its file, the options, and everything that follows from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nola_codec.array_types import Float64Array
from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.container.names import natural_key
from nola_codec.encoder.assemble import Envelope, pack_raw
from nola_codec.encoder.clock import Clock
from nola_codec.encoder.delta_errors import SharedDeltas, find_shared_deltas
from nola_codec.encoder.options import EncodeOptions
from nola_codec.errors import EncodeError
from nola_codec.fit.components import sides_energy
from nola_codec.fit.weighting import Moments, match_moments
from nola_codec.model.adapter import Adapter, Codable
from nola_codec.prng import NAMES as GENERATOR_NAMES
from nola_codec.version import __version__


@dataclass(frozen=True)
class EncodeJob:
    """All that the stages of an encode read; no stage writes to it but to its clock.

    Attributes:
        adapter: As read.
        options: Checked options.
        items: Modules, then vectors: the tensors of the file's coded records, in order.
        streams: Stream number of each record.
        energies: float64 (records,): the part of ||delta_W||_F^2 that each record has.
        shared_deltas: Deltas that several records make.
        dilution: The parts' energies together over the sum of what each would be alone; 1 unless gains are estimates.
        moments: For ``fit activations``, the moments of each module, in order; else None.
        envelope: Fields that go into the header unchanged.
        raw_sections: (codec, bytes) of the carried tensors, packed.
        source_bytes: Size of the source of the adapter, for the report.
        parameters: The number of parameters that `ratio` is counted against.
        clock: Wall time by stage.
    """

    adapter: Adapter
    options: EncodeOptions
    items: tuple[Codable, ...]
    streams: tuple[int, ...]
    energies: Float64Array
    shared_deltas: SharedDeltas
    dilution: float
    moments: tuple[Moments, ...] | None
    envelope: Envelope
    raw_sections: tuple[tuple[int, bytes], ...]
    source_bytes: int
    parameters: int
    clock: Clock

    @property
    def basis(self) -> int:
        """The id of the basis."""
        return BASIS_NAMES[self.options.basis]

    def show_progress(self, stage: str, done: int, total: int) -> None:
        """Tell the caller how far a stage is."""
        if self.options.progress is not None:
            self.options.progress(stage, done, total)


def open_job(
    adapter: Adapter, options: EncodeOptions, *, source_bytes: int = 0, parameters: int | None = None
) -> EncodeJob:
    """Bring an adapter into the order of its file, and pack the tensors that are only carried.

    Args:
        adapter: As read; its modules and vectors may be in any order.
        options: Checked options.
        source_bytes: Size of the source of the adapter, for the report.
        parameters: The number of parameters that `ratio` is counted against; None is the adapter's.

    Raises:
        EncodeError: ``empty-tensor``: a vector has no element; ``moments``: a module has no moments.
    """
    clock = Clock()
    items = order_items(adapter)
    envelope = _envelope(adapter, options)
    with clock.stage("carried tensors"):
        raw_sections = tuple(pack_raw(envelope.raw))
    gained = np.array([_energy(item) for item in items])
    shared_deltas = find_shared_deltas(adapter, items)
    energies = shared_deltas.shared_energies(gained)
    before = float(gained.sum())
    has_estimates = bool(shared_deltas.notes)
    return EncodeJob(
        adapter=adapter,
        options=options,
        items=items,
        streams=choose_streams(items, shared=options.shared_basis),
        energies=energies,
        shared_deltas=shared_deltas,
        dilution=float(energies.sum()) / before if has_estimates and before else 1.0,
        moments=order_moments(items, options),
        envelope=envelope,
        raw_sections=raw_sections,
        source_bytes=source_bytes,
        parameters=adapter.parameters if parameters is None else parameters,
        clock=clock,
    )


def order_items(adapter: Adapter) -> tuple[Codable, ...]:
    """Return modules, then vectors, each in natural order of their names: the order of a file's records."""
    for vector in adapter.vectors:
        if not vector.values.size:
            raise EncodeError("a vector has at least one element", code="empty-tensor", where=vector.name)
    return (
        *sorted(adapter.modules, key=lambda m: natural_key(m.name)),
        *sorted(adapter.vectors, key=lambda v: natural_key(v.name)),
    )


def order_moments(items: Sequence[Codable], options: EncodeOptions) -> tuple[Moments, ...] | None:
    """Return the moments of the modules, which come first; the inputs of a layer say nothing about a vector."""
    modules = [item for item in items if item.is_pair]
    return None if options.weighting is None else tuple(match_moments(modules, options.weighting))


def choose_streams(items: Sequence[Codable], *, shared: bool) -> tuple[int, ...]:
    """Number the generator streams: one for each record, or one for all records of equal shapes."""
    if not shared:
        return tuple(range(len(items)))
    shapes: dict[tuple[int, ...], int] = {}
    return tuple(shapes.setdefault((*item.vector_lengths, item.rank), len(shapes)) for item in items)


def _envelope(adapter: Adapter, options: EncodeOptions) -> Envelope:
    keys = sorted(adapter.raw, key=natural_key)
    return Envelope(
        writer=f"nola-codec {__version__}",
        dialect=adapter.dialect,
        generator=GENERATOR_NAMES[options.generator],
        seed=options.seed,
        config=adapter.config,
        metadata=adapter.metadata,
        raw={key: adapter.raw[key] for key in keys if key not in adapter.draws},
        drawn={key: (adapter.draws[key], adapter.raw[key]) for key in keys if key in adapter.draws},
    )


def _energy(item: Codable) -> float:
    """Return the squared norm that an item has in the delta, by its own gain."""
    return sides_energy(item.sides) * item.error_gain**2
