"""The options of an encode, checked once."""

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
"""Effective error that an encode without a rate option aims at."""
DEFAULT_BITS = 4
"""Bits of a coefficient when num_basis is given alone."""
FITS = ("weights", "activations", "task")


@dataclass(frozen=True)
class EncodeOptions:
    """The options of an encode. At most one of nmse, size, ratio, error and num_basis/bits sets the rate.

    Without any of these, the effective error is `DEFAULT_ERROR`.

    Attributes:
        nmse: Share of ||delta_W||_F^2 that may be lost over the file; the objective is then ``nmse``.
        size: Bytes that the file may take.
        ratio: Compression against the adapter's parameters in fp16.
        error: Target in the chosen objective.
        num_basis: Number of coefficients of a factor; makes the file one of the factor form.
        bits: Bits of a coefficient in the factor form, 1-8 or 16.
        rank: Rank of the fitted factors in the factor form; else the greatest number of components kept.
        objective: ``effective`` or ``nmse``.
        fit: ``weights``; ``activations``: components weigh what they gain on a calibration set; ``task``: the
            coefficients are trained, quantized as they will be stored.
        weighting: Moments by module name, for ``activations`` (`nola_codec.integrations.calibration` collects them).
        tuner: For ``task``: the object that trains (`nola_codec.training.TaskTuner`).
        importance: A number for a module, by name or pattern (`encoder.importance`): a factor on its components'
            weights.
        basis, generator: Names of the basis and of the generator.
        seed: 0 to 2^64 - 1.
        shared_basis: Use one basis for all weights of one shape.
        entropy: Names of the entropy codecs to choose from.
        thorough: Search with quantizers that have a memory for files over 1 MB too: smaller, and many times slower.
        progressive: Write a progressive file, which can be cut to coarser ones, by default each a quarter of the next.
        rungs: Sizes in bytes of the coarser rungs; makes the file progressive.
        progress: Called as (stage, done, total).
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
        _require_known("basis", self.basis, BASIS_NAMES)
        _require_known("generator", self.generator, GENERATOR_NAMES)
        if self.has_rungs and self.is_factor_form:
            raise _bad("the factor form (num_basis, bits) has no rungs; leave out num_basis and bits, or the rungs")
        if self.rungs is not None and (not self.rungs or any(size <= 0 for size in self.rungs)):
            raise _bad(f"rungs: expected positive sizes, found {self.rungs}")
        for codec in self.entropy:
            _require_known("entropy", codec, CODEC_NAMES)
        if not {"raw", "zstd"} & set(self.entropy):
            raise _bad("entropy: rans alone cannot code every stream; allow raw or zstd as well")
        if self.objective is not None:
            _require_known("objective", self.objective, OBJECTIVES)
            if self.nmse is not None and self.objective != "nmse":
                raise _bad("nmse is a target of the objective nmse; use error with another objective")
            if self.is_factor_form:
                raise _bad("the factor form (num_basis, bits) has no objective to choose: it is least squares")
        self._check_weighting()
        if not self.is_factor_form and self.basis != "hadamard":
            raise _bad(f"basis {self.basis} is not orthogonal; it serves the factor form only (num_basis, bits)")

    def _check_weighting(self) -> None:
        """Refuse fits and weights without what they need, and where they have no meaning."""
        if self.fit not in FITS:
            raise _bad(f"fit: expected one of {', '.join(FITS)}, found {self.fit!r}")
        if self.fit == "activations" and self.weighting is None:
            raise _bad("fit activations needs what a calibration set says of the layers: give weighting")
        if (self.fit == "task") != (self.tuner is not None):
            raise _bad("fit task and a tuner go together: give both, or neither")
        if self.fit == "task" and (self.is_factor_form or self.has_rungs or self.nmse is not None):
            raise _bad("fit task trains a file of one rung to a size, ratio or error; leave out nmse, num_basis, bits "
                       "and rungs")  # fmt: skip
        if self.fit != "activations" and self.weighting is not None:
            raise _bad("a calibration set serves fit activations only")
        for name, given in (
            ("fit activations", self.fit == "activations"),
            ("importance", self.importance is not None),
        ):
            if given and self.is_factor_form:
                raise _bad(f"{name} weighs components, and the factor form (num_basis, bits) has none")
            if given and self.objective_name == "nmse":
                raise _bad(f"{name} weighs components by more than their share of the NMSE; leave out nmse")

    @property
    def has_weights(self) -> bool:
        """True if components weigh anything but their energy."""
        return self.weighting is not None or self.importance is not None

    @property
    def has_rate(self) -> bool:
        """True if the user asked for something that only coding gives: a rate, or rungs."""
        rates = (self.nmse, self.size, self.ratio, self.error)
        return any(rate is not None for rate in rates) or self.is_factor_form or self.has_rungs

    @property
    def is_factor_form(self) -> bool:
        """True for the factor form, False for the component form."""
        return self.num_basis is not None or self.bits is not None

    @property
    def has_rungs(self) -> bool:
        """True for a progressive file."""
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
    """Return the error of a bad option."""
    return EncodeError(message, code="option")


def _require_known(what: str, name: str, names: Mapping[str, object]) -> None:
    """Refuse a name that is not among `names`."""
    if name not in names:
        raise _bad(f"{what}: expected one of {', '.join(names)}, found {name!r}")
