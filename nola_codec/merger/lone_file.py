"""Merge into a lone safetensors file, by way of a temporary model directory of one shard."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nola_codec.checkpoints.checkpoint import WEIGHTS_NAME
from nola_codec.errors import AdapterError
from nola_codec.merger.request import MergeReport, MergeRequest
from nola_codec.stores.files import require_free


def merge_as_directory(request: MergeRequest, run_merge: Callable[[MergeRequest], MergeReport]) -> MergeReport:
    """Merge into a lone file by way of a directory beside the output. A killed run is not resumed.

    Args:
        request: The request; its `base` is a file.
        run_merge: A function that merges into a directory.

    Raises:
        AdapterError: ``needs-file``: `out` does not end in ``.safetensors``; ``needs-directory``: `keep_undo` is set;
            and those of a merge.
        OutputExists: `out` exists and may not be replaced.
    """
    base, out = request.base, request.out
    if out.suffix != ".safetensors":
        message = "the base is a lone file: give a path that ends in .safetensors"
        raise AdapterError(message, code="needs-file", where=str(out))
    if request.keep_undo:
        message = "only a merge into a model directory can keep an undo file"
        raise AdapterError(message, code="needs-directory", where=str(base))
    require_free(out, overwrite=request.overwrite)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
        model = Path(staging) / "base"
        model.mkdir()
        (model / WEIGHTS_NAME).symlink_to(base.resolve())
        report = run_merge(replace(request, base=model, out=Path(staging) / "merged", overwrite=False))
        os.replace(report.output / WEIGHTS_NAME, out)
    return replace(report, output=out)
