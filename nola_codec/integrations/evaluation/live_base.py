"""A base model in memory, with one adapter after the other in it, and the same weights again after each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.errors import AdapterError, NolaError, require_package, require_torch
from nola_codec.integrations.causal import load_causal
from nola_codec.integrations.live_models import LoadResult, require_complete

if TYPE_CHECKING:
    import torch

require_torch("nola_codec.integrations.evaluation")

_LONGEST_REASON = 300  # characters
# Parameters that PEFT shares between layers and lists as missing though they were loaded.
_SHARED = ("vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d.")


class LiveBase:
    """A causal language model in memory. There is one at a time: a model that takes its place is loaded instead."""

    def __init__(self, path: Path, dtype: str, device: object) -> None:
        """Load the model; `dtype` is the name of a dtype of PyTorch.

        Raises:
            MissingPackage: ``needs-peft``.
            EncodeError: Those of `load_causal`.
        """
        require_package("an evaluation", "peft", "peft")
        self.path = path
        self._dtype, self._device = dtype, device
        self._model: torch.nn.Module | None = None
        self._weights: Mapping[str, int] = {}
        self._model, self.tokenizer = load_causal(path, dtype, device)
        self._weights = _sum_weights(self._model)

    @property
    def model(self) -> torch.nn.Module:
        """The base model, without any adapter."""
        if self._model is None:
            self._model, _ = load_causal(self.path, self._dtype, self._device)
        return self._model

    @contextmanager
    def with_adapter(self, directory: Path) -> Iterator[torch.nn.Module]:
        """Have PEFT put the adapter of a directory into the model, in this context.

        Raises:
            AdapterError: ``base-mismatch``: PEFT refuses the adapter, or finds keys in it that the model has no place
                for, or lacks keys; ``not-in-model``: the method changes the inputs of a model and not its layers.
        """
        model = self.model
        self._model = None  # whatever fails from here on leaves a model that is not the base model
        adapted = _load_adapter(model, directory, str(self._device))
        yield model
        adapted.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        # Some adapters change weights of the model itself: biases, or what PiSSA takes out of a weight.
        if _sum_weights(model) == self._weights:
            self._model = model.eval()

    @contextmanager
    def with_model(self, directory: Path) -> Iterator[torch.nn.Module]:
        """Load another whole model instead of the base model, in this context.

        Raises:
            EncodeError: Those of `load_causal`.
        """
        self._model = None
        model, _ = load_causal(directory, self._dtype, self._device)
        yield model


def _load_adapter(model: torch.nn.Module, directory: Path, device: str) -> Any:
    """Load an adapter as `PeftModel.from_pretrained` does, which does not tell the keys that it has no place for."""
    import peft

    where = str(directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing keys, which are looked at below
            config = peft.PeftConfig.from_pretrained(where)
            if config.is_prompt_learning:
                message = f"{config.peft_type.value} changes the inputs of a model and not its layers; it has no deltas"
                raise AdapterError(message, code="not-in-model", where=where)
            config.inference_mode = True
            adapted = peft.PeftModel(model, config, "default")
            loaded = adapted.load_adapter(where, "default", torch_device=device)
    except NolaError:
        raise
    except Exception as error:  # PEFT raises what its parts raise
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise AdapterError(f"PEFT cannot load it: {reason}", code="base-mismatch", where=where) from error
    missing = [key for key in loaded.missing_keys if not any(part in key for part in _SHARED)]
    found = LoadResult(tuple(sorted(missing)), tuple(sorted(loaded.unexpected_keys)))
    require_complete(found, where, {"base_model_name_or_path": config.base_model_name_or_path})
    adapted.eval()
    return adapted


def _sum_weights(model: torch.nn.Module) -> dict[str, int]:
    """Return a checksum of the bits of each tensor of a model, which tells whether an adapter left it as it was."""
    import torch

    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(tensor.detach().reshape(-1).view(words[tensor.element_size()]).sum(dtype=torch.int64))
        for name, tensor in model.state_dict().items()
    }
