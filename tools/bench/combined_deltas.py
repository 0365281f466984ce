"""Measure what `.nola` files of a trained LoHa and LoKr keep of their task, beside those of a LoRA.

    python tools/bench/combined_deltas.py [--anew] [--json]

A classifier of two layers without training is the base model. Each adapter changes its first layer by 200 steps on
points around ten centres. The losses are those of 2,000 other points. A file's target is an error in its objective:
the effective error for a LoRA, and the NMSE for a LoHa or a LoKr, whose deltas are made of several parts. "Default" is
an encode without a target. One seed; it takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import nola_codec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import results
from page_tables.combined_deltas import kept

METHODS = {"LoRA": "LoraConfig", "LoHa": "LoHaConfig", "LoKr": "LoKrConfig"}
ERRORS = (None, 0.1, 0.3, 0.5)
_INPUTS, _HIDDEN, _CLASSES = 128, 256, 10
_STEPS, _BATCH, _TEST, _RATE, _SPREAD = 200, 64, 2000, 5e-3, 2.5


class Classifier(nn.Module):
    """Two linear layers, of which adapters change the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(_INPUTS, _HIDDEN), nn.Linear(_HIDDEN, _CLASSES)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (points, classes)."""
        logits: torch.Tensor = self.last(torch.relu(self.first(points)))
        return logits


def make_base() -> Classifier:
    """Return the base model, always the same."""
    torch.manual_seed(0)
    return Classifier()


def draw(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points float32 (count, inputs) around the centres of their classes, and the classes."""
    centres = torch.randn(_CLASSES, _INPUTS, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, _CLASSES, (count,), generator=generator)
    return centres[classes] + _SPREAD * torch.randn(count, _INPUTS, generator=generator), classes


@torch.no_grad()
def measure_loss(model: nn.Module) -> float:
    """Return the mean cross entropy of the test points, in nats."""
    points, classes = draw(_TEST, 10**6)
    return float(cross_entropy(model.eval()(points), classes))


def train(method: str, folder: Path) -> None:
    """Train an adapter, and save it as PEFT does."""
    config = getattr(peft, METHODS[method])(r=8, target_modules=["first"])
    base: Any = make_base()
    torch.manual_seed(2)
    model = peft.get_peft_model(base, config)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), _RATE)
    for step in range(_STEPS):
        points, classes = draw(_BATCH, step)
        optimizer.zero_grad()
        cross_entropy(model(points), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.save_pretrained(str(folder))


def load(folder: Path) -> nn.Module:
    """Return the base model with an adapter."""
    base: Any = make_base()
    return peft.PeftModel.from_pretrained(base, str(folder))


def measure(method: str) -> Mapping[str, Any]:
    """Return the losses of the base model, of the adapter and of files made from it."""
    with tempfile.TemporaryDirectory() as made:
        source, decoded, file = Path(made) / "adapter", Path(made) / "decoded", Path(made) / "made.nola"
        train(method, source)
        files = []
        for error in ERRORS:
            options: dict[str, Any] = {} if error is None else {"error": error}
            report = nola_codec.encode(source, file, overwrite=True, **options)
            nola_codec.decode(file, decoded, overwrite=True)
            reached = report.nmse if report.effective_error is None else report.effective_error
            files.append({
                "target": error, "objective": report.objective, "bytes": report.bytes, "error": reached,
                "loss": measure_loss(load(decoded)),
            })  # fmt: skip
        return {"base": measure_loss(make_base()), "adapter": measure_loss(load(source)), "files": files}


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    results.add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for method in METHODS:
        settings = {"method": method, "steps": _STEPS, "seed": 0}
        results.measure("combined_deltas", settings, partial(measure, method), anew=arguments.anew)
    found = results.read("combined_deltas")
    print(json.dumps(found, indent=2) if arguments.json else kept(found))


if __name__ == "__main__":
    main()
