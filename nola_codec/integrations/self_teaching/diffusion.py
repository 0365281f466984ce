"""UNets and transformers of Diffusers: their outputs on noised latents and text embeddings that are drawn at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.adapters import dialect_of, read
from nola_codec.errors import EncodeError, require_package
from nola_codec.integrations.causal import read_model_config, without_bars
from nola_codec.integrations.self_teaching.contract import TeachingRequest
from nola_codec.integrations.self_teaching.diffusion_inputs import MODELS, Inputs
from nola_codec.integrations.self_teaching.placing import hash_adapter, place_adapter, size_of_change
from nola_codec.merger.stored_names import DENOISERS
from nola_codec.model.adapter import Adapter

if TYPE_CHECKING:
    import torch

    from nola_codec.training import TaskTuner

HELD_OUT, VALIDATION = 8, 4
"""The numbers of inputs to report on, and to validate on."""
_PROBED = 4
"""The number of inputs on which the size of the adapter's change is measured."""


class DiffusionModels:
    """The family of denoising models of Diffusers; see `Family`."""

    name = "UNets and transformers of Diffusers"
    batch = 2

    def recognizes(self, base: Path) -> bool:
        """Return True for the folder of a pipeline, or of a model of Diffusers."""
        return (base / "model_index.json").is_file() or "_diffusers_version" in read_model_config(base)

    def make_tuner(self, request: TeachingRequest) -> TaskTuner:
        """Load the denoising model, and return the tuner; see `Family`.

        The inputs are drawn when they are needed: a batch is no more than the seed that it is drawn with.
        """
        from dataclasses import replace

        from nola_codec.training import TaskData, TaskTuner
        from nola_codec.training.task_distance import SquaredError

        if request.prompts is not None:
            message = "a denoising model is taught with text embeddings at random; leave --prompts out"
            raise EncodeError(message, code="task-data", where=str(request.prompts))
        folder = _find_denoiser(request.base)
        adapter = read(request.source, scale=request.scale)
        request.tell("loading the base model")
        model = _load(folder)
        placed = place_adapter(model, adapter, DENOISERS)
        inputs = MODELS[type(model).__name__](model, _betas(request.base))

        def outputs(own: torch.nn.Module, batch: list[int]) -> torch.Tensor:
            made: torch.Tensor = own(**inputs.draw(batch), return_dict=False)[0]
            return made.float()

        # What is drawn is numbered from the seed. Negative numbers are never drawn for training.
        first = request.seed << 20
        probes = [[-1 - first - number] for number in range(VALIDATION, VALIDATION + _PROBED)]
        request.tell("measuring the adapter's change")
        size = size_of_change(placed, adapter, outputs, probes)
        steps, rows = request.settings.steps, request.batch
        data = TaskData(
            train=[[first + step * rows + row for row in range(rows)] for step in range(steps)],
            validation=[[-1 - first - number] for number in range(VALIDATION)],
            held_out=[[-1 - first - number] for number in range(VALIDATION + _PROBED, VALIDATION + _PROBED + HELD_OUT)],
            outputs_fn=lambda own, batch: outputs(own, batch) / size,
            distance=SquaredError(),
            measured="adapter",
            unit="of the squared change that the adapter makes to the output",
            rows=HELD_OUT,
            identity=f"{folder.resolve()} {rows} {hash_adapter(adapter)}",
            description=_describe(inputs, adapter, placed.paths, steps * rows),
        )
        # The change that an adapter makes to the output may be smaller than what bfloat16 rounds away.
        settings = request.settings
        settings = replace(settings, precision="float32") if settings.precision == "auto" else settings
        return TaskTuner(placed, data, settings, request.progress)


def _find_denoiser(base: Path) -> Path:
    """Return the folder of the denoising model: the given one, or the one in a pipeline."""
    folders = [base] if not (base / "model_index.json").is_file() else [base / name for name in sorted(DENOISERS)]
    found = [folder for folder in folders if read_model_config(folder)]
    kinds = [str(read_model_config(folder).get("_class_name")) for folder in found]
    if len(found) == 1 and kinds[0] in MODELS:
        return found[0]
    what = f"found {' and '.join(kinds)}" if found else "found no configuration of one"
    message = (
        f"an adapter can teach its own code with one model of {', '.join(MODELS)}; {what}. For another model, give "
        "encode a TaskTuner with outputs_fn (docs/training.md)"
    )
    raise EncodeError(message, code="base-model", where=str(base))


def _load(folder: Path) -> torch.nn.Module:
    """Return the model of a folder in evaluation mode, float32, on the CPU."""
    require_package("--data self with a model of Diffusers", "diffusers", "diffusers")
    import diffusers
    import torch

    kind = getattr(diffusers, str(read_model_config(folder)["_class_name"]), None)
    if kind is None:
        raise EncodeError("this version of Diffusers has no such model", code="base-model", where=str(folder))
    try:
        with without_bars():
            model: torch.nn.Module = kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncodeError(f"cannot be loaded: {reason}", code="base-model", where=str(folder)) from error
    return model.eval()


def _betas(base: Path) -> dict[str, Any]:
    """Return the configuration of the scheduler of a pipeline; an empty one if there is none."""
    for folder in (base / "scheduler", base.parent / "scheduler"):
        try:
            found = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _describe(inputs: Inputs, adapter: Adapter, placed: dict[str, str], count: int) -> str:
    """Return the sentences for the report."""
    text = (
        f"a {inputs.name} of Diffusers, on {count} inputs drawn at random ({inputs.contents}). Losses compare its "
        "output with the one that it has with the adapter."
    )
    others = [module.name for module in adapter.modules if module.name not in placed]
    if not others:
        return text
    component_of: Callable[[str], str] = dialect_of(adapter).component_of
    names = " and ".join(sorted({component_of(name) for name in others}))
    if len(others) == 1:
        return f"{text} The one module of {names} keeps the code of its weights."
    return f"{text} The {len(others)} modules of {names} keep the code of their weights."
