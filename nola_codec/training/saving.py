"""`save` and `load`: whatever was parametrized, as a file and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from nola_codec.adapters.dialects import parameters
from nola_codec.container.reader import Source, open_container
from nola_codec.stores.files import atomic_file, require_free
from nola_codec.training import peft_model
from nola_codec.training.ensembles import state_of
from nola_codec.training.files import Dress, file_bytes, read_trained
from nola_codec.training.network import places
from nola_codec.training.network_files import load_network, save_network
from nola_codec.training.peft_model import peft_dress


def save(
    model: nn.Module,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    measured: Mapping[str, float] | None = None,
) -> int:
    """Write what was trained as a `.nola` file, without loss: it decodes to the weights that evaluation uses.

    Args:
        model: Parametrized by `parametrize` or `parametrize_weights`: the file is the adapter, or the change. Or a
            network with `NolaLinear` and other such layers, or after `parametrize_network`: the file is its whole state
            dict, coded weights under the names that they have in a plain network, all else as it is.
        out: The file, written whole or not at all.
        overwrite: Replace a file that is there.
        measured: What the header shall say was measured, e.g. ``{"loss": 1.37}``.

    Returns:
        Its size in bytes.

    Raises:
        EncodeError: ``not-parametrized``, ``not-finite``; ``ensembles`` for layers that were not made with one;
            ``tied-weights`` for a layer with several paths.
        AdapterError: ``dtype`` for a tensor that a file cannot carry.
        OutputExists: `out` is there and `overwrite` is false.
    """
    if next(places(model), None) is not None:
        return save_network(model, out, overwrite=overwrite, measured=measured)
    state = state_of(model)
    require_free(Path(out), overwrite=overwrite)
    dress = peft_dress(model, state) if state.dialect == "peft" else Dress(state.dialect)
    data = file_bytes(state.ensemble, dress, measured)
    with atomic_file(out) as stream:
        stream.write(data)
    return len(data)


def load(model: nn.Module, source: Source, *, adapter: str = "default") -> nn.Module:
    """Put a file that `save` wrote into a model, ready to be evaluated or trained on.

    Args:
        model: For a file of an adapter, a PEFT model with the same layers, parametrized alike or not at all; or a base
            model, which then gets the adapter of the file's configuration. For a file of a network, that network: made
            of the same layers, or plain, and then it is parametrized.
        source: The file.
        adapter: Name of a new adapter, for a base model.

    Returns:
        The model.

    Raises:
        FormatError: the file is damaged.
        AdapterError: its configuration is.
        EncodeError: ``not-trained``: not such a file, or for another model or other options.
    """
    if next(places(model), None) is not None or _is_network(source):
        return load_network(model, read_trained(source))
    return peft_model.load(model, source, adapter=adapter)


def _is_network(source: Source) -> bool:
    """Whether a file holds a network's parameters; a stream is left where it was."""
    at = None if isinstance(source, bytes | bytearray | memoryview | str | os.PathLike) else source.tell()
    with open_container(source) as container:
        found = container.header.dialect == parameters.PARAMETERS.name
    if at is not None and not isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
        source.seek(at)
    return found
