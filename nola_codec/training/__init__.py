"""NOLA training on the codec's own basis: what was trained is what is stored.

    from nola_codec.training import parametrize, save
    parametrize(peft_model, num_basis=128, bits=4)

`parametrize` serves the factors of a PEFT model, `parametrize_weights` changes of any network's own weights;
`parametrize_network` trains weights from scratch, and `NolaLinear`, `NolaConv2d`, `NolaEmbedding` and `NolaParameter`
are there to build a network of.
"""

from __future__ import annotations

import nola_codec.training.requires  # noqa: F401 - before what imports torch
from nola_codec.training.coded import CodedTensor, Ensemble
from nola_codec.training.composed import NolaParameter, ensemble
from nola_codec.training.layers import NolaConv2d, NolaEmbedding, NolaLinear
from nola_codec.training.network import parametrize_network
from nola_codec.training.peft_model import deparametrize, parametrize
from nola_codec.training.saving import load, save
from nola_codec.training.task import TaskData, TaskSettings, TaskTuner
from nola_codec.training.weights import CodedDelta, parametrize_weights

__all__ = [
    "CodedDelta",
    "CodedTensor",
    "Ensemble",
    "NolaConv2d",
    "NolaEmbedding",
    "NolaLinear",
    "NolaParameter",
    "TaskData",
    "TaskSettings",
    "TaskTuner",
    "deparametrize",
    "ensemble",
    "load",
    "parametrize",
    "parametrize_network",
    "parametrize_weights",
    "save",
]
