"""The report of an encode: sizes, and errors measured on what the file decodes to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorReport:
    """The report of one adapted weight, or of one tensor coded as a vector.

    Attributes:
        name: Module path, or a vector's key.
        shape: (out, in) of delta_W, convolutions flattened; a vector's own shape.
        rank: Rank of the source; None for a vector.
        kept: Number of components that are coded; 1 for a factor record or a vector, or 0.
        energy: ||delta_W||_F^2, or the part of it that this record has.
        nmse: ||delta_W - decoded||_F^2 / ||delta_W||_F^2.
        effective_error: Expected loss of signal and of harmless noise, relative to the weight in the objective,
            which is its energy unless it was weighted otherwise.
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
    """Losses on held-out rows. Nothing was trained or chosen by them here; the adapter itself may have seen them.

    Attributes:
        base: Loss of the model without an adapter.
        adapter: Loss of the original adapter.
        start: Loss of the code of the weights that the training started from.
        file: Loss of what the file decodes to.
        rows: Number of held-out rows.
        steps: Number of training steps that the file has in it.
        unit: Unit of a loss, e.g. ``nats a token``.
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
        """The share of the adapter's gain over the base that the file keeps; None if the adapter gains nothing."""
        gain = self.base - self.adapter
        return (self.base - self.file) / gain if gain > 0 else None


@dataclass(frozen=True)
class EncodeReport:
    """The report of a whole file.

    Attributes:
        bytes: The file's size.
        source_bytes: The size of the adapter as it was given.
        parameters: The number of parameters in the adapter.
        ratio: 2 * parameters / bytes, that is, against fp16.
        objective: ``effective``, ``nmse``, or ``task`` for ``fit task``. The factor form minimises the NMSE.
        nmse: Share of ||delta_W||_F^2 lost over the whole file.
        effective_error: The same for the effective error, when that is defined.
        tensors: One report a record that is coded.
        seconds: Wall time.
        stages: The same by stage.
        activation_error: Share of E|delta_W x|^2 lost over the whole file, for ``fit activations``.
        rungs: For each rung, coarsest first: ``bytes`` of the file's beginning, and the losses measured there.
        dialect: The adapter's dialect.
        task: Losses, for ``fit task``.
        notes: Sentences that the user should read.
        form: ``component`` or ``factor``.
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
    form: str = "component"

    def __str__(self) -> str:
        from nola_codec.encoder.rendering import render_encode_report

        return render_encode_report(self)
