"""The report of an encode: sizes, and errors measured on what the file decodes to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nola_codec.encoder.expectation import Expectation


@dataclass(frozen=True)
class TensorReport:
    """The report of one adapted weight, or of one tensor coded as a vector.

    Attributes:
        name: The module path, or the key of a vector.
        shape: The shape (out, in) of delta_W, that of a convolution flattened; for a vector its own shape.
        rank: The rank in the source; None for a vector.
        kept: The number of coded components. It is 0 or 1 for a vector and in the factor form.
        energy: ||delta_W||_F^2, or the part of it that this record has.
        nmse: ||delta_W - decoded||_F^2 / ||delta_W||_F^2.
        effective_error: The estimated effective error, relative to the weight of the record in the objective, which
            is its energy unless it was weighted otherwise; None if it is not defined.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    kept: int
    energy: float
    nmse: float
    effective_error: float | None


@dataclass(frozen=True)
class CarriedReport:
    """The report of one carried tensor.

    Attributes:
        name: The full key.
        dtype: The dtype in the source, one of DTYPES.
        shape: The shape.
        bytes: The bytes that the tensor takes in the file.
        form: The form of the tensor in the file, one of `CARRIED_FORMS`; or ``change`` if it is coded as a change of
            the base model's.
        relative_error: ||tensor - decoded||_F / ||tensor||_F, measured on what the file decodes to.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    form: str = "exact"
    relative_error: float = 0.0

    @property
    def parameters(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TaskReport:
    """Losses on held-out rows. The encode did not train on them, but the adapter itself may have done so.

    If `is_distance` is True, a loss is the distance from the adapter's predictions on data without labels. It says how
    well the file imitates the adapter there, and not how well it does the task.

    Attributes:
        base: The loss of the model without an adapter.
        adapter: The loss of the original adapter.
        start: The loss of a file from the weights alone, made to the same target.
        file: The loss of what the file decodes to.
        rows: The number of held-out rows.
        steps: The number of training steps behind the file.
        unit: The unit of a loss, e.g. ``nats a token``.
        data: Sentences that say where the data came from, if the adapter made them itself; else empty.
        is_trained: False if the file from the weights alone was as good on the validation rows. It was written then.
        is_distance: True if the losses are distances from the adapter's predictions, so that `adapter` is 0.
    """

    base: float
    adapter: float
    start: float
    file: float
    rows: int
    steps: int
    unit: str
    data: str = ""
    is_trained: bool = True
    is_distance: bool = False

    @property
    def kept(self) -> float | None:
        """The share of the adapter's gain over the base that the file keeps; None if the adapter gains nothing.

        For distances it is the share of the way from the predictions of the base model to those of the adapter.
        """
        gain = self.base - self.adapter
        return (self.base - self.file) / gain if gain > 0 else None


@dataclass(frozen=True)
class EncodeReport:
    """The report of a whole file.

    Attributes:
        bytes: The size of the file in bytes.
        source_bytes: The size of the given adapter in bytes.
        parameters: The number of parameters in the adapter.
        ratio: 2 * parameters / bytes, which compares with fp16.
        objective: ``effective``, ``nmse``, or ``task`` for ``fit task``. The factor form minimises the NMSE.
        nmse: The share of ||delta_W||_F^2 that the whole file loses.
        effective_error: The effective error of the whole file, or None if it is not defined.
        tensors: One report for each coded record of a delta.
        seconds: The wall time of the encode in seconds.
        stages: The wall time of each stage in seconds, by name.
        rungs: For each rung, coarsest first, ``bytes`` of the file's beginning and the losses measured there.
        dialect: The dialect of the adapter.
        task: The losses on the task, for ``fit task``; else None.
        notes: Sentences that the user should read.
        form: ``component`` or ``factor``.
        carried: One report for each carried tensor, in the order of the file.
        scalings: The different scalings of the modules, sorted.
        scale_origin: The place that they came from: ``tensor`` (alphas), ``config``, ``metadata``, ``option`` (the
            user), ``dialect`` (the dialect defines them), ``assumed``; empty if there is no scaling.
        expectation: The shares of the gain that files of this effective error kept on the tasks that were measured;
            None for other objectives, and where weights of components make the error another one.
        is_default_target: True if no target was given, so that the error in the objective is `DEFAULT_ERROR`; for
            ``fit task`` before the training.
        is_of_image_model: True for an adapter of an image or video model, of which no task was measured.
        reference: The SHA-256 of the reference that the file needs, in hexadecimal; empty if it needs none.
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
    rungs: tuple[dict[str, float], ...] = ()
    dialect: str = ""
    task: TaskReport | None = None
    notes: tuple[str, ...] = ()
    form: str = "component"
    carried: tuple[CarriedReport, ...] = ()
    scalings: tuple[float, ...] = ()
    scale_origin: str = ""
    expectation: Expectation | None = None
    is_default_target: bool = False
    is_of_image_model: bool = False
    reference: str = ""

    @property
    def carried_bytes(self) -> int:
        """The bytes that all carried tensors take in the file."""
        return sum(each.bytes for each in self.carried)

    @property
    def carried_parameters(self) -> int:
        """The number of elements of all carried tensors."""
        return sum(each.parameters for each in self.carried)

    @property
    def keeps_nothing(self) -> bool:
        """True if the adapter has deltas, and the file has no part of any."""
        if self.reference or not any(each.energy for each in self.tensors):
            return False
        return not any(each.kept for each in self.tensors)

    def __str__(self) -> str:
        from nola_codec.encoder.report_rendering import render_encode_report

        return render_encode_report(self)
