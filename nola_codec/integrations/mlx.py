"""MLX: put a `.nola` file into a live language model of mlx-lm.

    from mlx_lm import load as load_model
    from nola_codec.integrations import mlx as nola_mlx

    model, tokenizer = load_model("base")
    nola_mlx.load(model, "task.nola")

mlx-lm's own `load_adapters` puts the factors into the model. PyTorch is not needed.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nola_codec.adapters.registry import dialect_of
from nola_codec.api.decoding import decode_contents
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Source
from nola_codec.errors import AdapterError, require_package
from nola_codec.integrations.live_models import name_of
from nola_codec.references.finding import References

require_package("nola_codec.integrations.mlx", "mlx", "mlx")
require_package("nola_codec.integrations.mlx", "mlx_lm", "mlx")


def load(
    model: Any,
    source: Source,
    *,
    replace: bool = False,
    rung: int | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> Any:
    """Put a `.nola` file into a model of mlx-lm, converted as ``nola-codec decode --format mlx`` does if need be.

    Args:
        model: The model, as `mlx_lm.load` gives it. It is changed in place.
        source: The `.nola` file: a path, a URL, bytes or a binary stream.
        replace: True to remove the adapter that the model has first; mlx-lm's models have one at most.
        rung: The rung of a progressive file, counted from 0; None is the last.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in
            `nola_codec.decode`. None looks beside the file.
        limits: What the file may declare; as in `nola_codec.load`.

    Returns:
        The model.

    Raises:
        AdapterError: ``adapter-exists``; ``base-mismatch``: the file does not fit, and the model has no adapter then;
            ``not-expressible``: MLX has no place for a part of the file, such as several scalings.
        FormatError, ChecksumMismatch: The file is damaged.
        MissingPackage: ``needs-mlx``, ``needs-mlx_lm``.
    """
    from mlx_lm.tuner.utils import load_adapters, remove_lora_layers

    where = name_of(source)
    has_adapter = any(name.rpartition(".")[2] in ("lora_a", "lora_b") for name in _parameter_names(model))
    if has_adapter and not replace:
        message = "the model has an adapter already; replace=True replaces it"
        raise AdapterError(message, code="adapter-exists", where=where)
    contents = decode_contents(
        source, "mlx", base_config=_config_of(model), rung=rung, references=references, limits=limits
    )
    if has_adapter:
        remove_lora_layers(model)
    with tempfile.TemporaryDirectory() as folder:
        dialect_of(contents.adapter).write(contents.adapter, Path(folder) / "adapter", dtype="F32")
        try:
            load_adapters(model, str(Path(folder) / "adapter"))
        except (ValueError, KeyError) as error:
            remove_lora_layers(model)
            reason = " ".join(line.strip() for line in str(error).splitlines()[1:5]) or str(error)
            message = f"it does not fit the model: {reason}"
            raise AdapterError(message, code="base-mismatch", where=where) from error
    return model


def _parameter_names(model: Any) -> list[str]:
    from mlx.utils import tree_flatten

    flat: list[tuple[str, Any]] = tree_flatten(model.parameters())  # type: ignore[assignment] # its types are too wide
    return [name for name, _ in flat]


def _config_of(model: Any) -> Mapping[str, Any] | None:
    """Return what ``config.json`` of the model holds, as far as mlx-lm keeps it."""
    arguments: Any = getattr(model, "args", None)
    return vars(arguments) if dataclasses.is_dataclass(arguments) else None
