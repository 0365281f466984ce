"""Turn adapters of PEFT methods that are not coded into LoRA, with PEFT's own conversion.

PEFT makes the delta of each layer and keeps the strongest components of its SVD (`peft.convert_to_lora`). Methods whose
delta is not added to the weight have no such conversion.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.adapters.sources import CONFIG_NAME, WEIGHTS_NAME
from nola_codec.errors import AdapterError, require_package, require_torch
from nola_codec.progress import Progress
from nola_codec.remote import accepts_urls
from nola_codec.stores.files import atomic_directory, read_json

if TYPE_CHECKING:
    import os

    import torch

require_torch("nola_codec.integrations.peft_conversion")

ENERGY = 0.9999
"""The share of the squared norm of each delta that the conversion keeps."""

# The classes of Transformers that `peft.auto` takes for a type of task.
_CLASSES: Mapping[str, str] = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        method: PEFT's name of the method, its ``peft_type``.
        ranks: The smallest and the largest rank of the new factors.
        nmse: The share of the squared norm of all deltas that the conversion lost.
    """

    method: str
    ranks: tuple[int, int]
    nmse: float

    @property
    def note(self) -> str:
        """The sentence for the user."""
        low, high = self.ranks
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        return f"PEFT turned {self.method} into LoRA of {ranks}, which lost {self.nmse:.2g} of the deltas' energy"


@accepts_urls("source", "base", out="out")
def convert(
    source: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Conversion:
    """Write the LoRA that is nearest to a PEFT adapter, as a PEFT directory.

    Args:
        source: The directory of the adapter, for which `peft_methods.is_convertible` is True.
        base: The directory of the base model. It is loaded in float32.
        out: The directory to write. It must not exist.
        progress: Called as (stage, done, total), or None.

    Raises:
        MissingPackage: ``needs-peft``: PEFT is not installed.
        AdapterError: ``base-mismatch``: the adapter does not fit the base model; ``not-convertible``: PEFT refuses the
            conversion, such as for convolutions; ``not-found``: there is no such directory.
    """
    require_package("converting adapters of other PEFT methods", "peft", "peft")
    if not Path(base).is_dir():
        raise AdapterError("no such directory", code="not-found", where=str(base))
    config = read_json(Path(source) / CONFIG_NAME)
    import peft
    from safetensors.torch import save_file

    tell = progress or (lambda stage, done, total: None)
    tell("loading the base model", 0, 0)
    model = _load(Path(source), Path(base), config)
    tell("converting by PEFT", 0, 0)
    try:
        lora, state = peft.convert_to_lora(model, rank=ENERGY)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AdapterError(f"PEFT cannot convert it: {error}", code="not-convertible", where=str(source)) from error
    state = {key: tensor.detach().float().contiguous() for key, tensor in state.items()}
    ranks = [len(tensor) for key, tensor in state.items() if key.endswith(".lora_A.weight")]
    tell("measuring the LoRA", 0, 0)
    nmse = _measure(model, state)
    with atomic_directory(Path(out), replace=False) as directory:
        lora.inference_mode = True
        lora.save_pretrained(str(directory))
        save_file(state, directory / WEIGHTS_NAME, metadata={"format": "pt"})
        written = directory / CONFIG_NAME
        # PEFT writes sets in the order of their hashes, which differs between runs.
        written.write_text(json.dumps(json.loads(written.read_text()), indent=2, sort_keys=True))
    return Conversion(str(config["peft_type"]), (min(ranks), max(ranks)), nmse)


def _load(source: Path, base: Path, config: Mapping[str, Any]) -> Any:
    """Load the base model with the adapter on it. Raises AdapterError ``base-mismatch``."""
    import peft
    import torch
    import transformers

    from nola_codec.integrations.causal import without_bars

    name = _CLASSES.get(str(config.get("task_type")))
    try:
        if name is None:
            kinds = transformers.AutoConfig.from_pretrained(base).architectures or ["AutoModel"]
            name = kinds[0]
        with without_bars(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = getattr(transformers, name).from_pretrained(base, dtype=torch.float32)
            loaded = peft.PeftModel.from_pretrained(model, source)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AdapterError(f"PEFT cannot load {source}: {reason}", code="base-mismatch", where=str(base)) from error
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        message = f"PEFT finds other modules in it than {source} has: {missing[0].splitlines()[0]:.200}"
        raise AdapterError(message, code="base-mismatch", where=str(base))
    return loaded.eval()


def _measure(model: Any, state: Mapping[str, torch.Tensor]) -> float:
    """Return the share of the squared norm of the deltas that the new factors lose. The model is merged by this."""
    import torch

    modules = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    inner = [name.removeprefix("base_model.model.") for name in modules]
    before = {name: model.get_submodule(f"base_model.model.{name}").get_base_layer().weight.clone() for name in inner}
    with torch.no_grad():
        merged = model.merge_and_unload()
        lost = energy = 0.0
        for module, name in zip(modules, inner, strict=True):
            delta = (merged.get_submodule(name).weight - before.pop(name)).double()
            product = state[f"{module}.lora_B.weight"].double() @ state[f"{module}.lora_A.weight"].double()
            product = product if product.shape == delta.shape else product.T
            lost += float((delta - product).square().sum())
            energy += float(delta.square().sum())
    return lost / energy if energy else 0.0
