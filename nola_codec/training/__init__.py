"""Train tensors as coefficients over the codec's own basis (NOLA, arXiv 2310.02556); a file then stores them exactly.

    from nola_codec.training import parametrize, save
    parametrize(peft_model, num_basis=128, bits=4)
    ...                                                 # any training loop
    save(peft_model, "task.nola")

`Coding` describes how tensors are coded. Each front takes a `Coding`, or its fields as keywords:

    parametrize          the factors of a PEFT model (LoRA), or its diagonals (VeRA, RandLoRA)
    parametrize_weights  changes of any network's own weights
    parametrize_network  weights of a network that is trained from scratch
    NolaLinear, NolaConv2d, NolaEmbedding, NolaParameter    layers to build a network of

Coded tensors that go into one file are a `TensorGroup`. `TaskTuner` trains the coefficients of `encode(fit="task")`.

    coding.py, quantizer.py, synthesis.py       Coding; rounding and synthesis as steps that autograd knows
    coded.py, composed.py, group.py             a tensor as coefficients; a product of two; all of one file
    peft_model.py, peft_layers.py, peft_files.py    PEFT models; attach.py puts an adapter beside running layers
    weights.py                                  changes of any network's weights
    network.py, layers.py, network_files.py     networks that are trained from scratch
    saving.py, trained_files.py, state.py       `save` and `load`; files in factor form; what a model remembers
    task.py, task_code.py                       `fit="task"`: the training; the coded vectors
    task_data.py, task_distance.py, task_teacher.py    its data and settings; distances to the adapter; its kept outputs
    task_worth.py                               what each component contributes to the outputs

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_codec.errors import require_torch
from nola_codec.lazy import lazy_names

require_torch("nola_codec.training")

if TYPE_CHECKING:
    from nola_codec.training.coded import CodedTensor
    from nola_codec.training.coding import Coding, CodingOptions
    from nola_codec.training.group import TensorGroup
    from nola_codec.training.layers import NolaConv2d, NolaEmbedding, NolaLinear, NolaParameter
    from nola_codec.training.network import parametrize_network
    from nola_codec.training.peft_model import deparametrize, parametrize
    from nola_codec.training.saving import load, save
    from nola_codec.training.task import TaskTuner
    from nola_codec.training.task_data import TaskData, TaskSettings
    from nola_codec.training.task_distance import Distance, Divergence, SquaredError
    from nola_codec.training.weights import CodedDelta, parametrize_weights

_MODULES = {
    "CodedDelta": "weights",
    "CodedTensor": "coded",
    "Coding": "coding",
    "CodingOptions": "coding",
    "Distance": "task_distance",
    "Divergence": "task_distance",
    "NolaConv2d": "layers",
    "NolaEmbedding": "layers",
    "NolaLinear": "layers",
    "NolaParameter": "layers",
    "SquaredError": "task_distance",
    "TaskData": "task_data",
    "TaskSettings": "task_data",
    "TaskTuner": "task",
    "TensorGroup": "group",
    "deparametrize": "peft_model",
    "load": "saving",
    "parametrize": "peft_model",
    "parametrize_network": "network",
    "parametrize_weights": "weights",
    "save": "saving",
}

__all__ = [
    "CodedDelta",
    "CodedTensor",
    "Coding",
    "CodingOptions",
    "Distance",
    "Divergence",
    "NolaConv2d",
    "NolaEmbedding",
    "NolaLinear",
    "NolaParameter",
    "SquaredError",
    "TaskData",
    "TaskSettings",
    "TaskTuner",
    "TensorGroup",
    "deparametrize",
    "load",
    "parametrize",
    "parametrize_network",
    "parametrize_weights",
    "save",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
