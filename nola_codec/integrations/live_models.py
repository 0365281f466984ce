"""Try a change on a copy of a model without numbers, so that a change that does not fit never begins on the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nola_codec.container.reader import Source
from nola_codec.errors import AdapterError
from nola_codec.remote import is_url, shown_url
from nola_codec.rendering import list_first
from nola_codec.stores.files import display_name

if TYPE_CHECKING:
    import torch

    from nola_codec.api.decoding import DecodedContents

_LISTED = 2
_LINES = 5
_LONGEST_NAME = 100


@dataclass(frozen=True)
class LoadResult:
    """What a library says of a state dict that it loaded.

    Attributes:
        missing: The tensors of the adapter that the model has and the file has not.
        unexpected: The tensors that the file has and the model has no place for.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def without_numbers(model: torch.nn.Module) -> torch.nn.Module | None:
    """Return a copy of a model on the device ``meta``, which takes no memory for weights.

    Returns:
        The copy; None for a model that cannot be copied, or whose hooks (of Accelerate) hold weights themselves.
    """
    import torch

    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return None

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
    with suppress(Exception):  # a model of another library may hold anything, also what cannot be copied
        made: torch.nn.Module = copy.deepcopy(model, memo)
        return made
    return None


def require_fit(
    model: torch.nn.Module,
    attempt: Callable[[Any], LoadResult],
    where: str,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Check that a file fits a model, with the real library and without changing the model.

    Args:
        model: The model.
        attempt: Loads the file into a model with the library.
        where: The file's name, for messages.
        config: The configuration of the adapter, of which the message gives the base model.

    Raises:
        AdapterError: ``base-mismatch``: it does not fit; the message names what has no place.
    """
    trial = without_numbers(model)
    if trial is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = attempt(trial)
    except NotImplementedError:  # a step that needs numbers, as one of DoRA's: only the model itself can tell
        return
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        message = f"it does not fit the model: {_reason(error).rstrip('.')}. {_question(config)}"
        raise AdapterError(message, code="base-mismatch", where=where) from error
    require_complete(result, where, config)


def require_complete(result: LoadResult, where: str, config: Mapping[str, Any] | None = None) -> None:
    """Raise AdapterError ``base-mismatch`` if tensors are missing or unexpected.

    The message names them, and the base model in the configuration of the adapter.
    """
    lines = []
    if result.missing:
        found = list_first(result.missing, _LISTED)
        lines.append(f"it lacks {len(result.missing)} tensors that the model needs: {found}")
    if result.unexpected:
        found = list_first(result.unexpected, _LISTED)
        lines.append(f"the model has no place for {len(result.unexpected)} tensors of it: {found}")
    if lines:
        message = f"it does not fit the model: {'; '.join(lines)}. {_question(config)}"
        raise AdapterError(message, code="base-mismatch", where=where)


def _question(config: Mapping[str, Any] | None) -> str:
    """Return what to check when an adapter does not fit."""
    named = (config or {}).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return "Is it the adapter of another model?"
    shown = named if len(named) <= _LONGEST_NAME else f"{named[:_LONGEST_NAME]}..."
    return f"It names {shown!r} as its base model; is this that model?"


def base_config_of(model: Any) -> Mapping[str, Any] | None:
    """Return what ``config.json`` of a live model would hold; None if the model has no configuration."""
    config = getattr(model, "config", None)
    if isinstance(config, Mapping):  # diffusers
        return dict(config)
    to_dict = getattr(config, "to_dict", None)
    return dict(to_dict()) if callable(to_dict) else None


def to_torch_tensors(contents: DecodedContents) -> dict[str, torch.Tensor]:
    """Return the tensors of a decoded adapter as tensors of PyTorch, on the CPU."""
    from nola_codec.decoder.torch_raw import to_torch

    return {key: to_torch(tensor) for key, tensor in contents.tensors.items()}


def adapter_keys(keys: Iterable[str], adapter_name: str) -> list[str]:
    """Return the keys that belong to an adapter of a live model."""
    return [key for key in keys if f".{adapter_name}." in key or key.endswith(f".{adapter_name}")]


def missing_keys(model: torch.nn.Module, missing: Iterable[str], adapter_name: str) -> list[str]:
    """Return the tensors of an adapter that a library calls missing, without those that are another one's too.

    Tied embeddings share the rows that were trained, and all layers of VeRA the frozen factors. A file has them once.
    """
    absent = set(missing)
    keys = adapter_keys(absent, adapter_name)
    if not keys:
        return keys
    tensors: dict[str, object] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= model.named_buffers(remove_duplicate=False)
    there = {id(tensor) for key, tensor in tensors.items() if key not in absent}
    return sorted(key for key in keys if id(tensors.get(key)) not in there)


def name_of(source: Source) -> str:
    """Return the name that messages give a `.nola` file; of a URL without secrets in it."""
    return shown_url(source) if isinstance(source, str) and is_url(source) else display_name(source)


def _reason(error: Exception) -> str:
    """Return the first lines of an error of another library as one line."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = " ".join(lines[:_LINES])
    if len(lines) > _LINES:
        shown += f" and {len(lines) - _LINES} more"
    return shown[:1000]
