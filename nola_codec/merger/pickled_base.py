"""Read a base model from PyTorch's pickles, by way of a temporary copy of its weights in safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nola_codec.checkpoints.weights_files import find_pickles, find_weights
from nola_codec.errors import AdapterError
from nola_codec.merger.model_directory import copy_other_files
from nola_codec.merger.request import MergeRequest
from nola_codec.stores.files import dump_json
from nola_codec.stores.pickle_io import open_pickle
from nola_codec.stores.replacing import temporary_beside
from nola_codec.stores.safetensors_writer import write_file


@contextmanager
def unpickled_base(request: MergeRequest) -> Iterator[MergeRequest]:
    """Yield the request with a base of safetensors files, which is the base itself unless it has only pickles.

    Pickles hold plain tensors and are read as `open_pickle` reads them, one file at a time. The temporary copy takes
    their size on disk, beside the output. The merged model is written in safetensors.

    Args:
        request: The request; its `base` is a model directory.

    Raises:
        AdapterError: ``needs-safetensors``: `keep_undo` is set; ``pickle``, ``bad-index`` and others for a file that
            cannot be read.
        MissingPackage: ``needs-torch``.
    """
    pickles = None if find_weights(request.base) else find_pickles(request.base)
    if pickles is None:
        yield request
        return
    if request.keep_undo:
        message = "an undo file restores safetensors and not pickles; convert the model to safetensors first"
        raise AdapterError(message, code="needs-safetensors", where=str(request.base))
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(request.out, is_directory=True) as staging:
        model = staging / "base"
        model.mkdir()
        copy_other_files(request.base, model)
        weight_map: dict[str, str] = {}
        for name, shard in pickles.shards.items():
            with open_pickle(request.base / shard) as store:
                write_file(model / name, {key: store.read(key) for key in store.tensors}, {"format": "pt"})
                weight_map |= dict.fromkeys(store.tensors, name)
        if pickles.index:
            (model / pickles.safetensors_index).write_bytes(dump_json({"metadata": {}, "weight_map": weight_map}))
        yield replace(request, base=model)
