"""A merge into a lone safetensors file: a model directory of one shard, made for it beside the output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nola_codec.checkpoints.checkpoint import WEIGHTS_NAME
from nola_codec.errors import AdapterError
from nola_codec.merger.request import MergeRequest
from nola_codec.stores.files import require_free


@contextmanager
def lone_file_as_directory(request: MergeRequest) -> Iterator[MergeRequest]:
    """Yield the request of a merge between model directories, which the caller runs; then take the lone file out.

    A killed run is not resumed.

    Args:
        request: The request; its `base` is a file.

    Raises:
        AdapterError: ``needs-file``: `out` is not called ``.safetensors``; ``needs-directory``: `keep_undo` is set.
        OutputExists: `out` is there and may not be replaced.
    """
    base, out = request.base, request.out
    if out.suffix != ".safetensors":
        message = "the base is a lone file: give a path that ends in .safetensors"
        raise AdapterError(message, code="needs-file", where=str(out))
    if request.keep_undo:
        raise AdapterError("what undoes a merge is kept for model directories", code="needs-directory", where=str(base))
    require_free(out, overwrite=request.overwrite)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        model = Path(staging) / "base"
        model.mkdir()
        (model / WEIGHTS_NAME).symlink_to(base.resolve())
        merged = Path(staging) / "merged"
        yield replace(request, base=model, out=merged, overwrite=False)
        os.replace(merged / WEIGHTS_NAME, out)
