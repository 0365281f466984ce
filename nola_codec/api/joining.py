"""`merge_adapters`: several adapters into one, without a base model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nola_codec import adapters
from nola_codec.adapters.joining import join_adapters
from nola_codec.adapters.registry import dialect_of
from nola_codec.adapters.weighted import WeightedAdapter
from nola_codec.api.arguments import require_path
from nola_codec.api.decoding import is_nola, read_adapter
from nola_codec.api.encoding import check_options
from nola_codec.api.keywords import EncodeKeywords
from nola_codec.api.live_sources import AdapterInput, open_live, require_adapter
from nola_codec.api.merging import require_sources
from nola_codec.api.opened import stored_dtype
from nola_codec.container.limits import Limits
from nola_codec.encoder.pipeline import encode_adapter
from nola_codec.encoder.report import EncodeReport
from nola_codec.encoder.rules import apply_rules
from nola_codec.errors import EncodeError, NolaError
from nola_codec.model.adapter import Adapter
from nola_codec.references.finding import References
from nola_codec.remote import accepts_urls
from nola_codec.stores.files import atomic_file, display_name, require_free
from nola_codec.stores.live_store import LiveStore
from nola_codec.stores.tensor_files import is_tensor_file

if TYPE_CHECKING:
    from typing_extensions import Unpack

SUFFIX = ".nola"


@dataclass(frozen=True)
class AdapterMergeReport:
    """The result of `merge_adapters`.

    Attributes:
        output: The file or directory; a URL as it was given.
        modules: The number of modules in it.
        rank: The sum of their ranks.
        notes: Sentences that the user should read.
        encoded: The report of the encode; None if the result was written as an adapter.
    """

    output: Path | str
    modules: int
    rank: int
    notes: tuple[str, ...]
    encoded: EncodeReport | None = None


@accepts_urls("sources", out="out")
def merge_adapters(
    sources: Sequence[AdapterInput | tuple[AdapterInput, float]],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    dtype: str | None = None,
    size: int | str | None = None,
    rung: int | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] | None = None,
    references: References = None,
    limits: Limits | None = None,
    **options: Unpack[EncodeKeywords],
) -> AdapterMergeReport:
    """Write one adapter whose deltas are the weighted sums of the deltas of several adapters.

    The factors are put one after another, so the ranks add up, and the sum is exact. Where the weights and scalings of
    a module differ by more than powers of two, they are multiplied into lora_B, which rounds each number once.

    Args:
        sources: `.nola` files, adapters of any dialect or models with an adapter, or pairs of one and its weight; a
            weight that is not given is 1.
        out: A path that ends in ``.nola`` is encoded. Any other one is written as an adapter, as `decode` does: a
            directory, or a file whose suffix is that of a tensor file.
        format: The dialect of the result; None is that of the first source.
        dtype: The dtype of the factors of an adapter: f32 (the default), f16 or bf16.
        size: Most bytes that a `.nola` file may take, as a number or as ``"50KB"``.
        rung: The rung of progressive `.nola` files, counted from 0; None is the last.
        overwrite: Replace an output that is there.
        note: Called with each sentence that the user should read. The report has them too.
        references: Where the earlier versions are that files need which were encoded against one, as in `decode`. What
            is written here needs none.
        limits: What a `.nola` file may declare; as in `load`.
        **options: Those of `encode`, if a `.nola` file is written.

    Raises:
        AdapterError: Those of `join_adapters`, and of reading and writing adapters.
        EncodeError: Bad options, or a target that cannot be reached.
        FormatError, ChecksumMismatch: A `.nola` file is damaged.
        OutputExists: `out` is there and `overwrite` is False.
    """
    require_sources(sources, require_adapter)
    require_path(out)
    path = Path(out)
    if not sources:
        raise EncodeError("no adapters to merge", code="option")
    stored = stored_dtype("f32" if dtype is None else dtype)
    if path.suffix == SUFFIX:
        if dtype is not None:
            raise NolaError("dtype is for adapters, and a .nola file is encoded", code="option")
        chosen = check_options(path, size=size, overwrite=overwrite, **options)
    elif options or size is not None:
        given = ", ".join([*(["size"] if size is not None else []), *options])
        raise EncodeError(f"{given}: only a .nola file is encoded, and the path does not end in .nola", code="option")
    else:
        require_free(path, overwrite=overwrite)
    read = [_read(source, rung, references, limits) for source in sources]
    coded = [part.name for part, is_coded in read if is_coded]
    joined = join_adapters([part for part, _ in read], format)
    encoded: EncodeReport | None = None
    if path.suffix == SUFFIX:
        adapter, chosen = apply_rules(replace(joined, notes=()), chosen)
        data, encoded = encode_adapter(adapter, chosen, source_bytes=_bytes(joined))
        with atomic_file(path) as stream:
            stream.write(data)
        notes = (*joined.notes, *encoded.notes)
        if coded:  # files of the same error, whose loss was measured, were made from the adapters themselves
            encoded = replace(encoded, expectation=None)
            notes += (_second_coding_note(coded),)
    else:
        written = adapters.write(joined, path, dtype=stored, overwrite=overwrite)
        lost = dialect_of(joined).lost_in_file(joined) if is_tensor_file(written) else ""
        notes = (*joined.notes, lost) if lost else joined.notes
    for sentence in notes:
        if note is not None:
            note(sentence)
    return AdapterMergeReport(path, len(joined.modules), sum(m.rank for m in joined.modules), notes, encoded)


def _read(
    source: AdapterInput | tuple[AdapterInput, float],
    rung: int | None,
    references: References,
    limits: Limits | None,
) -> tuple[WeightedAdapter, bool]:
    """Read a source; return the adapter with its weight, and True for a `.nola` file."""
    place, weight = source if isinstance(source, tuple) else (source, 1.0)
    readable, config = open_live(place)
    if isinstance(readable, LiveStore):
        name, is_coded = readable.name, False
    else:
        name, is_coded = display_name(readable), is_nola(readable)
    adapter = read_adapter(readable, rung=rung, config=config, references=references, limits=limits)
    return WeightedAdapter(name, adapter, float(weight)), is_coded


def _second_coding_note(coded: Sequence[str]) -> str:
    """Return the note for a `.nola` file that was made from the `.nola` files of these names."""
    named = ", ".join(coded[:3]) + (f" and {len(coded) - 3} more" if len(coded) > 3 else "")
    own = ("its adapter", "its", "it decodes") if len(coded) == 1 else ("their adapters", "their", "they decode")
    return (
        f"{named} had lost a part of {own[0]} already, and {own[1]} noise was coded as if it were signal. The errors "
        f"compare with what {own[2]} to. A file made from the original adapters is smaller and better"
    )


def _bytes(adapter: Adapter) -> int:
    factors = sum(m.lora_A.nbytes + m.lora_B.nbytes for m in adapter.modules)
    return factors + sum(v.values.nbytes for v in adapter.vectors) + sum(len(t.data) for t in adapter.raw.values())
