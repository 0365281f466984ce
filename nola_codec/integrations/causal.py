"""Load causal language models of Transformers from a directory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.errors import EncodeError, require_torch

if TYPE_CHECKING:
    import torch

_CAUSAL = ("ForCausalLM", "LMHeadModel")


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn off the progress bars of Transformers in this context; they would show even if stderr is a file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def read_model_config(base: Path) -> dict[str, Any]:
    """Return the configuration in the folder of a model; an empty one if there is none that can be read."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def architectures_of(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that a configuration says can load the model; an empty list if it says none."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def are_causal(architectures: Sequence[str]) -> bool:
    """Return True if one of the architectures of a configuration is a causal language model."""
    return any(str(kind).endswith(_CAUSAL) for kind in architectures)


def holds_causal(base: Path) -> bool:
    """Return True if the configuration in a folder is that of a causal language model. It never raises.

    A configuration without architectures is judged by its type: one that Transformers knows as a causal language model,
    and not as a masked one as well.
    """
    config = read_model_config(base)
    if names := architectures_of(config):
        return are_causal(names)
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return False
    kind = config.get("model_type")
    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return isinstance(kind, str) and kind in causal and kind not in masked


def require_model_folder(base: Path) -> None:
    """Refuse what is no folder. Raises EncodeError ``base-model``."""
    if base.is_file():
        message = (
            "expected the folder of a model, as Transformers or Diffusers save it, found a file. A model in GGUF, or "
            "in one file, cannot be run here: give the folder that it was made from"
        )
        raise EncodeError(message, code="base-model", where=str(base))
    if not base.is_dir():
        raise EncodeError("no such directory", code="base-model", where=str(base))


def load_tokenizer(base: Path) -> Any:
    """Return the tokenizer of the folder of a model. Raises EncodeError ``base-model`` if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base)
    except Exception as error:  # the packages behind a tokenizer raise errors of their own
        message = (
            "its tokenizer cannot be loaded: the folder needs tokenizer.json, or the files that came with the model "
            f"(Transformers says: {' '.join(str(error).split())[:200]})"
        )
        raise EncodeError(message, code="base-model", where=str(base)) from error


def load_causal(base: Path, dtype: str = "float32", device: object = "cpu") -> tuple[torch.nn.Module, Any]:
    """Load the causal language model of a directory, in evaluation mode, and its tokenizer.

    Args:
        base: A Transformers model directory.
        dtype: The name of the dtype of its weights in PyTorch.
        device: The device of the model, anything that `torch.device` takes.

    Raises:
        MissingPackage: ``needs-torch``.
        EncodeError: ``base-model``: Transformers is missing, or cannot run the model as a causal language model.
    """
    require_torch("running the base model")
    require_model_folder(base)
    import torch

    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise EncodeError(
            "this runs the base model with Transformers: pip install 'nola-codec[peft]'",
            code="base-model",
        ) from error
    if (base / "model_index.json").is_file():
        message = "expected a causal language model, found a pipeline of Diffusers"
        raise EncodeError(message, code="base-model", where=str(base))
    try:
        kinds = AutoConfig.from_pretrained(base).architectures or ()
        if kinds and not are_causal(kinds):
            # AutoModelForCausalLM would give it an output layer of random weights.
            message = f"expected a causal language model, found {', '.join(kinds)}"
            raise EncodeError(message, code="base-model", where=str(base))
        with without_bars():
            tokenizer = load_tokenizer(base)
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncodeError(f"cannot be loaded: {reason}", code="base-model", where=str(base)) from error
    return model.to(device).eval(), tokenizer


def use_plain_attention(model: Any) -> None:
    """Compute a model's attention by plain matrix products on a CPU, which makes a training step an eighth faster.

    PyTorch's fused attention has no fast backward pass on a CPU. Models that offer no choice stay as they are.
    """
    choose = getattr(model, "set_attn_implementation", None)
    if choose is not None and next(model.parameters()).device.type == "cpu":
        with suppress(ValueError, NotImplementedError):
            choose("eager")
