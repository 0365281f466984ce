"""Diffusers: put a `.nola` file into a live pipeline or model.

    from nola_codec.integrations import diffusers as nola_diffusers

    nola_diffusers.load(pipeline, "style.nola", adapter_name="style")

The file may be of any dialect of image models (kohya, Diffusers, PEFT and so on); it is converted as ``nola-codec
decode --format diffusers`` does. Diffusers' own loaders read the result with its alphas, so the bits are those of the
decoded file.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nola_codec.adapters.dialects.paths import component_of
from nola_codec.adapters.registry import dialect_of
from nola_codec.api.decoding import DecodedContents, decode_contents
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Source
from nola_codec.errors import AdapterError, require_package, require_torch
from nola_codec.integrations.live_models import LoadResult, base_config_of, name_of, require_fit
from nola_codec.references.finding import References
from nola_codec.rendering import list_first

require_torch("nola_codec.integrations.diffusers")
require_package("nola_codec.integrations.diffusers", "diffusers", "diffusers")
require_package("nola_codec.integrations.diffusers", "peft", "peft")

_WEIGHTS = "pytorch_lora_weights.safetensors"
_DENOISERS = ("unet", "transformer")


def load(
    target: Any,
    source: Source,
    *,
    adapter_name: str = "default",
    replace: bool = False,
    rung: int | None = None,
    device: object = "cpu",
    references: References = None,
    limits: Limits | None = None,
) -> None:
    """Put a `.nola` file into a pipeline or a model of Diffusers, by its `load_lora_weights` or `load_lora_adapter`.

    Args:
        target: A pipeline; or its UNet or transformer alone, for a file that has modules of that alone.
        source: The `.nola` file: a path, a URL, bytes or a binary stream.
        adapter_name: The name of the adapter.
        replace: True to remove an adapter of that name first.
        rung: The rung of a progressive file, counted from 0; None is the last.
        device: The device that factors are synthesized on; it changes no bit.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in
            `nola_codec.decode`. None looks beside the file.
        limits: What the file may declare; as in `nola_codec.load`.

    Raises:
        AdapterError: ``adapter-exists``; ``base-mismatch``: the file does not fit, or has modules of a component that
            the target has not; ``source-type``: the target is neither; ``not-expressible``: Diffusers has no place for
            a part of the file.
        FormatError, ChecksumMismatch: The file is damaged.
        MissingPackage: ``needs-torch``, ``needs-diffusers``, ``needs-peft``.
    """
    where = name_of(source)
    is_pipeline = hasattr(target, "load_lora_weights")
    if not is_pipeline and not hasattr(target, "load_lora_adapter"):
        message = f"expected a pipeline or a model of Diffusers, found {type(target).__name__}"
        raise AdapterError(message, code="source-type", where=where)
    contents = decode_contents(
        source,
        "diffusers",
        base_config=_config_of(target, is_pipeline),
        rung=rung,
        device=device,
        references=references,
        limits=limits,
    )
    found = Counter(component_of(key) for key in contents.tensors)
    models = _models(target, is_pipeline, tuple(found), where)
    taken = [name for name, model in models.items() if adapter_name in (getattr(model, "peft_config", None) or {})]
    if taken and not replace:
        message = f"{', '.join(taken)} has an adapter {adapter_name!r}; replace=True replaces it"
        raise AdapterError(message, code="adapter-exists", where=where)
    with tempfile.TemporaryDirectory() as folder:
        # Only the loaders of files read the metadata, which holds the alphas.
        path = dialect_of(contents.adapter).write(contents.adapter, Path(folder) / _WEIGHTS, dtype="F32")
        for name, model in models.items():
            if hasattr(model, "load_lora_adapter"):
                require_fit(model, _attempt(path, name), where)
        if taken:
            target.delete_adapters(adapter_name)
        if is_pipeline:
            target.load_lora_weights(folder, weight_name=_WEIGHTS, adapter_name=adapter_name, local_files_only=True)
        else:
            (name,) = models
            target.load_lora_adapter(str(path), prefix=name or None, adapter_name=adapter_name, use_safetensors=True)
    _require_loaded(models, contents, adapter_name, where)


def _attempt(path: Path, component: str) -> Callable[[Any], LoadResult]:
    def attempt(trial: Any) -> LoadResult:
        with _without_log():
            trial.load_lora_adapter(
                str(path), prefix=component or None, adapter_name="nola_trial", use_safetensors=True
            )
        return LoadResult()

    return attempt


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep Diffusers from logging that a trial failed: the error says it, or only the model itself can tell."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("diffusers.loaders.peft")
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


def _config_of(target: Any, is_pipeline: bool) -> Mapping[str, Any] | None:
    """Return the configuration of the denoiser, which some names of modules depend on."""
    if not is_pipeline:
        return base_config_of(target)
    denoisers = (getattr(target, name, None) for name in _DENOISERS)
    return next((base_config_of(model) for model in denoisers if model is not None), None)


def _models(target: Any, is_pipeline: bool, components: tuple[str, ...], where: str) -> dict[str, Any]:
    """Return the model of each component that a file has modules of; ``""`` stands for a file of one model alone.

    Raises:
        AdapterError: ``base-mismatch``.
    """
    if is_pipeline:
        models = {name: getattr(target, name, None) for name in components}
        missing = [name or "one model, which it does not name" for name, model in models.items() if model is None]
        if not missing:
            return models
        message = f"it has modules of {', '.join(missing)}, and {type(target).__name__} has no such component"
        raise AdapterError(message, code="base-mismatch", where=where)
    if len(components) == 1:
        return {components[0]: target}
    message = f"it has modules of several components ({', '.join(components)}); give the pipeline, not one model of it"
    raise AdapterError(message, code="base-mismatch", where=where)


def _require_loaded(models: Mapping[str, Any], contents: DecodedContents, adapter_name: str, where: str) -> None:
    """Check that every tensor of the file is in its model now, since Diffusers only logs what it did not use.

    Raises:
        AdapterError: ``base-mismatch``; the adapter is removed again.
    """
    import peft

    for component, model in models.items():
        is_there = adapter_name in (getattr(model, "peft_config", None) or {})
        loaded = peft.get_peft_model_state_dict(model, adapter_name=adapter_name) if is_there else {}
        wanted = [key for key in contents.tensors if component_of(key) == component and ".lora" in key]
        if len(loaded) < len(wanted):
            lost = [key for key in wanted if key.removeprefix(f"{component}.") not in loaded]
            for each in models.values():
                if adapter_name in (getattr(each, "peft_config", None) or {}) and hasattr(each, "delete_adapters"):
                    each.delete_adapters(adapter_name)
            message = f"{component} took {len(loaded)} of its {len(wanted)} tensors; without {list_first(lost, 3)}"
            raise AdapterError(message, code="base-mismatch", where=where)
