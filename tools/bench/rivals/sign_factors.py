"""Sign factors, the form of LoRDBA (arXiv 2605.24058): both factors are signs, with scales of channels between them.

    delta_W = diag(a) S_B diag(m) S_A diag(b),   S_B (out, r) and S_A (r, in) of +1 and -1

The start is the sign of each number of the singular components, with the envelope of their magnitudes in a and b. Then
signs and scales are fitted to delta_W by gradient, the sign passed over in the backward pass. Without `envelopes` a and
b are 1, and a file holds little but the signs. The authors train signs and scales on the task; here they are fitted to
the adapter alone, and the caller may choose a gain on text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from quantizers import FileWriter, Integers, Quantized
from svd_codecs.columns import Component
from task_peers import Deltas

ENVELOPE = Integers(4)
"""How a and b are stored."""
RATE = 0.02
"""Adam's rate for latent numbers, which have unit variance, and for logarithms of scales."""


@dataclass(frozen=True)
class SignFactors:
    """A setting of the method.

    Attributes:
        rank: The number of columns of S_B.
        envelopes: True for scales of the channels, a and b, beside those of the components.
        steps: Steps of the fit.
    """

    rank: int
    envelopes: bool
    steps: int = 150

    @property
    def name(self) -> str:
        """The setting as text."""
        return f"LoRDBA rank {self.rank}" + (", scales of channels" if self.envelopes else "")

    def __call__(self, components: Sequence[Component]) -> tuple[int, Deltas]:
        """Return the bytes of a file, and what it decodes to."""
        coded: dict[str, list[Any]] = {}
        for shape in sorted({(len(c.u), len(c.v)) for c in components}):
            own = [c for c in components if (len(c.u), len(c.v)) == shape]
            fit = _Fit(own, self.rank, self.envelopes)
            fit.run(self.steps)
            coded.update(zip((c.name for c in own), fit.parts(), strict=True))
        writer = FileWriter([self.rank, [(c.name, len(c.u), len(c.v)) for c in components]], compress=True)
        deltas = {}
        for c in components:
            *sides, middle = coded[c.name]
            middle = middle.astype(np.float16)
            made = []
            for signs, envelope in sides:
                codes = Quantized(signs, (signs > 0).astype(np.uint8), 1, ())
                writer.add(codes, range(len(signs)))
                if self.envelopes:
                    envelope = ENVELOPE(envelope[None])
                    writer.add(envelope, [0])
                    signs = signs * envelope.values
                made.append(signs)
            writer.add(Quantized(middle, None, 0, (middle[:, None],)), range(len(middle)))
            deltas[c.name] = made[0].T * middle.astype(np.float32), made[1]
        return len(writer.blob()), deltas


class _Fit:
    """The signs and scales of all modules of one shape: latent numbers (modules, r, length) of each side."""

    def __init__(self, components: Sequence[Component], rank: int, envelopes: bool) -> None:
        sides = [[c.u * np.sqrt(c.s) for c in components], [c.v * np.sqrt(c.s) for c in components]]
        self._target = [torch.from_numpy(np.stack([x.T for x in side])).float() for side in sides]
        self._envelopes = envelopes
        first = [target[:, :rank] for target in self._target]
        self._latent = [torch.nn.Parameter(x / x.square().mean(2, keepdim=True).sqrt()) for x in first]
        # Scales from the mean magnitude of each component, and from that of each channel beside it.
        rows = [x.abs().mean(2) for x in first]
        even = [x.abs() / row[..., None].clamp_min(1e-12) for x, row in zip(first, rows, strict=True)]
        across = [x.mean(1).clamp_min(1e-3) for x in even]
        self._log_across = [torch.nn.Parameter(a.log() if envelopes else torch.zeros_like(a)) for a in across]
        self._log_middle = torch.nn.Parameter((rows[0] * rows[1]).clamp_min(1e-12).log())
        self._energy = self._gram(self._target[0], self._target[1], *self._target)

    def run(self, steps: int) -> None:
        """Fit by Adam; the signs and scales of the best step stay."""
        trained = [*self._latent, self._log_middle, *(self._log_across if self._envelopes else [])]
        optimizer = torch.optim.Adam(trained, lr=RATE)
        least, best = float("inf"), [p.detach().clone() for p in trained]
        for step in range(steps + 1):
            b, a = self._sides()
            error = (self._energy - 2 * self._gram(b, a, *self._target) + self._gram(b, a, b, a)).sum()
            if error.item() < least:
                least, best = error.item(), [p.detach().clone() for p in trained]
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / (steps + 1))
            optimizer.zero_grad()
            (error / self._energy.sum() * 1e3).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for parameter, kept in zip(trained, best, strict=True):
            parameter.data.copy_(kept)

    @torch.no_grad()
    def parts(self) -> list[list[Any]]:
        """Return [(S_B^T, a), (S_A, b), m] of each module."""
        signs = [_sign(latent).numpy() for latent in self._latent]
        across = [log.exp().numpy() for log in self._log_across]
        middle = self._log_middle.exp().numpy()
        return [[*((signs[side][i], across[side][i]) for side in (0, 1)), middle[i]] for i in range(len(middle))]

    def _sides(self) -> tuple[torch.Tensor, torch.Tensor]:
        b, a = (
            (_sign(x) + x.clamp(-2, 2) - x.clamp(-2, 2).detach()) * log.exp()[:, None]
            for x, log in zip(self._latent, self._log_across, strict=True)
        )
        return b * self._log_middle.exp()[..., None], a

    @staticmethod
    def _gram(b: torch.Tensor, a: torch.Tensor, b2: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
        """Return the inner product of b^T a and b2^T a2 of each module."""
        return ((b @ b2.mT) * (a @ a2.mT)).sum((1, 2))


def _sign(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, -1.0, 1.0)


def amplified(deltas: Deltas, gain: float) -> Deltas:
    """Return deltas times a gain."""
    return {name: (gain * b, a) for name, (b, a) in deltas.items()}


def best_gain(deltas: Deltas, gains: Sequence[float], loss: Any) -> tuple[float, Mapping[float, float]]:
    """Return the gain with the lowest loss, and the loss of each; `loss` maps deltas to a number."""
    found = {gain: float(loss(amplified(deltas, gain))) for gain in gains}
    return min(found, key=lambda gain: found[gain]), found
