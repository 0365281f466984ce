"""An encode as one object: the adapter in the order of its file, the options, and everything that follows from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nola_codec.array_types import Float64Array
from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.container.names import natural_key
from nola_codec.decoder.carried_forms import reference_tensors
from nola_codec.encoder.assemble import Envelope, pack_raw
from nola_codec.encoder.carried import ReducedCarried, reduce_carried
from nola_codec.encoder.clock import Clock
from nola_codec.encoder.delta_errors import SharedDeltas, find_shared_deltas
from nola_codec.encoder.header_room import require_header_room
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.reference import Prediction, predict, with_gains
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import OBJECTIVES, Objective
from nola_codec.fit.components import sides_energy
from nola_codec.model.adapter import Adapter, Codable
from nola_codec.parallel import parallel_map
from nola_codec.prng import PHILOX
from nola_codec.spool import release_pages
from nola_codec.version import __version__


@dataclass(frozen=True)
class EncodeJob:
    """Everything that the stages of an encode read. They change nothing of it but the clock.

    Attributes:
        adapter: The adapter as read, with its carried tensors in the form that the options ask for.
        carried: The same adapter beside the carried tensors as read.
        options: The checked options.
        items: The modules, then the vectors: the tensors of the file's coded records, in order.
        streams: The stream number of each record.
        energies: float64 (records,): the part of ||delta_W||_F^2 that each record has.
        shared_deltas: The deltas that several records make.
        dilution: The sum of `energies` over the sum of the energies by the records' own gains. It is 1 unless the
            gains are estimates, or if all deltas are zero.
        prediction: What the reference predicts of the items, or None without a reference.
        objective: The objective; that of a file with a reference may let through less noise than the options ask for.
        envelope: The fields that go into the header unchanged.
        raw_sections: (codec id, bytes) of the packed carried tensors.
        source_bytes: The size in bytes of the source of the adapter, for the report.
        parameters: The number of parameters that `ratio` refers to.
        clock: The wall time by stage.
    """

    adapter: Adapter
    carried: ReducedCarried
    options: EncodeOptions
    items: tuple[Codable, ...]
    streams: tuple[int, ...]
    energies: Float64Array
    shared_deltas: SharedDeltas
    dilution: float
    prediction: Prediction | None
    objective: Objective
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
        """Report the progress of a stage to the caller."""
        if self.options.progress is not None:
            self.options.progress(stage, done, total)


def open_job(
    adapter: Adapter, options: EncodeOptions, *, source_bytes: int = 0, parameters: int | None = None
) -> EncodeJob:
    """Bring an adapter into the order of its file, and pack the tensors that are only carried.

    Args:
        adapter: The adapter as read; its modules and vectors may be in any order.
        options: The checked options.
        source_bytes: The size in bytes of the source of the adapter, for the report.
        parameters: The number of parameters that `ratio` refers to; None stands for the number of the adapter.

    Raises:
        EncodeError: ``empty-tensor``: A vector has no element; ``reserved-key``: A carried tensor has the name of a
            part of a reduced one; ``limit``, ``bad-config``: The configuration or the metadata has no place in a file.
    """
    clock = Clock()
    numbers = adapter.parameters if parameters is None else parameters
    with clock.stage("carried tensors"):
        carried = reduce_carried(adapter, options.carried)
    adapter = carried.adapter
    items = order_items(adapter)
    envelope = _envelope(adapter, options)
    require_header_room(envelope.config, envelope.metadata)
    with clock.stage("carried tensors"):
        raw_sections = tuple(pack_raw(envelope.raw))
    prediction = None
    if options.reference is not None:
        with clock.stage("prediction"):
            prediction = predict(items, options.reference, OBJECTIVES[options.objective_name])
        envelope = replace(envelope, reference=prediction.entry)
    gained = np.array(list(parallel_map(_energy, items)))
    shared_deltas = find_shared_deltas(adapter, items)
    energies = shared_deltas.shared_energies(gained)
    before = float(gained.sum())
    has_estimates = bool(shared_deltas.notes)
    return EncodeJob(
        adapter=adapter,
        carried=carried,
        options=options,
        items=items,
        streams=choose_streams(items, shared=options.shared_basis),
        energies=energies,
        shared_deltas=shared_deltas,
        dilution=float(energies.sum()) / before if has_estimates and energies.any() else 1.0,
        prediction=prediction,
        objective=OBJECTIVES[options.objective_name],
        envelope=envelope,
        raw_sections=raw_sections,
        source_bytes=source_bytes,
        parameters=numbers,
        clock=clock,
    )


def with_objective(job: EncodeJob, objective: Objective) -> EncodeJob:
    """Return a job with a reference, with another objective and the gains that are best for it."""
    assert job.prediction is not None
    prediction = with_gains(job.prediction, objective)
    envelope = replace(job.envelope, reference=prediction.entry)
    return replace(job, objective=objective, prediction=prediction, envelope=envelope)


def order_items(adapter: Adapter) -> tuple[Codable, ...]:
    """Return modules, then vectors, each in natural order of their names: the order of a file's records."""
    for vector in adapter.vectors:
        if not vector.values.size:
            raise EncodeError("expected at least one element, found none", code="empty-tensor", where=vector.name)
    return (
        *sorted(adapter.modules, key=lambda m: natural_key(m.name)),
        *sorted(adapter.vectors, key=lambda v: natural_key(v.name)),
    )


def choose_streams(items: Sequence[Codable], *, shared: bool) -> tuple[int, ...]:
    """Number the generator streams: one for each record, or one for all records of equal shapes."""
    if not shared:
        return tuple(range(len(items)))
    shapes: dict[tuple[int, ...], int] = {}
    return tuple(shapes.setdefault((*item.vector_lengths, item.rank), len(shapes)) for item in items)


def _envelope(adapter: Adapter, options: EncodeOptions) -> Envelope:
    """Return the fields of the header that do not depend on the coding, with tensors in natural order of names."""
    raw = {**adapter.raw, **reference_tensors(adapter.references)}
    keys = sorted(raw, key=natural_key)
    return Envelope(
        writer=f"nola-codec {__version__}",
        dialect=adapter.dialect,
        generator=PHILOX,
        seed=options.seed,
        config=adapter.config,
        metadata=adapter.metadata,
        raw={key: raw[key] for key in keys if key not in adapter.draws},
        drawn={key: (adapter.draws[key], raw[key]) for key in keys if key in adapter.draws},
        base=adapter.base,
    )


def _energy(item: Codable) -> float:
    """Return the squared norm that an item has in the delta, by its own gain."""
    energy = sides_energy(item.sides) * item.error_gain**2
    release_pages(*item.sides)
    return energy
