"""PEFT: put a `.nola` file into a live model, and encode the adapter of one.

    from nola_codec.integrations import peft as nola_peft

    model = nola_peft.load(base_model, "task.nola")
    nola_peft.save(model, "task.nola", size="50KB")

Nothing is written to disk on the way. The model gets the same bits as from `nola-codec decode` and
`PeftModel.from_pretrained`.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nola_codec.adapters.sources import CONFIG_NAME, WEIGHTS_NAME
from nola_codec.api.decoding import DecodedContents, decode_contents
from nola_codec.api.encoding import encode
from nola_codec.api.live_sources import open_model, unwrap
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Source
from nola_codec.encoder.report import EncodeReport
from nola_codec.errors import AdapterError, require_package, require_torch
from nola_codec.integrations.live_models import (
    LoadResult,
    adapter_keys,
    base_config_of,
    missing_keys,
    name_of,
    require_complete,
    require_fit,
    to_torch_tensors,
)
from nola_codec.integrations.swapping import fit_live_ranks, is_swappable, set_live_config
from nola_codec.references.finding import References
from nola_codec.stores.files import dump_json

require_torch("nola_codec.integrations.peft")
require_package("nola_codec.integrations.peft", "peft", "peft")

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from nola_codec.api.keywords import EncodeKeywords


def load(
    model: torch.nn.Module,
    source: Source,
    *,
    adapter_name: str = "default",
    replace: bool = False,
    is_trainable: bool = False,
    autocast_adapter_dtype: bool = True,
    rung: int | None = None,
    base: str | os.PathLike[str] | None = None,
    device: object = "cpu",
    references: References = None,
    limits: Limits | None = None,
) -> Any:
    """Put a `.nola` file into a model as an adapter of PEFT. A file that does not fit leaves the model as it was.

    A base model is wrapped, and the adapter is active. A `PeftModel` gets one more adapter beside its own; as in PEFT,
    ``model.set_adapter(adapter_name)`` makes it the active one. A file of another dialect (MLX, kohya, a change of a
    whole model and so on) is converted as ``decode --format peft`` does.

    Args:
        model: The base model, or a `PeftModel`; it may be compiled.
        source: The `.nola` file: a path, a URL, bytes or a binary stream.
        adapter_name: The name of the adapter in the model.
        replace: True to replace an adapter of that name. If the new tensors fit into the live ones, they are copied
            into them (a smaller rank is filled with zeros), so that optimizers, compiled graphs and the active adapter
            stay valid; the scalings are set too. Otherwise the adapter is removed and made anew.
        is_trainable: True to train the adapter on; False freezes it and puts the model into evaluation mode. An
            adapter that is replaced in place keeps its state.
        autocast_adapter_dtype: As in PEFT: factors in float16 and bfloat16 become float32.
        rung: The rung of a progressive file, counted from 0; None is the last.
        base: The directory of the base model, for files that hold changes of its tensors.
        device: The device that factors are synthesized on; it changes no bit.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in
            `nola_codec.decode`. None looks beside the file.
        limits: What the file may declare; as in `nola_codec.load`.

    Returns:
        The `PeftModel`; if a `PeftModel` or a compiled one was given, that object.

    Raises:
        AdapterError: ``adapter-exists``: there is an adapter of that name, and `replace` is False; ``base-mismatch``:
            the file does not fit the model; the message names tensors that are missing, unexpected or of other shapes;
            ``merged-adapter``: the adapter to replace is merged into the weights; ``not-peft``: layers of the base
            model have an adapter already, outside of a `PeftModel`; ``not-expressible``, ``needs-base``.
        FormatError, ChecksumMismatch: The file is damaged.
        MissingPackage: ``needs-torch``, ``needs-peft``.
    """
    import peft

    given, model, where = model, unwrap(model), name_of(source)
    is_wrapped = isinstance(model, peft.PeftModel)
    if not is_wrapped and getattr(model, "peft_config", None):
        message = (
            "the model has an adapter already, outside of a PeftModel; give the PeftModel, or use "
            "nola_codec.integrations.transformers.load"
        )
        raise AdapterError(message, code="not-peft", where=type(model).__name__)
    exists = is_wrapped and adapter_name in model.peft_config  # type: ignore[operator]
    if exists and not replace:
        message = f"the model has an adapter {adapter_name!r}; replace=True replaces it, adapter_name=... adds another"
        raise AdapterError(message, code="adapter-exists", where=where)
    contents = decode_contents(
        source,
        "peft",
        base=base,
        base_config=base_config_of(model),
        rung=rung,
        device=device,
        references=references,
        limits=limits,
        change=lambda adapter: fit_live_ranks(adapter, model, adapter_name) if exists else adapter,
    )
    options = _Options(adapter_name, is_trainable, autocast_adapter_dtype)
    if exists:
        return _replace(given, model, contents, options, where)
    require_fit(model, lambda trial: _add(trial, contents, options)[1], where, contents.config)
    made, result = _add(model, contents, options)
    require_complete(result, where, contents.config)
    _require_loaded(made, adapter_name, where)
    return given if is_wrapped else made


def save(
    model: torch.nn.Module,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    adapter_name: str | None = None,
    size: int | str | None = None,
    overwrite: bool = False,
    carry_unknown: bool = False,
    base: str | os.PathLike[str] | None = None,
    **options: Unpack[EncodeKeywords],
) -> EncodeReport:
    """Encode an adapter of a live model, with its live configuration; the file is that of its `save_pretrained`.

    Args:
        model: A `PeftModel`, or a model of Transformers or Diffusers with an adapter.
        out: The path or the binary stream that the file is written to; None only reports.
        adapter_name: The name of the adapter; None is the only one, or the only active one.
        size: The most bytes that the file may take, as a number or as ``"50KB"``.
        overwrite: True if an existing file may be replaced.
        carry_unknown: As in `nola_codec.encode`.
        base: As in `nola_codec.encode`.
        options: As in `nola_codec.encode`.

    Raises:
        AdapterError, EncodeError, OutputExists: Those of `nola_codec.encode`; ``no-adapter``, ``which-adapter``.
    """
    store, config = open_model(model, adapter_name)
    return encode(
        store, out, size=size, config=config, overwrite=overwrite, carry_unknown=carry_unknown, base=base, **options
    )


def _require_loaded(model: Any, adapter_name: str, where: str) -> None:
    """Raise AdapterError ``no-data`` if the adapter got no numbers, since the layers of the model have none either."""
    places = {key: parameter.device.type for key, parameter in model.named_parameters()}
    empty = [key for key in adapter_keys(places, adapter_name) if places[key] == "meta"]
    if empty:
        message = f"{len(empty)} tensors lie on the device meta ({empty[0]}); load the weights of the model first"
        raise AdapterError(message, code="no-data", where=where)


class _Options:
    """The options of `load` that all steps need."""

    def __init__(self, adapter_name: str, is_trainable: bool, autocast_adapter_dtype: bool) -> None:
        self.name = adapter_name
        self.is_trainable = is_trainable
        self.autocast = autocast_adapter_dtype


def _add(model: Any, contents: DecodedContents, options: _Options) -> tuple[Any, LoadResult]:
    """Put a new adapter into a model as `PeftModel.from_pretrained` and `PeftModel.load_adapter` do."""
    import peft

    if _needs_directory(model):
        return _add_from_directory(model, contents, options)
    config = _peft_config(contents.config)
    config.inference_mode = not options.is_trainable
    wrapped: Any
    if isinstance(model, peft.PeftModel):
        model.add_adapter(options.name, config, autocast_adapter_dtype=options.autocast)
        if options.is_trainable:
            model.set_requires_grad(options.name)
        wrapped = model
    else:
        kind: Any = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
        wrapped = kind(model, config, options.name, autocast_adapter_dtype=options.autocast)
    result = _set_tensors(wrapped, contents, options.name)
    if hasattr(wrapped.base_model, "_cast_adapter_dtype"):
        wrapped.base_model._cast_adapter_dtype(adapter_name=options.name, autocast_adapter_dtype=options.autocast)
    if not options.is_trainable:
        wrapped.eval()
    return wrapped, result


def _set_tensors(model: Any, contents: DecodedContents, name: str) -> LoadResult:
    """Copy the tensors of a file into an adapter of a `PeftModel`."""
    import peft

    result: Any = peft.set_peft_model_state_dict(model, to_torch_tensors(contents), adapter_name=name)
    return LoadResult(tuple(missing_keys(model, result.missing_keys, name)), tuple(result.unexpected_keys))


def _replace(given: Any, model: Any, contents: DecodedContents, options: _Options, where: str) -> Any:
    """Replace an adapter, in place if the new one fits into it."""
    name = options.name
    if any(name in getattr(module, "merged_adapters", ()) for module in model.modules()):
        message = f"the adapter {name!r} is merged into the weights; call model.unmerge_adapter() first"
        raise AdapterError(message, code="merged-adapter", where=where)
    config = _peft_config(contents.config)
    if is_swappable(model, name, config) and _set_in_place(model, contents, name):
        set_live_config(model, name, config, contents.adapter)
        return given
    require_fit(model, lambda trial: _renew(trial, contents, options), where, contents.config)
    require_complete(_renew(model, contents, options), where, contents.config)
    return given


def _set_in_place(model: Any, contents: DecodedContents, name: str) -> bool:
    """Copy the tensors of a file into a live adapter; return False, and leave it as it was, if they do not fit."""
    import torch

    parameters = dict(model.named_parameters())
    changed = {*adapter_keys(parameters, name), *(parameters.keys() & contents.tensors.keys())}
    before = {key: parameters[key].detach().clone() for key in changed}
    try:
        result = _set_tensors(model, contents, name)
        fits = not (result.missing or result.unexpected)
    except (RuntimeError, KeyError):  # tensors of other shapes, or modules that are not saved
        fits = False
    if not fits:
        with torch.no_grad():
            for key, tensor in before.items():
                parameters[key].copy_(tensor)
    return fits


def _renew(model: Any, contents: DecodedContents, options: _Options) -> LoadResult:
    """Remove an adapter and add the new one; the active adapters and what is trained stay as they were."""
    active = list(model.active_adapters)
    gradients = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    model.delete_adapter(options.name)
    if not model.active_adapters:  # PEFT cannot add one to layers that have none active
        model.base_model.active_adapter = options.name
    _, result = _add(model, contents, options)
    if len(active) == 1:
        model.set_adapter(active[0])
    else:
        model.base_model.set_adapter(active)
    own = set(adapter_keys((key for key, _ in model.named_parameters()), options.name))
    for key, parameter in model.named_parameters():
        if key in own:
            parameter.requires_grad_(options.is_trainable)
        elif key in gradients:
            parameter.requires_grad_(gradients[key])
    return result


def _peft_config(config: Mapping[str, Any]) -> Any:
    """Return a configuration as PEFT's object, as `PeftConfig.from_pretrained` makes it of the JSON."""
    import peft

    return peft.PeftConfig.from_peft_type(**config)  # type: ignore[no-untyped-call]


def _needs_directory(model: Any) -> bool:
    """Return True for a model of whose weights some are not in its modules, or whose modules were renamed since.

    Only PEFT's readers of directories have the rules for these: hooks of Accelerate that are taken off and put on
    again, and the renames of Transformers.
    """
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    return bool(places & {"cpu", "disk"}) or bool(_renames(model))


def _renames(model: Any) -> dict[str, str] | None:
    # Not `get_base_model`, which needs an active adapter; the one to replace was just removed.
    inner = getattr(model.base_model, "model", model.base_model) if hasattr(model, "peft_config") else model
    return getattr(inner, "_checkpoint_conversion_mapping", None) or None


def _add_from_directory(model: Any, contents: DecodedContents, options: _Options) -> tuple[Any, LoadResult]:
    """Put a new adapter into a model with PEFT's readers of directories."""
    import peft
    from safetensors.torch import save_file

    more: dict[str, Any] = {"is_trainable": options.is_trainable, "autocast_adapter_dtype": options.autocast}
    with tempfile.TemporaryDirectory() as folder:
        save_file(to_torch_tensors(contents), Path(folder) / WEIGHTS_NAME, dict(contents.metadata))
        (Path(folder) / CONFIG_NAME).write_bytes(dump_json(contents.config))
        if isinstance(model, peft.PeftModel):
            result = model.load_adapter(folder, options.name, key_mapping=_renames(model), **more)
            missing = missing_keys(model, result.missing_keys, options.name)
            return model, LoadResult(tuple(missing), tuple(result.unexpected_keys))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = peft.PeftModel.from_pretrained(model, folder, options.name, **more)
    said = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    return made, LoadResult(tuple(said))
