"""The runs of the experiments on E2E: which settings each table is made of."""

from __future__ import annotations

from e2e import STEPS, Run

NOLA_RATE, LORA_RATE = 0.012, 0.003
"""Learning rates, of the best of a few tried for 40 steps (0.001 to 0.04)."""
SEED = 0


def lora(rank: int, **more: object) -> Run:
    """A plain LoRA."""
    return {"method": "lora", "rank": rank, "lr": LORA_RATE, "steps": STEPS, "seed": SEED, "bleu": True, **more}


def nola(num_basis: int, **more: object) -> Run:
    """NOLA with as many coefficients for each factor."""
    return {"method": "nola", "rank": 8, "num_basis": num_basis, "lr": NOLA_RATE, "steps": STEPS, "seed": SEED, **more}


METHODS: list[Run] = [
    lora(8),
    lora(1),
    nola(128, bleu=True, ptq=[8, 4, 3, 2]),
    nola(32, bleu=True, ptq=[8, 4, 3, 2]),
    {"method": "pranc", "num_basis": 256, "lr": 0.0005, "steps": STEPS, "seed": SEED, "bleu": True},
    {"method": "vera", "rank": 256, "lr": 0.01, "steps": STEPS, "seed": SEED, "bleu": True},
    {"method": "randlora", "rank": 64, "lr": 0.001, "steps": STEPS, "seed": SEED, "bleu": True},
]
QUANTIZED: list[Run] = [nola(128, bits=3), nola(128, bits=2)]
RANKS: list[Run] = [nola(128, rank=rank) for rank in (1, 2, 4)]
SHARED: list[Run] = [nola(128, shared=True)]
BASES: list[Run] = [
    nola(32, basis=basis, seed=seed, steps=40, **({} if basis == "hadamard" else {"kept": True}))
    for seed in (0, 1, 2)
    for basis in ("hadamard", "rademacher", "uniform")
]
EVERY: list[Run] = [*METHODS, *QUANTIZED, *RANKS, *SHARED, *BASES]
