"""What an encode says of itself: sizes, and errors measured on its own decoded output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorReport:
    """One adapted weight, or one tensor coded as a vector.

    Attributes:
        name: Module path, or a vector's key.
        shape: (out, in) of delta_W, convolutions flattened; of a vector its own.
        rank: Of the source; None for a vector.
        kept: Components, or 1 for a factor record or a vector, that are coded at all.
        energy: ||delta_W||_F^2, or the part that this record has in it.
        nmse: ||delta_W - decoded||_F^2 / ||delta_W||_F^2.
        effective_error: Expected loss of signal and of harmless noise, relative to the weight in the objective,
            which is its energy unless it was weighted (docs of the objective).
        activation_error: E|(delta_W - decoded) x|^2 / E|delta_W x|^2 over a calibration set's inputs x.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    kept: int
    energy: float
    nmse: float
    effective_error: float | None
    activation_error: float | None = None


@dataclass(frozen=True)
class TaskReport:
    """Losses on held-out rows, which nothing was trained on or chosen by here; the adapter itself may have been.

    Attributes:
        base: Of the model without an adapter.
        adapter: Of the original adapter.
        start: Of the weight-space code that the training started from.
        file: Of what the file decodes to.
        rows: Held-out rows.
        steps: Of training that the file has in it.
        unit: What a loss is in, e.g. ``nats a token``.
    """

    base: float
    adapter: float
    start: float
    file: float
    rows: int
    steps: int
    unit: str

    @property
    def kept(self) -> float | None:
        """Share of the adapter's gain over the base that the file has; None where the adapter gains nothing."""
        gain = self.base - self.adapter
        return (self.base - self.file) / gain if gain > 0 else None


@dataclass(frozen=True)
class EncodeReport:
    """A whole file.

    Attributes:
        bytes: Of the file.
        source_bytes: Of the adapter as it was given.
        parameters: Numbers in the adapter.
        ratio: 2 * parameters / bytes, that is, against fp16.
        objective: ``effective``, ``nmse`` or ``projection``.
        nmse: Share of ||delta_W||_F^2 lost over the whole file.
        effective_error: The same for the effective error, when that is defined.
        tensors: One report a record that is coded.
        seconds: Wall time.
        stages: The same by stage.
        activation_error: Share of E|delta_W x|^2 lost over the whole file, for ``fit activations``.
        rungs: Of a ladder, coarsest first: ``bytes`` of the file's beginning, and what was measured there.
        dialect: Of the adapter.
        task: Losses, for ``fit task``.
        notes: What the user should know, one sentence each.
    """

    bytes: int
    source_bytes: int
    parameters: int
    ratio: float
    objective: str
    nmse: float
    effective_error: float | None
    tensors: tuple[TensorReport, ...]
    seconds: float
    stages: dict[str, float]
    activation_error: float | None = None
    rungs: tuple[dict[str, float], ...] = ()
    dialect: str = ""
    task: TaskReport | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from nola_codec.encoder.rendering import render_encode_report

        return render_encode_report(self)
