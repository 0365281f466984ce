"""The runs of the experiments on E2E: the settings that each table is made of."""

from __future__ import annotations

from e2e import STEPS, Run

FEW_STEPS = 40
"""Steps of runs that are compared only with one another."""
NOLA_RATE, NOLA_RATIO, LORA_RATE = 0.005, 4, 0.003
"""Learning rates. NOLA's is the best of six settings tried, with four times the rate for lora_B (LoRA+). LoRA's is the
only one tried."""
ROUNDED: Run = {"ptq": [8, 4, 3, 2]}
"""Bits that coefficients are rounded to after training, with seed 0."""
SMALL: Run = {"layers": 4, "steps": 20}
"""The last four layers, and few steps: what PRANC and RandLoRA can be compared at on a processor."""


def lora(rank: int, **more: object) -> Run:
    """A plain LoRA."""
    chosen = {"rank": rank, "lr": LORA_RATE, "steps": STEPS, "seed": 0}
    return {"method": "lora", **chosen, **more}


def nola(num_basis: int, **more: object) -> Run:
    """NOLA with as many coefficients for each factor."""
    chosen = {"rank": 8, "num_basis": num_basis, "lr": NOLA_RATE, "ratio": NOLA_RATIO, "steps": STEPS, "seed": 0}
    return {"method": "nola", **chosen, **more}


def shared_out(total: int, **more: object) -> Run:
    """NOLA with one budget for all factors, shared out by the first gradients."""
    return {**{key: value for key, value in nola(0).items() if key != "num_basis"}, "total": total, **more}


def methods(seed: int) -> list[Run]:
    """The ways to fine-tune all layers."""
    vera = {"method": "vera", "rank": 256, "lr": 0.01, "steps": STEPS}
    rounded = ROUNDED if seed == 0 else {}
    longer = nola(128, steps=2 * STEPS)
    runs = [
        lora(8), nola(128, **rounded), longer, nola(1024), lora(1), nola(32, **rounded), shared_out(53_760), vera,
    ]  # fmt: skip
    return [{**run, "seed": seed} for run in runs]


def small_methods(seed: int) -> list[Run]:
    """The ways to fine-tune a few layers, PRANC and RandLoRA among them."""
    runs: list[Run] = [
        lora(8),
        lora(1),
        nola(128),
        {"method": "pranc", "num_basis": 256, "lr": 0.0005},
        {"method": "randlora", "rank": 64, "lr": 0.001},
    ]
    return [{**run, **SMALL, "seed": seed} for run in runs]


def quantized_base(seed: int) -> list[Run]:
    """LoRA and NOLA on a base model whose weights were rounded to 8 bits."""
    return [{**run, "base_bits": 8, "steps": FEW_STEPS, "seed": seed} for run in (lora(8), lora(1), nola(128))]


QUANTIZED: list[Run] = [nola(128, bits=3), nola(128, bits=2)]
OWN = nola(128, steps=FEW_STEPS)
RANKS: list[Run] = [nola(128, rank=rank, steps=FEW_STEPS) for rank in (1, 8, 32)]
SHARED: list[Run] = [OWN, nola(128, shared=True, steps=FEW_STEPS)]
BASES: list[Run] = [
    nola(32, basis=basis, seed=seed, steps=FEW_STEPS, **({} if basis == "hadamard" else {"kept": True}))
    for seed in (0, 1, 2)
    for basis in ("hadamard", "rademacher", "uniform")
]
