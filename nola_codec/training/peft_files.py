"""Write a PEFT model with coded factors as a `.nola` file in the dialect `peft`, and load such a file."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.container.reader import Source
from nola_codec.decoder.torch_raw import from_torch, to_torch
from nola_codec.errors import EncodeError, mismatch, require_package
from nola_codec.model.tensors import RawTensor
from nola_codec.training.peft_layers import adapter_config, check_adapter_config
from nola_codec.training.peft_model import parametrize
from nola_codec.training.state import TrainingState, find_state, require_state
from nola_codec.training.trained_files import HeaderExtras, TrainedFile, read_trained_file, restore_side

_FACTOR = re.compile(r"\.lora_[AB]\.(weight|nola)$|\.lora_embedding_[AB]$")


def peft_header_extras(model: nn.Module, state: TrainingState) -> HeaderExtras:
    """Return the configuration of a PEFT model, and the tensors that its file carries or draws."""
    config, raw = adapter_config(model, state.adapter), _raw_tensors(model, state)
    draws = PEFT.variant(config).draws(config, raw)
    drawn = {name: (draws[name], raw.pop(name)) for name in draws}
    return HeaderExtras("peft", config, {"format": "pt"}, raw, drawn)


def load_adapter(model: nn.Module, source: Source, *, adapter: str = "default") -> nn.Module:
    """Put a file into a PEFT model or a base model; see `training.load`."""
    trained = read_trained_file(source)
    if trained.header.dialect != "peft":
        message = f"not a file of a trained PEFT adapter: {mismatch('dialect', 'peft', trained.header.dialect)}"
        raise EncodeError(message, code="not-trained")
    if not hasattr(model, "peft_config"):
        model = _add_adapter(model, trained, adapter)
    if find_state(model) is None:
        _parametrize_like(model, trained)
    state = require_state(model)
    _require_same_coding(state, trained)
    for side in state.group.sides:
        restore_side(side, trained)
    state.group.clear_cache()
    if trained.raw:
        from peft import set_peft_model_state_dict

        carried = {key: to_torch(tensor) for key, tensor in trained.raw.items()}
        set_peft_model_state_dict(model, carried, state.adapter)
    return model


def _require_same_coding(state: TrainingState, trained: TrainedFile) -> None:
    """Check that the coding of a model is that of a file. Raises EncodeError ``not-trained``."""
    group = state.group
    wanted = {(side.record, side.index or 0) for side in group.sides}
    if wanted != set(trained.symbols):
        first = min(wanted ^ set(trained.symbols))
        raise EncodeError("is only in the model or only in the file", code="not-trained", where=first[0])
    theirs = trained.coding
    for option in ("basis", "seed", "bits"):
        mine, found = getattr(group.coding, option), getattr(theirs, option)
        if mine != found:
            message = f"the model was parametrized with other options: {mismatch(option, repr(found), repr(mine))}"
            raise EncodeError(message, code="not-trained")
    for record in trained.header.coded:
        if record.name in group.records and group.records[record.name].stream != record.stream:
            message = "the model was parametrized with other options: shared_basis differs"
            raise EncodeError(message, code="not-trained", where=record.name)


def _add_adapter(model: nn.Module, trained: TrainedFile, adapter: str) -> nn.Module:
    """Add a new adapter to a base model, with the configuration in a file."""
    if trained.header.config is None:
        raise EncodeError("the file has no PEFT configuration", code="not-trained")
    stored = dict(trained.header.config)
    check_adapter_config(stored, "the file's configuration")
    require_package("a PEFT adapter", "peft", "peft")
    import peft

    kind: Any = getattr(peft, PEFT.variant(stored).config_class)
    config = kind(**{key: value for key, value in stored.items() if key in kind.__dataclass_fields__})
    config.inference_mode = False
    made: nn.Module = peft.get_peft_model(model, config, adapter_name=adapter)
    return made


def _parametrize_like(model: nn.Module, trained: TrainedFile) -> None:
    """Parametrize a PEFT model with the options that a file was trained with."""
    records = [record for record in trained.header.coded if record.units]
    if not records:
        raise EncodeError("the file has no trained tensors", code="not-trained")
    counts = {record.name: max(record.kind.num_basis) for record in records}
    shared = len({record.stream for record in records}) < len(records)
    parametrize(model, trained.coding, num_basis=counts, shared_basis=shared)


def _raw_tensors(model: nn.Module, state: TrainingState) -> dict[str, RawTensor]:
    """Return the uncoded tensors that PEFT would save: biases, DoRA magnitudes, modules to save, frozen matrices."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=state.adapter)
    coded = state.group.records
    return {k: from_torch(v) for k, v in found.items() if k not in coded and _FACTOR.search(k) is None}
