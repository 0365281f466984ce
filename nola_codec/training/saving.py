"""`save` and `load`: any parametrized model, to a file and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from nola_codec.adapters.dialects import parameters
from nola_codec.container.reader import Source, open_container
from nola_codec.stores.files import atomic_file, require_free
from nola_codec.training.files import HeaderExtras, encode_group, read_trained_file
from nola_codec.training.network import find_composed_tensors
from nola_codec.training.network_files import load_network, save_network
from nola_codec.training.peft_files import load_adapter, peft_header_extras
from nola_codec.training.state import require_state


def save(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    measured: Mapping[str, float] | None = None,
) -> int:
    """Write what was trained as a `.nola` file, without loss: it decodes to the weights that evaluation uses.

    Args:
        model: A model after `parametrize` or `parametrize_weights`: the file holds the adapter, or the change of
            weights. Or a network with `NolaLinear` and other such layers, or after `parametrize_network`: the file
            holds its whole state dict, with coded weights under the names that they have in a plain network, and all
            other tensors as they are.
        out: The file, which is written whole or not at all.
        overwrite: True to replace a file that is there.
        measured: Figures that the header shall give, such as ``{"loss": 1.37}``.

    Returns:
        The size of the file in bytes.

    Raises:
        EncodeError: ``not-parametrized``, ``not-finite``; ``ensembles`` for layers of several groups;
            ``tied-weights`` for a layer with several paths.
        AdapterError: ``dtype`` for a tensor that a file cannot carry.
        OutputExists: `out` is there and `overwrite` is false.
    """
    if next(find_composed_tensors(model), None) is not None:
        return save_network(model, out, overwrite=overwrite, measured=measured)
    state = require_state(model)
    require_free(Path(out), overwrite=overwrite)
    extras = peft_header_extras(model, state) if state.dialect == "peft" else HeaderExtras(state.dialect)
    data = encode_group(state.group, extras, measured)
    with atomic_file(out) as stream:
        stream.write(data)
    return len(data)


def load(model: nn.Module, source: Source, *, adapter: str = "default") -> nn.Module:
    """Put a file that `save` wrote into a model, to evaluate it or to go on with its training.

    Args:
        model: For the file of an adapter, a PEFT model with the same layers, parametrized alike or not at all; or a
            base model that has no adapter, which then gets the adapter of the file's configuration. For the file of a
            network, that network: made of the same layers, or plain, and then it is parametrized.
        source: The file.
        adapter: The name that a base model's new adapter gets.

    Returns:
        The model; for a base model, the new PEFT model around it.

    Raises:
        FormatError: the file is damaged.
        AdapterError: the configuration in the file is damaged.
        EncodeError: ``not-trained``: not such a file, or one for another model or other options; ``not-peft``: a base
            model that has the layers of an adapter already.
    """
    if next(find_composed_tensors(model), None) is not None or _is_network(source):
        return load_network(model, read_trained_file(source))
    return load_adapter(model, source, adapter=adapter)


def _is_network(source: Source) -> bool:
    """True if a file holds the parameters of a network. A stream is left where it was."""
    at = None if isinstance(source, bytes | bytearray | memoryview | str | os.PathLike) else source.tell()
    with open_container(source) as container:
        found = container.header.dialect == parameters.PARAMETERS.name
    if at is not None and not isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
        source.seek(at)
    return found
