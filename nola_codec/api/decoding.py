"""`decode`, `verify`: a file back to an adapter or into a model's weights, and checked through and through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nola_codec import adapters
from nola_codec.adapters import AnySource, delta
from nola_codec.adapters.checkpoint import Checkpoint
from nola_codec.adapters.files import require_free
from nola_codec.adapters.merging import merge_directory, plan_merge
from nola_codec.api.dense import merge_delta
from nola_codec.api.modules import decoded_module, merge_target
from nola_codec.api.opened import DTYPES, check_rungs
from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.merge import merge_raw
from nola_codec.encoder.options import Progress
from nola_codec.errors import AdapterError
from nola_codec.model import Adapter, RawTensor, VectorTensor


def decode(
    source: Source,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str = "f32",
    rung: int | None = None,
    device: object = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Decode to an adapter, or into the weights of a model.

    Args:
        source: The `.nola` file.
        out: A directory; or, without `base`, a path that ends in ``.safetensors``.
        base: A Transformers model directory; the merged model goes to `out`, weights in the base's own dtypes.
        dtype: Of an adapter's factors: f32 is exact, f16 and bf16 round once.
        rung: Of a progressive file: as if it ended with this rung, counted from 0.
        device: Where factors are synthesized and multiplied; it changes no bit.
        overwrite: Replace an output that is there.
        progress: Called as (stage, done, total).

    Raises:
        FormatError, ChecksumMismatch: the file is damaged, or the decoded digest is not the encoder's.
        AdapterError: ``base-mismatch`` and others when the base does not fit.
        OutputExists: `out` is there and `overwrite` is false.
    """
    require_free(Path(out), overwrite=overwrite)
    xp: Arrays = NUMPY if str(device) == "cpu" else TorchArrays(device)
    with open_container(source, rung=rung) as container:
        container.check_content()
        decoder = Decoder(container, xp)
        if base is not None and container.header.dialect == delta.name:
            return merge_delta(decoder, Path(base), Path(out), overwrite=overwrite, progress=progress)
        if base is not None:
            return _merge(decoder, Path(base), Path(out), overwrite=overwrite, progress=progress)
        adapter = _adapter(decoder, progress)
        return adapters.write(adapter, out, dtype=DTYPES[dtype], overwrite=overwrite)


def verify(source: Source) -> dict[str, Any]:
    """Check a file through and through: layout, checksums, and the digest of what each rung decodes to.

    Returns:
        ``bytes``, ``tensors``, ``content_sha256`` and ``factors_sha256`` (hexadecimal).

    Raises:
        FormatError, ChecksumMismatch: what is wrong, and where.
    """
    with open_container(source) as container:
        container.check_content()
        check_rungs(container)
        return {
            "bytes": container.file_length,
            "tensors": len(container.header.coded) + len(container.header.raw),
            "content_sha256": container.prelude.content_sha256.hex(),
            "factors_sha256": container.header.factors_sha256.hex(),
        }


def read_adapter(source: AnySource) -> Adapter:
    """An adapter from a `.nola` file or anything that `encode` reads, as NumPy arrays."""
    if isinstance(source, str | os.PathLike) and Path(source).is_file():
        with Path(source).open("rb") as stream:
            is_nola = stream.read(4) == b"\x89NLA"
        if is_nola:
            with open_container(os.fspath(source)) as container:
                return _adapter(Decoder(container, NUMPY), None)
    return adapters.read(source)


def _adapter(decoder: Decoder, progress: Progress | None) -> Adapter:
    header = decoder.header
    factors, vectors = decoder.checked(lambda done: progress("decode", done, len(header.coded)) if progress else None)
    modules = [decoded_module(r, f, decoder.xp) for r, f in zip(header.lowrank, factors, strict=True)]
    raw = {record.name: decoder.raw(i) for i, record in enumerate(header.raw)}
    tensors = [
        VectorTensor(record.name, decoder.xp.numpy(vector.float32(decoder.xp)), record.kind.dtype)
        for record, vector in zip(header.vectors, vectors, strict=True)
    ]
    return Adapter(header.dialect, tuple(modules), raw, header.config, header.metadata, tuple(tensors))


def _merge(decoder: Decoder, base: Path, out: Path, *, overwrite: bool, progress: Progress | None) -> Path:
    header = decoder.header
    if header.vectors:
        raise AdapterError(f"tensors coded as vectors ({header.vectors[0].name}, ...) cannot be merged in this dialect",
                           code="merge-vectors", where=decoder.container.name)  # fmt: skip
    raw = {record.name: decoder.raw(i) for i, record in enumerate(header.raw)}
    checkpoint = Checkpoint(base)
    plan = plan_merge(checkpoint, [merge_target(r) for r in header.lowrank], raw, header.config)
    numbers = {record.name: i for i, record in enumerate(header.lowrank)}
    decoded, _ = decoder.checked()
    done = 0

    def merge_weight(name: str, weight: RawTensor) -> RawTensor:
        nonlocal done
        match = plan.matches[name]
        index = numbers[match.module]
        done += 1
        if progress is not None:
            progress("merge", done, len(plan.matches))
        return merge_raw(weight, decoded[index], header.lowrank[index].kind, decoder.xp, transposed=match.transposed)

    return merge_directory(base, out, plan, merge_weight, overwrite=overwrite)
