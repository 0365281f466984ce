"""`encode`: an adapter in, a file and a report out."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from nola_codec import adapters
from nola_codec.adapters.folders import find_adapter
from nola_codec.adapters.sources import Readable
from nola_codec.adapters.spooling import spool_adapter
from nola_codec.api.arguments import ConfigObject, require_model_path, require_target, write_output
from nola_codec.api.keywords import EncodeKeywords, check_keywords
from nola_codec.api.live_sources import AdapterInput, open_live
from nola_codec.api.reference_sources import ReferenceInput, read_reference, require_other_file
from nola_codec.container.limits import Limits
from nola_codec.encoder.base_tensors import base_advice, relate_to_base
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.pipeline import encode_adapter
from nola_codec.encoder.report import EncodeReport
from nola_codec.encoder.rules import apply_rules
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import DTYPE_BYTES
from nola_codec.remote import accepts_urls
from nola_codec.sizes import parse_size
from nola_codec.stores.live_store import LiveStore

if TYPE_CHECKING:
    from typing_extensions import Unpack


def encode(
    source: AdapterInput,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    size: int | str | None = None,
    config: Mapping[str, Any] | ConfigObject | None = None,
    overwrite: bool = False,
    carry_unknown: bool = False,
    base: str | os.PathLike[str] | None = None,
    scale: float | None = None,
    reference: ReferenceInput | None = None,
    limits: Limits | None = None,
    **options: Unpack[EncodeKeywords],
) -> EncodeReport:
    """Encode an adapter as a `.nola` file.

    At most one of size, nmse, ratio, error and num_basis/bits says how large the file gets. With none of them, the
    file keeps 98% of what matters (an effective error of 0.02).

    Args:
        source: An adapter of any dialect (`adapters.DIALECTS`): a directory, a file, its bytes, or a binary stream; a
            mapping of keys to tensors (PyTorch, NumPy); or a model with an adapter of PEFT, which is read as its
            `save_pretrained` would write it.
        out: Path or binary stream that the file is written to, whole or not at all; None only reports.
        size: Most bytes that the file may take, as a number or as ``"50KB"``, ``"64KiB"``.
        config: Configuration of the adapter, for bytes, streams and mappings: what ``adapter_config.json`` holds, or a
            PEFT configuration such as a `LoraConfig`. Sets become sorted lists.
        overwrite: True replaces a file that is there.
        carry_unknown: True carries tensors that the dialect does not know, exact, instead of refusing them.
        base: The base model, a directory or a safetensors file: carried tensors that equal its own are left out,
            and with ``carried="coded"`` those near its own become changes of them. An adapter of another method of PEFT
            is not converted with it, as the command does; `nola_codec.integrations.peft_conversion.convert` does that.
        scale: The scaling of ``lora_B @ lora_A``, for an adapter that does not say it: neither by alphas, nor in its
            metadata, nor in a configuration. Without it, `EncodeReport.notes` tells what was assumed.
        reference: An earlier version of the adapter: a `.nola` file, or an adapter that was never coded. The file then
            holds the difference to it, is smaller, and can only be decoded with it (docs/versions.md).
        limits: What a `.nola` file that is the reference may declare; as in `load`.
        **options: The options of `nola_codec.api.keywords.EncodeKeywords`, which says what each means:
            nmse, ratio, error, objective (how large, and which error is kept small); progressive, rungs (coarser files
            in one); num_basis, bits, rank (the factor form, the paper's); fit, tuner, importance (what the
            coefficients are fitted to); basis, seed, shared_basis (the basis); carried (the form of
            heads and embeddings); entropy, block_size, thorough, progress.

    Returns:
        Sizes and measured errors. `print(report)` shows what the command line shows.

    Raises:
        AdapterError: The source cannot be read, or is an object that is no source (``source-type``).
            ``option``: `scale` differs from what the adapter says.
        EncodeError: Bad options (``option``), a target that cannot be reached, or a target that cannot be written to
            (``target-type``).
        OutputExists: `out` is there and `overwrite` is false.

    Example:
        >>> report = encode("lora_dir", "task.nola", nmse=0.05)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    return encode_bytes(
        source,
        out,
        size=size,
        config=config,
        overwrite=overwrite,
        carry_unknown=carry_unknown,
        base=base,
        scale=scale,
        reference=reference,
        limits=limits,
        **options,
    )[1]


@accepts_urls("source", "base", "reference", out="out")
def encode_bytes(
    source: AdapterInput,
    out: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    size: int | str | None = None,
    config: Mapping[str, Any] | ConfigObject | None = None,
    overwrite: bool = False,
    carry_unknown: bool = False,
    base: str | os.PathLike[str] | None = None,
    scale: float | None = None,
    reference: ReferenceInput | None = None,
    limits: Limits | None = None,
    **options: Unpack[EncodeKeywords],
) -> tuple[bytes, EncodeReport]:
    """Encode an adapter and return the file's bytes beside the report; arguments and errors as of `encode`."""
    readable, config = open_live(source, config)
    if base is not None:
        require_model_path(base)
    check_keywords("encode", {"scale": scale}, EncodeKeywords, "scale")
    chosen = check_options(out, size=size, overwrite=overwrite, reference=reference, limits=limits, **options)
    adapter = adapters.read(readable, config=config, carry_unknown=carry_unknown, scale=scale)
    if base is not None:
        adapter = relate_to_base(adapter, base, form=chosen.carried, serves_fit=chosen.fit != "weights")
    adapter, chosen = apply_rules(adapter, chosen)
    if isinstance(readable, str | os.PathLike):  # nobody else holds its tensors
        adapter = spool_adapter(adapter)
    data, report = encode_adapter(adapter, chosen, source_bytes=source_size(readable, adapter))
    if base is None:
        report = replace(report, notes=report.notes + base_advice(report))
    write_output(out, data)
    return data, report


def check_options(
    out: str | os.PathLike[str] | BinaryIO | None,
    *,
    size: int | str | None,
    overwrite: bool,
    reference: ReferenceInput | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> EncodeOptions:
    """Check the options of an encode and its target, before any work; arguments and errors as of `encode`.

    A reference is decoded here, after the other options were found to be good.
    """
    check_keywords("encode", {"size": size, **options}, EncodeKeywords, "size")
    if options.get("rungs") is not None:
        options["rungs"] = tuple(parse_size(rung) if isinstance(rung, str) else rung for rung in options["rungs"])
    if isinstance(options.get("block_size"), str):
        options["block_size"] = parse_size(options["block_size"])
    if "entropy" in options:
        options["entropy"] = tuple(options["entropy"])
    chosen = EncodeOptions(size=parse_size(size) if isinstance(size, str) else size, **options)
    require_target(out, overwrite=overwrite)
    if reference is None:
        return chosen
    known = read_reference(reference, limits=limits)
    require_other_file(out, known)
    return replace(chosen, reference=known)


def source_size(source: Readable, adapter: Adapter) -> int:
    """Size of the weights that were read; of their tensors where that is not a file."""
    if isinstance(source, str | os.PathLike):
        return find_adapter(source).bytes
    if isinstance(source, bytes | bytearray | memoryview):
        return len(source)
    if isinstance(source, LiveStore):
        return sum(math.prod(info.shape) * DTYPE_BYTES[info.dtype] for info in source.tensors.values())
    if isinstance(source, io.IOBase) and source.seekable():
        here = source.tell()
        end = source.seek(0, io.SEEK_END)
        source.seek(here)
        return end
    return (
        sum(m.lora_A.nbytes + m.lora_B.nbytes for m in adapter.modules)
        + sum(v.values.nbytes for v in adapter.vectors)
        + sum(len(t.data) for t in adapter.raw.values())
    )
