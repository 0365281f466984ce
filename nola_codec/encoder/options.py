"""The options of an encode, which are checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nola_codec.basis import NAMES as BASIS_NAMES
from nola_codec.decoder.carried_forms import CARRIED_FORMS
from nola_codec.entropy import NAMES as CODEC_NAMES
from nola_codec.errors import EncodeError
from nola_codec.fit.allocation import OBJECTIVES
from nola_codec.progress import Progress

if TYPE_CHECKING:
    from nola_codec.encoder.reference import KnownReference
    from nola_codec.encoder.tuning import Tuner

DEFAULT_ERROR = 0.02
"""The effective error of an encode without a rate option."""
DEFAULT_BITS = 4
"""The bits of a coefficient if num_basis is given alone."""
FITS = ("weights", "task")
"""The values of the option fit."""
_GONE = (
    "fit activations is gone, since it made most files worse; take fit task, whose tuner needs no data "
    "(nola_codec.integrations.self_teaching; on the command line --fit task --data self)"
)


@dataclass(frozen=True)
class EncodeOptions:
    """The options of an encode. At most one of nmse, size, ratio, error and num_basis/bits sets the rate.

    Without any of these, the effective error is `DEFAULT_ERROR`.

    Attributes:
        nmse: The share of ||delta_W||_F^2 that the file may lose; the objective is then ``nmse``.
        size: The size in bytes that the file may take.
        ratio: The size of the adapter's parameters in fp16, over the size of the file.
        error: The error in the objective that the file may have.
        num_basis: The number of coefficients of a factor; it selects the factor form.
        bits: The bits of a coefficient, 1 to 8 or 16; it selects the factor form.
        rank: The rank of the fitted factors in the factor form; else the greatest number of components of a module.
        objective: ``effective`` or ``nmse``.
        fit: ``weights``; ``task``: the coefficients are trained, quantized as they will be stored.
        tuner: The object that trains, for ``task`` (`nola_codec.training.TaskTuner`).
        importance: Factors on the weights of the modules' components, by name or pattern (`encoder.importance`).
        basis: The name of the basis.
        seed: The seed of the basis, 0 to 2^64 - 1.
        shared_basis: True to use one basis for all weights of the same shape.
        entropy: The names of the entropy codecs to choose from.
        block_size: The coded size in bytes at which a block is closed; None is 24 KiB, or 1/32 of a large file. A
            reader of one tensor reads little more than one.
        thorough: True to search with quantizers that have a memory for files over 1 MB too. Such files are smaller,
            and take many times as long.
        progressive: True to write a progressive file, which can be cut to coarser ones. By default each rung is a
            quarter of the next.
        rungs: The sizes in bytes of the coarser rungs; they make the file progressive.
        carried: The form of carried tensors of floats, one of `CARRIED_FORMS`.
        reference: An earlier version of the adapter: the file holds the difference to it, and needs it to be decoded.
        progress: A function that is called as (stage, done, total), or None.

    Raises:
        EncodeError: ``option``: A value is out of range, or options exclude each other.
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
    tuner: Tuner | None = field(default=None, repr=False)
    importance: Mapping[str, float] | None = field(default=None, repr=False)
    basis: str = "hadamard"
    seed: int = 0
    shared_basis: bool = False
    entropy: tuple[str, ...] = ("raw", "rans")
    block_size: int | None = None
    thorough: bool = False
    progressive: bool = False
    rungs: tuple[int, ...] | None = None
    carried: str = "exact"
    reference: KnownReference | None = field(default=None, repr=False)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        rates = {
            "nmse": self.nmse, "size": self.size, "ratio": self.ratio, "error": self.error,
            "num_basis/bits": self.num_basis if self.num_basis is not None else self.bits,
        }  # fmt: skip
        given = [name for name, value in rates.items() if value is not None]
        if len(given) > 1:
            raise _refusal(f"choose one of {', '.join(given)}")
        for name in ("nmse", "error"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise _refusal(f"{name}: expected a number between 0 and 1, found {value}")
        for name in ("size", "ratio", "num_basis", "rank", "block_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1 << 40:
                raise _refusal(f"{name}: expected a positive number, found {value}")
        if self.bits is not None and self.bits not in (*range(1, 9), 16):
            raise _refusal(f"bits: expected 1 to 8, or 16, found {self.bits}")
        if not 0 <= self.seed < 1 << 64:
            raise _refusal(f"seed: expected 0 to 2^64 - 1, found {self.seed}")
        _require_known("basis", self.basis, BASIS_NAMES)
        if self.has_rungs and self.is_factor_form:
            raise _refusal("the factor form (num_basis, bits) has no rungs; leave out num_basis and bits, or the rungs")
        if self.rungs is not None and (not self.rungs or any(size <= 0 for size in self.rungs)):
            raise _refusal(f"rungs: expected positive sizes, found {self.rungs}")
        for codec in self.entropy:
            _require_known("entropy", codec, CODEC_NAMES)
        if "raw" not in self.entropy:
            raise _refusal("entropy: rans alone cannot code every stream; allow raw as well")
        if self.objective is not None:
            _require_known("objective", self.objective, OBJECTIVES)
            if self.nmse is not None and self.objective != "nmse":
                raise _refusal("nmse is a target of the objective nmse; use error with another objective")
            if self.is_factor_form:
                raise _refusal("the factor form (num_basis, bits) has no objective to choose: it is least squares")
        self._check_fit()
        self._check_carried()
        self._check_reference()
        if not self.is_factor_form and self.basis != "hadamard":
            raise _refusal(f"basis {self.basis} is not orthogonal: only the factor form (num_basis, bits) can use it")

    def _check_fit(self) -> None:
        """Raise an error if a fit or an importance lacks what it needs, or has no meaning with the other options."""
        if self.fit == "activations":
            raise _refusal(_GONE)
        if self.fit not in FITS:
            raise _refusal(f"fit: expected one of {', '.join(FITS)}, found {self.fit!r}")
        if (self.fit == "task") != (self.tuner is not None):
            raise _refusal("fit task and a tuner go together: give both, or neither")
        if self.fit == "task" and (self.is_factor_form or self.has_rungs or self.nmse is not None):
            message = "fit task trains a file of one rung to a size, ratio or error"
            raise _refusal(f"{message}; leave out nmse, num_basis, bits and rungs")
        if self.importance is not None and self.is_factor_form:
            raise _refusal("importance weighs components, and the factor form (num_basis, bits) has none")
        if self.importance is not None and self.objective_name == "nmse":
            raise _refusal("importance weighs components by more than their share of the NMSE; leave out nmse")

    def _check_carried(self) -> None:
        """Raise an error if the form of carried tensors is none, or if it cannot go with the other options."""
        if self.carried not in CARRIED_FORMS:
            raise _refusal(f"carried: expected one of {', '.join(CARRIED_FORMS)}, found {self.carried!r}")
        others = [("the factor form (num_basis, bits)", self.is_factor_form), ("rungs", self.has_rungs),
                  ("fit task", self.fit == "task")]  # fmt: skip
        for name, given in others:
            if given and self.carried == "coded":
                raise _refusal(f"carried coded cannot go with {name}; carried int8 can")

    def _check_reference(self) -> None:
        """Raise an error if an option cannot go with a reference."""
        others = [
            ("the factor form (num_basis, bits)", self.is_factor_form), ("rungs", self.has_rungs),
            ("rank", self.rank is not None), (f"fit {self.fit}", self.fit != "weights"),
            ("importance", self.importance is not None), ("carried coded", self.carried == "coded"),
        ]  # fmt: skip
        for name, given in others:
            if given and self.reference is not None:
                raise _refusal(f"{name} cannot go with a reference; leave out one of the two")

    @property
    def has_rate(self) -> bool:
        """True if the user asked for a rate or for rungs, which only coded tensors can have."""
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
        """The name of the objective: the chosen one, or its default."""
        return self.objective or ("nmse" if self.nmse is not None else "effective")

    @property
    def error_target(self) -> float | None:
        """The error to reach, or None if a size is the target."""
        if self.size is not None or self.ratio is not None:
            return None
        return next((e for e in (self.nmse, self.error) if e is not None), DEFAULT_ERROR)


def _refusal(message: str) -> EncodeError:
    """Return the error of a wrong option."""
    return EncodeError(message, code="option")


def _require_known(what: str, name: str, names: Mapping[str, object]) -> None:
    """Raise an error if a name is not among `names`."""
    if name not in names:
        raise _refusal(f"{what}: expected one of {', '.join(names)}, found {name!r}")
