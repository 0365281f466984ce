"""What a caller may ask of an encode, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.entropy import NAMES as CODEC_NAMES
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import OBJECTIVES
from nola_codec.fit.weighting import Moments
from nola_codec.prng import NAMES as GENERATOR_NAMES
from nola_codec.progress import Progress

if TYPE_CHECKING:
    from nola_codec.encoder.tuning import Tuner

DEFAULT_ERROR = 0.02
"""Effective error of an encode with no rate option."""
DEFAULT_BITS = 4
"""Bits a coefficient when num_basis is given alone."""
FITS = ("weights", "activations", "task")


@dataclass(frozen=True)
class EncodeOptions:
    """At most one of nmse, size, ratio, error and num_basis/bits says the rate; with none, `DEFAULT_ERROR` holds.

    Attributes:
        nmse: Share of ||delta_W||_F^2 that may be lost over the file; the objective is then ``nmse``.
        size: Bytes that the file may take.
        ratio: Compression against the adapter's parameters in fp16.
        error: Target in the chosen objective.
        num_basis: Coefficients a factor: the paper's form.
        bits: Bits a coefficient in the paper's form, 1-8 or 16.
        rank: Rank of the fitted factors in the paper's form, or the most components kept.
        objective: ``effective`` or ``nmse``.
        fit: ``weights``; ``activations``: components weigh what they gain on a calibration set; ``task``: the
            coefficients are trained, quantized as they will be stored.
        weighting: Moments by module name, for ``activations`` (`nola_codec.integrations.calibration` collects them).
        tuner: For ``task``: trains (`nola_codec.training.TaskTuner`).
        importance: A number a module, by name or pattern (`encoder.importance`): a factor on its components' weights.
        basis, generator: By name.
        seed: 0 to 2^64 - 1.
        shared_basis: One basis for all weights of one shape (the paper's shared basis).
        entropy: Names of the entropy codecs to choose from.
        thorough: Search with quantizers that have a memory for files over 1 MB too: smaller, and many times slower.
        progressive: Write a ladder: a file that can be cut to coarser ones, by default each a quarter of the next.
        rungs: Sizes in bytes of the ladder's coarser rungs; makes the file progressive.
    """

    nmse: float | None = None
    size: int | None = None
    ratio: float | None = None
    error: float | None = None
    num_basis: int | None = None
    bits: int | None = None
    rank: int | None = None
    objective: str | None = None
    fit: str = "weights"
    weighting: Mapping[str, Moments] | None = field(default=None, repr=False)
    tuner: Tuner | None = field(default=None, repr=False)
    importance: Mapping[str, float] | None = field(default=None, repr=False)
    basis: str = "hadamard"
    generator: str = "philox4x32-10"
    seed: int = 0
    shared_basis: bool = False
    entropy: tuple[str, ...] = ("raw", "zstd", "rans")
    thorough: bool = False
    progressive: bool = False
    rungs: tuple[int, ...] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        rates = {
            "nmse": self.nmse, "size": self.size, "ratio": self.ratio, "error": self.error,
            "num_basis/bits": self.num_basis if self.num_basis is not None else self.bits,
        }  # fmt: skip
        given = [name for name, value in rates.items() if value is not None]
        if len(given) > 1:
            raise _bad(f"choose one of {', '.join(given)}")
        for name in ("nmse", "error"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise _bad(f"{name}: expected a number between 0 and 1, found {value}")
        for name in ("size", "ratio", "num_basis", "rank"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1 << 40:
                raise _bad(f"{name}: expected a positive number, found {value}")
        if self.bits is not None and self.bits not in (*range(1, 9), 16):
            raise _bad(f"bits: expected 1 to 8, or 16, found {self.bits}")
        if not 0 <= self.seed < 1 << 64:
            raise _bad(f"seed: expected 0 to 2^64 - 1, found {self.seed}")
        _known("basis", self.basis, BASIS_NAMES)
        _known("prng", self.generator, GENERATOR_NAMES)
        if self.ladder and self.projected:
            raise _bad("the paper's form (num_basis, bits) has no ladder of rungs")
        if self.rungs is not None and (not self.rungs or any(size <= 0 for size in self.rungs)):
            raise _bad(f"rungs: expected positive sizes, found {self.rungs}")
        for codec in self.entropy:
            _known("entropy", codec, CODEC_NAMES)
        if not {"raw", "zstd"} & set(self.entropy):
            raise _bad("entropy: rans alone cannot code every stream; allow raw or zstd as well")
        if self.objective is not None:
            _known("objective", self.objective, OBJECTIVES)
            if self.nmse is not None and self.objective != "nmse":
                raise _bad("nmse is a target of the objective nmse; use error with another objective")
            if self.projected:
                raise _bad("the paper's form (num_basis, bits) has no objective to choose: it is least squares")
        self._check_weighting()
        if not self.projected and self.basis != "hadamard":
            raise _bad(f"basis {self.basis} is not orthogonal; it serves the paper's form only (num_basis, bits)")

    def _check_weighting(self) -> None:
        if self.fit not in FITS:
            raise _bad(f"fit: expected one of {', '.join(FITS)}, found {self.fit!r}")
        if self.fit == "activations" and self.weighting is None:
            raise _bad("fit activations needs what a calibration set says of the layers: a base model and its text")
        if (self.fit == "task") != (self.tuner is not None):
            raise _bad("fit task and a tuner go together: a base model and text of the task")
        if self.fit == "task" and (self.projected or self.ladder or self.nmse is not None):
            raise _bad("fit task trains a file of one rung to a size, ratio or error; leave out nmse, num_basis, bits "
                       "and rungs")  # fmt: skip
        if self.fit != "activations" and self.weighting is not None:
            raise _bad("a calibration set serves fit activations only")
        for name, given in (
            ("fit activations", self.fit == "activations"),
            ("importance", self.importance is not None),
        ):
            if given and self.projected:
                raise _bad(f"{name} weighs components, and the paper's form (num_basis, bits) has none")
            if given and self.objective_name == "nmse":
                raise _bad(f"{name} weighs components by more than their share of the NMSE; leave out nmse")

    @property
    def weighted(self) -> bool:
        """Whether components weigh anything but their energy."""
        return self.weighting is not None or self.importance is not None

    @property
    def rated(self) -> bool:
        """Whether anything was asked for that only coding gives: a rate, or a ladder."""
        rates = (self.nmse, self.size, self.ratio, self.error)
        return any(rate is not None for rate in rates) or self.projected or self.ladder

    @property
    def projected(self) -> bool:
        """Whether the paper's form was asked for."""
        return self.num_basis is not None or self.bits is not None

    @property
    def rate_table(self) -> bool:
        """Whether a ladder was asked for."""
        return self.progressive or self.rungs is not None

    @property
    def objective_name(self) -> str:
        """The objective after defaults."""
        return self.objective or ("nmse" if self.nmse is not None else "effective")

    @property
    def error_target(self) -> float | None:
        """The error to reach, or None when a size is the target."""
        if self.size is not None or self.ratio is not None:
            return None
        return next((e for e in (self.nmse, self.error) if e is not None), DEFAULT_ERROR)


def _bad(message: str) -> EncodeError:
    return EncodeError(message, code="option")


def _known(what: str, name: str, names: Mapping[str, object]) -> None:
    if name not in names:
        raise _bad(f"{what}: expected one of {', '.join(names)}, found {name!r}")
