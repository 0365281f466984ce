"""`nola-codec decode`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from nola_codec.adapters.dialects.dialect_names import TARGET_DIALECTS
from nola_codec.cli.help import PATH, STREAM_OR_PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import (
    OUTPUT,
    STDOUT,
    any_base_option,
    binary_stdout,
    device_option,
    force_option,
    json_option,
    keep_undo_option,
    limits_option,
    print_json,
    print_notes,
    quiet_option,
    references_option,
    unmerge_option,
    written_bytes,
)
from nola_codec.cli.progress import show_progress
from nola_codec.remote import shown_url
from nola_codec.rendering import render_size

_ADAPTER = "Adapter"


@helpful_command(
    examples=[
        ("The adapter as it was", "nola-codec decode my.nola -o my_lora"),
        ("One file, for another tool", "nola-codec decode my.nola -o my.safetensors --format kohya"),
        ("A safetensors file through a pipe", "nola-codec decode my.nola -o - > my.safetensors"),
        ("The earlier version is elsewhere", "nola-codec decode my.nola -o my_lora --reference RELEASES_DIR"),
        ("Without the components that are zero", "nola-codec decode my.nola -o my_lora --trim"),
        ("A model with the adapter merged in", "nola-codec decode my.nola --base MODEL_DIR -o merged"),
    ]
)
@click.argument("file", type=PATH)
@option("--format", "dialect", group=_ADAPTER, type=click.Choice(TARGET_DIALECTS),
        help="Write the adapter in this dialect instead of its own; --base then serves for names and "
             "whole tensors.")  # fmt: skip
@option("--dtype", group=_ADAPTER, type=click.Choice(["f32", "f16", "bf16"]),
        help="Type of the adapter's factors; f32 is exact, the others round once  [default: f32].")  # fmt: skip
@option("--trim", group=_ADAPTER, is_flag=True,
        help="Leave out components that are zero: smaller ranks, and the same deltas to the bit.")  # fmt: skip
@option("--base", group="Merging", type=PATH, metavar="MODEL_DIR",
        help="Base model: write it with the deltas merged into its weights.")  # fmt: skip
@keep_undo_option
@any_base_option
@unmerge_option
@option("--rung", group="Computation", type=int, help="Use a progressive file as if it ended with this rung, from 0.")
@references_option
@limits_option
@device_option
@option("-o", "--output", "out", group=OUTPUT, type=STREAM_OR_PATH, required=True,
        help="Directory; for an adapter also a file: .safetensors, .npz, .bin, .pt or .gguf; - is a safetensors file "
             "on standard output.")  # fmt: skip
@force_option
@quiet_option
@json_option
def command(
    file: str,
    out: str,
    base: str | None,
    dialect: str | None,
    keep_undo: bool,
    any_base: bool,
    unmerge: str | None,
    **values: Any,
) -> None:
    """Decode FILE to an adapter, or merge it into the weights of a base model."""
    merging = unmerge is not None or (base is not None and dialect is None)
    for flag, is_given in (("--keep-undo", keep_undo), ("--any-base", any_base)):
        if is_given and not merging:
            raise click.UsageError(f"{flag} is for merging: give --base")
    if dialect is not None and unmerge is not None:
        raise click.UsageError("--format is for adapters")
    if merging and values["dtype"] is not None:
        raise click.UsageError("--dtype is for adapters; merged weights keep the base model's dtypes")
    if merging and values["trim"]:
        raise click.UsageError("--trim is for adapters; a merge writes whole weights")
    if Path(out).suffix == ".nola":
        raise click.UsageError(f"-o {out}: what is decoded is no .nola file; give a directory, or another ending")
    if merging and out == STDOUT:
        raise click.UsageError("-o - is for adapters; a model is written to a directory")
    as_json: bool = values.pop("as_json")
    values["references"] = values["references"] or None
    if merging:
        from nola_codec.cli.merge import MergeArguments

        values.pop("dtype")
        values.pop("trim")
        MergeArguments(base, unmerge, out, keep_undo, any_base, **values).print_merge([(file, 1.0)], as_json=as_json)
        return
    _write_adapter(file, out, as_json=as_json, base=base, format=dialect, **values)


def _write_adapter(
    file: str, out: str, *, as_json: bool, dtype: str | None, force: bool, quiet: bool, **options: Any
) -> None:
    from nola_codec.api.decoding import decode

    start = time.perf_counter()
    notes: list[str] = []
    common: dict[str, Any] = {"dtype": dtype or "f32", "note": notes.append, **options}
    if out == STDOUT:
        from tempfile import TemporaryDirectory

        stdout = binary_stdout()
        with TemporaryDirectory() as staging:
            written = Path(staging) / "adapter.safetensors"
            with show_progress(quiet) as show:
                decode(file, written, progress=show, **common)
            stdout.write(written.read_bytes())
        print_notes(notes)
        return
    with show_progress(quiet) as show:
        decode(file, out, overwrite=force, progress=show, **common)
    seconds = time.perf_counter() - start
    total = written_bytes(out)
    if as_json:
        print_json({"output": shown_url(out), "merged": False, "bytes": total, "seconds": seconds, "notes": notes})
        return
    echo(f"wrote  {shown_url(out)} ({render_size(total)}) in {seconds:.2f} s")
    print_notes(notes)
