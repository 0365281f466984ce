"""Adapters that are in memory: mappings of tensors, and models that PEFT has put an adapter into.

They are sources like files. `open_live` gives the encoder what it would find in the directory that the model's own
`save_pretrained` writes: the same tensors under the same keys, and the same configuration.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from nola_codec.adapters import AnySource
from nola_codec.adapters.sources import PEFT_PREFIX, Readable
from nola_codec.api.arguments import ConfigObject, plain_config, require_source
from nola_codec.errors import AdapterError, require_package
from nola_codec.model.tensors import RawTensor
from nola_codec.rendering import list_first
from nola_codec.stores.dtypes import TORCH_NAMES, from_numpy, numpy_name
from nola_codec.stores.live_store import LiveStore
from nola_codec.stores.tensor_store import TensorInfo

if TYPE_CHECKING:
    import torch


class ModelWithAdapter(Protocol):
    """A model with an adapter: a `PeftModel`, or a model of Transformers or Diffusers after `add_adapter`."""

    peft_config: Any


AdapterInput: TypeAlias = "AnySource | Mapping[str, Any] | ModelWithAdapter | LiveStore"
"""Whatever an adapter can be read from: a path, bytes, a binary stream, a mapping of tensors, a live model."""

Config: TypeAlias = "Mapping[str, Any] | ConfigObject | None"

_MOST_TENSORS = 500_000


def open_live(source: AdapterInput, config: Config = None) -> tuple[Readable, dict[str, Any] | None]:
    """Return a source that dialects can read, and the configuration to read it with.

    Args:
        source: The source. One that is not in memory comes back as it is.
        config: The configuration that the caller gave, or None. A model has its own.

    Raises:
        AdapterError: ``source-type``: it is no source; ``bad-config``; ``which-adapter``: the model has several
            adapters, and not one of them alone is active; ``no-adapter``: it has none; and those of `live_store`.
        MissingPackage: ``needs-peft``.
    """
    require_adapter(source)
    if isinstance(source, LiveStore):
        return source, plain_config(config)
    if isinstance(source, Mapping):
        return live_store(source, "(tensors)"), plain_config(config)
    if _is_model(source):
        if config is not None:
            message = "config is for tensors, and a model has a configuration of its own; leave it out"
            raise AdapterError(message, code="bad-config")
        return open_model(source)
    return source, plain_config(config)  # type: ignore[return-value] # `require_adapter` refuses all others


def require_adapter(source: object) -> None:
    """Refuse an object that no adapter can be read from. Raises AdapterError ``source-type``."""
    if not isinstance(source, LiveStore | Mapping) and not _is_model(source):
        require_source(source)


def open_model(model: Any, adapter_name: str | None = None) -> tuple[LiveStore, dict[str, Any]]:
    """Return the tensors and the configuration of one adapter of a model, as `save_pretrained` would write them.

    Args:
        model: A `PeftModel`, a model of Transformers or Diffusers with an adapter, or one of these compiled or wrapped.
        adapter_name: The name of the adapter; None is the only one, or the only active one.

    Raises:
        AdapterError: ``source-type``, ``which-adapter``, ``no-adapter``, and those of `live_store`.
        MissingPackage: ``needs-peft``.
    """
    model = unwrap(model)
    name = choose_adapter(model, adapter_name)
    require_package("reading the adapter of a model", "peft", "peft")
    import peft

    _refuse_parametrized(model)
    with warnings.catch_warnings():
        # PEFT says that it also saves embeddings which the adapter targets; the report of an encode says it too.
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")
        state = peft.get_peft_model_state_dict(model, adapter_name=name)
    if not any(key.startswith("base_model.") for key in state):
        state = {PEFT_PREFIX + key: tensor for key, tensor in state.items()}  # as `save_pretrained` of both libraries
    return live_store(state, f"({type(model).__name__}, adapter {name!r})"), _live_config(model, name)


def choose_adapter(model: Any, adapter_name: str | None) -> str:
    """Return the name of the adapter that is meant; arguments and errors as in `open_model`."""
    names = list(getattr(model, "peft_config", None) or {})
    where = type(model).__name__
    if adapter_name is not None:
        if adapter_name not in names:
            found = list_first(names, 5) if names else "none"
            raise AdapterError(f"no adapter named {adapter_name!r}; it has {found}", code="no-adapter", where=where)
        return adapter_name
    if not names:
        message = (
            "the model has no adapter; put one in with peft.get_peft_model, or give encode_delta the directory of a "
            "whole model that was trained"
        )
        raise AdapterError(message, code="no-adapter", where=where)
    if len(names) == 1:
        return str(names[0])
    active = getattr(model, "active_adapters", None) or []
    active = list(active() if callable(active) else active)
    if len(active) == 1 and active[0] in names:
        return str(active[0])
    message = (
        f"the model has {len(names)} adapters ({list_first(names, 5)}), and {len(active)} are active; name one: "
        "nola_codec.integrations.peft.save(model, out, adapter_name=...)"
    )
    raise AdapterError(message, code="which-adapter", where=where)


def unwrap(model: Any) -> Any:
    """Return the model inside `torch.compile` and the wrappers of distributed training."""
    for _ in range(8):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner
    return model


def live_store(tensors: Mapping[str, Any], name: str, metadata: Mapping[str, str] | None = None) -> LiveStore:
    """Return a mapping of tensors as a store; each is turned into bytes when it is read.

    Args:
        tensors: Tensors of PyTorch, or arrays that NumPy can take, by key.
        name: What messages call the mapping.
        metadata: What the ``__metadata__`` of a safetensors file would say; None is that it is PyTorch's.

    Raises:
        AdapterError: ``source-type``: a key is no text, or a value is no tensor; ``unknown-dtype``; ``no-data``: a
            tensor is on the device ``meta``; ``limit``: there are too many.
    """
    if len(tensors) > _MOST_TENSORS:
        raise AdapterError(f"{len(tensors)} tensors, over {_MOST_TENSORS}", code="limit", where=name)
    infos: dict[str, TensorInfo] = {}
    readers: dict[str, Callable[[], RawTensor]] = {}
    for key, value in tensors.items():
        where = f"{name}: {str(key)[:80]}"
        if not isinstance(key, str):
            raise AdapterError(f"expected a text as key, found {key!r:.80}", code="source-type", where=name)
        infos[key], readers[key] = _torch_tensor(value, where) if _is_torch(value) else _array(value, where)
    return LiveStore(infos, lambda key: readers[key](), name=name, metadata=metadata or {"format": "pt"})


def _is_model(source: object) -> bool:
    return hasattr(source, "named_modules") and hasattr(source, "state_dict")


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")  # a tensor of PyTorch is only there if PyTorch was imported
    return torch is not None and isinstance(value, torch.Tensor)


def _torch_tensor(tensor: torch.Tensor, where: str) -> tuple[TensorInfo, Callable[[], RawTensor]]:
    import torch

    from nola_codec.decoder.torch_raw import from_torch

    name = str(tensor.dtype).removeprefix("torch.")
    dtype = next((key for key, value in TORCH_NAMES.items() if value == name), None)
    if dtype is None or tensor.layout is not torch.strided or tensor.is_quantized:
        message = f"expected a plain tensor of a dtype that safetensors has, found {tensor.dtype} {tensor.layout}"
        raise AdapterError(message, code="unknown-dtype", where=where)
    if tensor.device.type == "meta":
        message = "the tensor is on the device meta and has no numbers; load the weights of the model first"
        raise AdapterError(message, code="no-data", where=where)

    def read() -> RawTensor:
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor is spread over devices
        return from_torch(whole.detach().resolve_conj().resolve_neg())

    return TensorInfo(dtype, tuple(tensor.shape)), read


def _array(value: Any, where: str) -> tuple[TensorInfo, Callable[[], RawTensor]]:
    if not isinstance(value, np.ndarray):
        if not hasattr(value, "__array__") or not hasattr(value, "shape"):
            found = f"{type(value).__module__}.{type(value).__qualname__}"
            raise AdapterError(f"expected a tensor, found {found}", code="source-type", where=where)
        value = np.asarray(value)
    dtype = numpy_name(value.dtype)
    if dtype is None:
        raise AdapterError(f"no dtype of a tensor file: {value.dtype}", code="unknown-dtype", where=where)
    return TensorInfo(dtype, value.shape), lambda: from_numpy(value)


def _refuse_parametrized(model: Any) -> None:
    """Refuse a model in NOLA training, whose coefficients a file holds without loss."""
    from nola_codec.training.state import find_state

    if find_state(model) is not None:
        message = (
            "the adapter is trained as coefficients already; nola_codec.training.save(model, out) writes them exactly"
        )
        raise AdapterError(message, code="parametrized", where=type(model).__name__)


def _live_config(model: Any, name: str) -> dict[str, Any]:
    """Return the configuration as `save_pretrained` writes it; Transformers' own writes it as it is."""
    config = copy.copy(model.peft_config[name])
    is_wrapped = hasattr(model, "get_base_model")
    if is_wrapped:
        config.inference_mode = True
    if getattr(config, "base_model_name_or_path", None) is None:
        inner = model.get_base_model() if is_wrapped else model
        base = inner.__dict__.get("name_or_path", None)
        config.base_model_name_or_path = os.fspath(base) if base else None
    plain = plain_config(config)
    assert plain is not None
    if is_wrapped and plain.get("task_type") is None:
        base_class = type(model.get_base_model())
        plain["auto_mapping"] = {"base_model_class": base_class.__name__, "parent_library": base_class.__module__}
    return plain
