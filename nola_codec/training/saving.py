"""`save` and `load`: write any parametrized model to a file, and read it back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from nola_codec.adapters.dialects import parameters
from nola_codec.container.reader import Source, open_container
from nola_codec.remote import accepts_urls
from nola_codec.stores.files import atomic_file, require_free
from nola_codec.training.network import find_composed_tensors
from nola_codec.training.network_files import load_network, save_network
from nola_codec.training.peft_files import load_adapter, peft_header_extras
from nola_codec.training.state import require_state
from nola_codec.training.trained_files import HeaderExtras, encode_group, read_trained_file


@accepts_urls(out="out")
def save(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    measured: Mapping[str, float] | None = None,
) -> int:
    """Write a parametrized model as a `.nola` file, without loss: it decodes to the weights that evaluation uses.

    After `parametrize` or `parametrize_weights`, the file holds the adapter or the change of weights. After
    `parametrize_network`, and for a network with `NolaLinear` and other such layers, it holds the whole state dict:
    coded weights under the names that they have in a plain network, and all other tensors as they are.

    Args:
        model: A parametrized model or network.
        out: The file, which is written whole or not at all.
        overwrite: True if an existing file may be replaced.
        measured: Figures for the header, such as ``{"loss": 1.37}``.

    Returns:
        The size of the file in bytes.

    Raises:
        EncodeError: ``not-parametrized``, ``not-finite``; ``ensembles`` for layers of several groups;
            ``tied-weights`` for a layer with several paths.
        AdapterError: ``dtype`` for a tensor that a file cannot carry.
        OutputExists: `out` exists and `overwrite` is False.
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
    """Load a file that `save` wrote into a model, to evaluate the model or to resume its training.

    The file of an adapter goes into a PEFT model with the same layers, parametrized with the same options or not at
    all; or into a base model without an adapter, which then gets an adapter with the file's configuration. The file of
    a network goes into a network with the same layers; a plain network is parametrized first.

    Args:
        model: The model.
        source: The file.
        adapter: The name of the new adapter, if the model is a base model.

    Returns:
        The model; for a base model, the new PEFT model around it.

    Raises:
        FormatError: The file is damaged.
        AdapterError: The configuration in the file is damaged.
        EncodeError: ``not-trained``: the file was not written by `save`, or is for another model or other options;
            ``not-peft``: the base model has the layers of an adapter already.
    """
    if next(find_composed_tensors(model), None) is not None or _is_network(source):
        return load_network(model, read_trained_file(source))
    return load_adapter(model, source, adapter=adapter)


def _is_network(source: Source) -> bool:
    """Return True if a file holds the parameters of a network. A stream keeps its position."""
    at = None if isinstance(source, bytes | bytearray | memoryview | str | os.PathLike) else source.tell()
    with open_container(source) as container:
        found = container.header.dialect == parameters.PARAMETERS.name
    if at is not None and not isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
        source.seek(at)
    return found
