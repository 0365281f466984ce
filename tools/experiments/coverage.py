"""How much of weight space few coefficients reach (NOLA, Figure 2): the rank of random delta_W over its dimensions.

    python tools/experiments/coverage.py [--side 32] [--counts 8 16 32 ...] [--json FILE]

For each number of coefficients, more random delta_W of side x side than it has elements are drawn, flattened, and the
rank of their covariance is divided by side^2. All three have the same number of trained coefficients:

PRANC   n coefficients of one flat vector: a linear map, so n directions and no more
NOLA    n / 2 coefficients for each factor of rank r: their products alpha_i beta_j reach (n / 2)^2 directions, or all
LoRA    the largest rank whose two factors have at most n numbers; no rank where there is none

A rank counts directions that occur at all; the second figure, the share of directions that 99% of the variance takes,
tells how evenly. The bases are the codec's own.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from report import Result, finish, options, say

from nola_codec.training import NolaParameter

Floats = npt.NDArray[np.float64]


def draw_coded_deltas(side: int, count: int, samples: int, basis: str, **coding: Any) -> Floats:
    """delta_W of random coefficients, (samples, side^2), by the layers' own synthesis."""
    parameter = NolaParameter((side, side), basis=basis, keep_basis=True, std=1.0, **coding)
    assert sum(values.numel() for values in parameter.parameters()) <= count
    parts = []
    for values, part in zip(parameter.coefficients_of_parts, parameter.composed.parts, strict=True):
        rows = torch.stack([part.synthesis.forward(unit) for unit in torch.eye(values.numel())]).double()
        drawn = torch.randn(samples, values.numel(), dtype=torch.float64)
        parts.append((drawn @ rows).reshape(samples, *part.shape))
    made = parts[0] @ parts[1] if len(parts) == 2 else parts[0]
    return made.reshape(samples, side * side).numpy()


def draw_lora_deltas(side: int, count: int, samples: int) -> Floats | None:
    """delta_W of random factors; None where not even rank one has so few numbers."""
    rank = count // (2 * side)
    if rank == 0:
        return None
    made = torch.randn(samples, side, rank, dtype=torch.float64) @ torch.randn(samples, rank, side, dtype=torch.float64)
    return made.reshape(samples, side * side).numpy()


def coverage(samples: Floats | None) -> tuple[float, float] | None:
    """(rank, directions of 99% of the variance), as shares of all directions."""
    if samples is None:
        return None
    centred = samples - samples.mean(0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    size = samples.shape[1]
    rank = int((variances > variances[0] * size * np.finfo(np.float64).eps).sum())
    needed = int(np.searchsorted(np.cumsum(variances), 0.99 * variances.sum())) + 1
    return rank / size, needed / size


def format_coverage(found: tuple[float, float] | None) -> str:
    """A cell of the table."""
    return "none" if found is None else f"{found[0]:.1%} ({found[1]:.1%})"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="of delta_W")
    parser.add_argument("--rank", type=int, default=4, help="of NOLA's factors")
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024])
    parser.add_argument("--samples", type=float, default=2.0, help="times side^2")
    parser.add_argument("--basis", default="uniform", choices=["uniform", "rademacher", "hadamard"])
    options(parser, "coverage.svg")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    side, samples = arguments.side, int(arguments.samples * arguments.side**2)
    found: list[Result] = []
    for count in arguments.counts:
        half = draw_coded_deltas(side, count, samples, arguments.basis, num_basis=count // 2, rank=arguments.rank)
        flat = draw_coded_deltas(side, count, samples, arguments.basis, num_basis=count, form="pranc")
        found.append(
            {
                "coefficients": count,
                "NOLA": coverage(half),
                "PRANC": coverage(flat),
                "LoRA": coverage(draw_lora_deltas(side, count, samples)),
            }
        )
        say(
            f"{count} coefficients: "
            + ", ".join(f"{way} {format_coverage(found[-1][way])}" for way in ("NOLA", "PRANC", "LoRA"))
        )

    def draw(pyplot: Any) -> Any:
        figure, axis = pyplot.subplots(figsize=(6, 4))
        for way, mark in (("NOLA", "o"), ("PRANC", "s"), ("LoRA", "^")):
            points = [(r["coefficients"], r[way][0]) for r in found if r[way] is not None]
            axis.plot(*zip(*points, strict=True), marker=mark, label=way)
        axis.set(
            xscale="log", xlabel="trained coefficients", ylabel=f"rank of the covariance / {side}²",
            title=f"Directions reached by random ΔW of {side} x {side}",
        )  # fmt: skip
        axis.legend()
        return figure

    title = f"Directions of {side} x {side} that random delta_W reach (in brackets: that 99% of the variance takes)"
    rows = [[f"{r['coefficients']:,}", *(format_coverage(r[way]) for way in ("NOLA", "PRANC", "LoRA"))] for r in found]
    everything = {"side": side, "rank": arguments.rank, "samples": samples, "basis": arguments.basis, "coverage": found}
    finish(
        arguments, [(title, ["coefficients", f"NOLA r={arguments.rank}", "PRANC", "LoRA"], rows)], everything, draw
    )  # fmt: skip


if __name__ == "__main__":
    main()
