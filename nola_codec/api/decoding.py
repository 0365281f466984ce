"""`decode`, `verify`, `read_adapter`: a file back to an adapter, or into a model's weights; and its full check."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.adapters.base_changes import restore_from_base
from nola_codec.adapters.beside_files import split_beside
from nola_codec.adapters.registry import dialect_of, write
from nola_codec.api.arguments import require_path, require_source
from nola_codec.api.checking import check_content, check_rungs
from nola_codec.api.opened import stored_dtype
from nola_codec.arrays import NUMPY, arrays_on
from nola_codec.container.limits import Limits
from nola_codec.container.prelude import MAGIC
from nola_codec.container.reader import Source, open_container
from nola_codec.decoder.adapters import decode_adapter
from nola_codec.errors import NolaError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.progress import Progress
from nola_codec.references.finding import References, open_decoder
from nola_codec.remote import accepts_urls
from nola_codec.rendering import render_scalings
from nola_codec.stores.files import AnySource, require_free
from nola_codec.stores.tensor_files import is_tensor_file

if TYPE_CHECKING:
    from nola_codec.api.live_sources import AdapterInput, Config

_MAGIC = MAGIC[:4]


@accepts_urls("base", nola="source", out="out")
def decode(
    source: Source,
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    rung: int | None = None,
    format: str | None = None,
    device: object = "cpu",
    trim: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> Path | str:
    """Decode to an adapter, or into the weights of a model.

    The content SHA-256 and the decoded SHA-256 are compared before anything is given out.

    Args:
        source: The `.nola` file.
        out: A directory; or, for an adapter, a path that ends as a tensor file does: ``.safetensors``, ``.npz``,
            ``.bin``, ``.pt``, ``.gguf``.
        base: A model directory. The merged model goes to `out`, weights in the base's own dtypes, as `merge` does.
        format: Write an adapter in this dialect and not in its own. Nothing
            is merged then, and `base` serves for names, and for tensors whose changes the file holds.
        dtype: The dtype of an adapter's factors: f32 (the default) is exact, f16 and bf16 round once. A merge takes
            none.
        rung: The rung of a progressive file, counted from 0: the file is seen as if it ended there. None is the last.
        device: The device that factors are synthesized and multiplied on; it changes no bit.
        trim: Leave out components that are zero, so that ranks are as small as the dialect allows. The deltas stay the
            same to the bit. Only an adapter can be trimmed.
        overwrite: Replace an output that is there.
        progress: Called as (stage, done, total).
        note: Called with each sentence that the user should read: what was trimmed or rounded, and what a lone file
            cannot hold.
        references: Where the earlier version is that a file needs which was encoded against one: a file, a folder, a
            list of them, or a function from its `ReferenceEntry` to a file. None looks in the folder of the file.
        limits: As in `load`.

    Returns:
        The path of what was written; for a URL, the URL.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged, or the decoded SHA-256 is not the encoder's; ``reference``:
            the earlier version that the file needs is not there, or it is another one.
        AdapterError: ``base-mismatch``, ``other-base``, as of `merge`; ``not-expressible`` for what a `format`
            has no place for; ``needs-base``: the file holds a change of a tensor of the base model; ``not-nola``: the
            source is an adapter; ``source-type``; ``target-type``: `out` is no path.
        NolaError: ``option``: no such dtype; a dtype or trim together with a merge.
        OutputExists: `out` is there and `overwrite` is False.
    """
    require_source(source)
    require_path(out)
    if base is not None and format is None:
        if dtype is not None:
            message = "dtype is for adapters; merged weights keep the base model's dtypes"
            raise NolaError(message, code="option")
        if trim:
            raise NolaError("trim is for adapters; a merge writes whole weights", code="option")
        from nola_codec.api.merging import merge

        return merge(
            [source],
            base,
            out,
            rung=rung,
            device=device,
            overwrite=overwrite,
            progress=progress,
            references=references,
            limits=limits,
        ).output
    stored = stored_dtype("f32" if dtype is None else dtype)
    require_free(Path(out), overwrite=overwrite)
    adapter = _decode_adapter(source, rung, device, base, progress, references, limits)
    if format is not None:
        _tell(note, _scale_note(adapter))
        adapter = _in_format(adapter, format, base, None)
    if trim:
        from nola_codec.adapters.trimming import trim as trim_adapter

        adapter, count = trim_adapter(adapter)
        _tell(note, count.note, dialect_of(adapter).rank_note if count.dropped else "")
    written = write(adapter, out, dtype=stored, overwrite=overwrite)
    owner = dialect_of(adapter)
    if stored != "F32":
        _tell(note, f"the factors are rounded to {dtype}; f32, the default, has them exactly")
    _tell(note, owner.lost_in_file(adapter) if is_tensor_file(written) else owner.added_in_directory(adapter))
    return written


@dataclass(frozen=True)
class DecodedContents:
    """A decoded adapter in memory: what `decode` would write to a directory.

    Attributes:
        adapter: The adapter, in the dialect that was asked for.
        tensors: The tensors of its file, by key.
        config: Its configuration, such as what ``adapter_config.json`` of PEFT holds; empty if there is none.
        metadata: The metadata of its file.
        notes: Sentences that the user should read.
    """

    adapter: Adapter
    tensors: Mapping[str, RawTensor]
    config: Mapping[str, Any]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()


@accepts_urls("base", nola="source")
def decode_contents(
    source: Source,
    format: str,
    *,
    base: str | os.PathLike[str] | None = None,
    base_config: Mapping[str, Any] | None = None,
    rung: int | None = None,
    device: object = "cpu",
    change: Callable[[Adapter], Adapter] = lambda adapter: adapter,
    references: References = None,
    limits: Limits | None = None,
) -> DecodedContents:
    """Decode to the tensors and the configuration of an adapter directory, without writing it.

    Args:
        source: The `.nola` file.
        format: The dialect of the result.
        base: The base model, for files that hold changes of its tensors; None if there is none.
        base_config: What ``config.json`` of the base model holds, which some names depend on; None is that of `base`.
        rung: As in `decode`.
        device: As in `decode`.
        change: Called with the adapter in the new dialect; returns the adapter to use.
        references: As in `decode`.
        limits: As in `load`.

    Raises:
        FormatError, ChecksumMismatch, AdapterError: Those of `decode`.
    """
    require_source(source)
    adapter = _decode_adapter(source, rung, device, base, references=references, limits=limits)
    notes = (_scale_note(adapter),)
    adapter = change(_in_format(adapter, format, base, base_config))
    file = dialect_of(adapter).contents(adapter, "F32")
    tensors, _ = split_beside(file.tensors)  # tensors of other files, which tools do not load with the adapter
    return DecodedContents(adapter, tensors, file.config, file.metadata, tuple(note for note in notes if note))


def _decode_adapter(
    source: Source,
    rung: int | None,
    device: object,
    base: str | os.PathLike[str] | None,
    progress: Progress | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> Adapter:
    """Check the content SHA-256 and decode all of a file, with the tensors whose changes it holds."""
    with open_container(source, limits, rung=rung) as container:
        check_content(container)
        return restore_from_base(decode_adapter(open_decoder(container, arrays_on(device), references), progress), base)


def _in_format(
    adapter: Adapter, format: str, base: str | os.PathLike[str] | None, config: Mapping[str, Any] | None
) -> Adapter:
    """Return an adapter in another dialect; the change of a whole model becomes a LoRA first.

    `config` is what ``config.json`` of the base model holds; if it is None, that of `base` is read.
    """
    from nola_codec.adapters.base_config import read_base_config
    from nola_codec.adapters.conversion import convert
    from nola_codec.api.change_conversion import change_as_lora

    format = str(format)  # a name that no dialect has, if it was another object
    if config is None and base is not None:
        config = read_base_config(base)
    if adapter.dialect == "delta":
        adapter = change_as_lora(adapter, base, config or {})
    return convert(adapter, format, config)


def _scale_note(adapter: Adapter) -> str:
    """Return a sentence for an adapter whose scaling was assumed when it was encoded; empty for others."""
    if not adapter.modules or dialect_of(adapter).scale_origin(adapter.config, adapter.metadata) != "assumed":
        return ""
    shown = render_scalings(sorted({module.scaling for module in adapter.modules}), "assumed")
    return f"scaling {shown}; encode it with --scale to set another one"


def _tell(note: Callable[[str], None] | None, *sentences: str) -> None:
    for sentence in sentences:
        if sentence and note is not None:
            note(sentence)


def verify(
    source: Source,
    *,
    progress: Progress | None = None,
    references: References = None,
    limits: Limits | None = None,
    key: str | os.PathLike[str] | bytes | None = None,
) -> dict[str, Any]:
    """Check all of a file: layout, checksums, and the hash of what each rung decodes to.

    Args:
        source: The `.nola` file.
        progress: Called as (stage, done, total).
        references: As in `decode`.
        limits: As in `load`.
        key: A public key of Ed25519 in PEM, its file or its bytes: the file must be signed with its private key.

    Returns:
        ``bytes``, ``tensors``, ``file_sha256`` (what `sha256sum` prints), ``content_sha256`` (16 bytes, stored in the
        file over the rest of it), ``decoded_sha256`` (over everything it decodes to) and ``signed_by`` (the public key
        that a signature names, which only `key` checks; None without one), in hexadecimal.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged, or this decoder is not exact; ``signature``: the file is not
            signed with the key.
        AdapterError: ``not-nola``: the source is an adapter.
        NolaError: ``key``: the key cannot be read; MissingPackage ``needs-cryptography``.
    """
    require_source(source)
    with open_container(source, limits) as container:
        check_content(container)
        if key is not None:
            from nola_codec.api.signing import check_signature

            check_signature(container, key)
        check_rungs(container, progress, references)
        return {
            "bytes": container.file_length,
            "tensors": sum(
                len(part) for part in (container.header.coded, container.header.raw, container.header.drawn)
            ),
            "file_sha256": container.hash_file().hex(),
            "content_sha256": container.prelude.content_sha256.hex(),
            "decoded_sha256": container.header.decoded_sha256.hex(),
            "signed_by": None if container.signature is None else container.signature.public_key.hex(),
        }


@accepts_urls("source")
def read_adapter(
    source: AdapterInput,
    *,
    rung: int | None = None,
    scale: float | None = None,
    config: Config = None,
    progress: Progress | None = None,
    references: References = None,
    limits: Limits | None = None,
) -> Adapter:
    """Read an adapter from a `.nola` file or from anything that `encode` reads, as NumPy arrays.

    The content SHA-256 and the decoded SHA-256 of a `.nola` file are compared.

    Args:
        source: A path, bytes, a binary stream, a mapping of tensors or a model with an adapter, as in `encode`.
        rung: The rung of a progressive `.nola` file, counted from 0; None is the last.
        scale: The scaling of an adapter that is no `.nola` file and does not say its scaling.
        config: The configuration of an adapter that is bytes, a stream or a mapping, as in `encode`.
        progress: Called as (stage, done, total).
        references: As in `decode`.
        limits: As in `load`.

    Raises:
        FormatError, ChecksumMismatch: The `.nola` file is damaged.
        AdapterError: The adapter cannot be read.
    """
    from nola_codec.adapters.reading import read
    from nola_codec.api.live_sources import open_live
    from nola_codec.stores.live_store import LiveStore

    readable, plain = open_live(source, config)
    if isinstance(readable, LiveStore) or not is_nola(readable):
        return read(readable, config=plain, scale=scale, must_use_scale=False)
    with open_container(
        bytes(readable) if isinstance(readable, bytearray | memoryview) else readable, limits, rung=rung
    ) as container:
        check_content(container)
        return decode_adapter(open_decoder(container, NUMPY, references), progress)


def is_nola(source: AnySource) -> bool:
    """True if the source begins as a `.nola` file does. A stream that cannot seek is taken for an adapter."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source[: len(_MAGIC)]) == _MAGIC
    if isinstance(source, str | os.PathLike):
        if not Path(source).is_file():
            return False
        with Path(source).open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    if not source.seekable():
        return False
    here = source.tell()
    begins = source.read(len(_MAGIC)) == _MAGIC
    source.seek(here)
    return begins
