"""Merge into a lone file, by way of a temporary model directory of one shard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nola_codec.checkpoints.weights_files import WEIGHTS_NAME
from nola_codec.errors import AdapterError
from nola_codec.merger.request import MergeRequest
from nola_codec.stores.files import GGUF_MAGIC, ZIP_MAGIC, is_pickle, require_free
from nola_codec.stores.open_store import open_store
from nola_codec.stores.replacing import sync_directory, temporary_beside
from nola_codec.stores.safetensors_writer import write_file


@contextmanager
def lone_file_as_directory(request: MergeRequest) -> Iterator[MergeRequest]:
    """Yield the request of a merge between model directories, which the caller runs; then take the lone file out.

    A killed run is not resumed.

    Args:
        request: The request; its `base` is a file.

    Raises:
        AdapterError: ``needs-file``: `out` is not called ``.safetensors``; ``needs-directory``: `keep_undo` is set;
            ``quantized-base``: `base` is a GGUF file; ``pickle`` and others for a pickle that cannot be read.
        OutputExists: `out` is there and may not be replaced.
    """
    base, out = request.base, request.out
    if out.suffix != ".safetensors":
        message = "the base is a lone file: give a path that ends in .safetensors"
        raise AdapterError(message, code="needs-file", where=str(out))
    if request.keep_undo:
        message = "only a merge into a model directory can keep an undo file"
        raise AdapterError(message, code="needs-directory", where=str(base))
    require_free(out, overwrite=request.overwrite)
    with temporary_beside(out, is_directory=True) as staging:
        model = staging / "base"
        model.mkdir()
        _put_weights(base, model / WEIGHTS_NAME)
        merged = staging / "merged"
        try:
            yield replace(request, base=model, out=merged, overwrite=False)
        except AdapterError as error:
            raise _under_own_name(error, model, base) from error
        os.replace(merged / WEIGHTS_NAME, out)  # synced when its journal was closed
        sync_directory(out.parent)


def _put_weights(base: Path, target: Path) -> None:
    """Put the weights of a lone file into a safetensors file: by a link, or by a copy of a pickle's tensors."""
    with base.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(GGUF_MAGIC):
        message = (
            "a GGUF file of llama.cpp; merge into the safetensors model that it was made from, and convert the result"
        )
        raise AdapterError(message, code="quantized-base", where=str(base))
    if head.startswith(ZIP_MAGIC) or is_pickle(head):
        with open_store(base) as store:
            write_file(target, {name: store.read(name) for name in store.tensors}, {"format": "pt"})
    else:
        target.symlink_to(base.resolve())


def _under_own_name(error: AdapterError, model: Path, base: Path) -> AdapterError:
    """Return an error with the name under which the user knows the base, in the place of the temporary one."""
    for staged in (str(model / WEIGHTS_NAME), str(model)):
        if error.where == staged or error.where.startswith(f"{staged}: "):
            where = str(base) + error.where[len(staged) :]
            return AdapterError(str(error)[len(error.where) + 2 :], code=error.code, where=where)
    return error
