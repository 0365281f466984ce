"""NOLA training on the codec's own basis: what was trained is what is stored.

    from nola_codec.training import parametrize, save
    parametrize(peft_model, num_basis=128, bits=4)

`parametrize` serves the factors of a PEFT model, `parametrize_weights` any network's own weights.
"""

from __future__ import annotations

from nola_codec.training.coded import CodedTensor, Ensemble
from nola_codec.training.peft_model import deparametrize, load, parametrize
from nola_codec.training.saving import save
from nola_codec.training.task import TaskData, TaskSettings, TaskTuner
from nola_codec.training.weights import CodedDelta, parametrize_weights

__all__ = [
    "CodedDelta",
    "CodedTensor",
    "Ensemble",
    "TaskData",
    "TaskSettings",
    "TaskTuner",
    "deparametrize",
    "load",
    "parametrize",
    "parametrize_weights",
    "save",
]
