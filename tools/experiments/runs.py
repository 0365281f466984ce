"""The runs of the experiments on E2E: the settings that each table is made of."""

from __future__ import annotations

from e2e import STEPS, Run

FEW_STEPS = 40
"""Steps of runs that are compared only with one another."""
NOLA_RATE, NOLA_RATIO, LORA_RATE = 0.005, 4, 0.003
"""Learning rates. NOLA's is the best of six settings tried, with four times the rate for lora_B (LoRA+). LoRA's is the
only one tried."""


def lora(rank: int) -> Run:
    """A plain LoRA."""
    return {"method": "lora", "rank": rank, "lr": LORA_RATE, "steps": STEPS, "seed": 0, "bleu": True}


def nola(num_basis: int, **more: object) -> Run:
    """NOLA with as many coefficients for each factor."""
    chosen = {"rank": 8, "num_basis": num_basis, "lr": NOLA_RATE, "ratio": NOLA_RATIO, "steps": STEPS, "seed": 0}
    return {"method": "nola", **chosen, **more}


METHODS: list[Run] = [
    lora(8),
    lora(1),
    nola(128, bleu=True, ptq=[8, 4, 3, 2]),
    nola(32, bleu=True, ptq=[8, 4, 3, 2]),
    {"method": "pranc", "num_basis": 256, "lr": 0.0005, "steps": STEPS, "seed": 0, "bleu": True},
    {"method": "vera", "rank": 256, "lr": 0.01, "steps": STEPS, "seed": 0, "bleu": True},
    {"method": "randlora", "rank": 64, "lr": 0.001, "steps": STEPS, "seed": 0, "bleu": True},
]
QUANTIZED: list[Run] = [nola(128, bits=3), nola(128, bits=2)]
OWN = nola(128, steps=FEW_STEPS)
RANKS: list[Run] = [nola(128, rank=rank, steps=FEW_STEPS) for rank in (1, 8, 32)]
SHARED: list[Run] = [OWN, nola(128, shared=True, steps=FEW_STEPS)]
BASES: list[Run] = [
    nola(32, basis=basis, seed=seed, steps=FEW_STEPS, **({} if basis == "hadamard" else {"kept": True}))
    for seed in (0, 1, 2)
    for basis in ("hadamard", "rademacher", "uniform")
]
