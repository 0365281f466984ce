"""NOLA training on the codec's own basis: what was trained is what is stored.

    from nola_codec.training import parametrize, save
    parametrize(peft_model, num_basis=128, bits=4)

`parametrize` serves the factors of a PEFT model.
"""

from __future__ import annotations

from nola_codec.training.coded import CodedTensor, Ensemble
from nola_codec.training.peft_model import deparametrize, load, parametrize, save

__all__ = ["CodedTensor", "Ensemble", "deparametrize", "load", "parametrize", "save"]
