"""`nola-codec decode`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from nola_codec.adapters.dialects.dialect_names import TARGET_DIALECTS
from nola_codec.cli.output import (
    force_option,
    json_option,
    keep_undo_option,
    print_json,
    print_merge,
    progress,
    quiet_option,
    size,
    unmerge_option,
    usable_device,
)


@click.command()
@click.argument("file", type=click.Path())
@click.option("-o", "--output", "out", type=click.Path(), required=True,
              help="Directory; for an adapter also a file: .safetensors, .npz, .bin, .pt, .gguf.")  # fmt: skip
@click.option("--base", type=click.Path(), help="Transformers model directory: write it with the deltas merged in.")
@click.option("--format", "dialect", type=click.Choice(TARGET_DIALECTS),
              help="Write the adapter in this dialect, not in its own; --base then serves for names.")  # fmt: skip
@keep_undo_option
@unmerge_option
@click.option("--dtype", type=click.Choice(["f32", "f16", "bf16"]), help="Of an adapter's factors [f32, exact].")
@click.option("--rung", type=int, help="Of a progressive file: as if it ended with this rung, from 0.")
@click.option("--device", default="cpu", show_default=True, callback=usable_device,
              help="Where to compute; it changes no bit.")  # fmt: skip
@force_option
@quiet_option
@json_option
def command(
    file: str, out: str, base: str | None, dialect: str | None, keep_undo: bool, unmerge: str | None,
    dtype: str | None, rung: int | None, device: str, force: bool, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Decode FILE to an adapter, or into the weights of a base model."""
    from nola_codec.api.decoding import decode
    from nola_codec.cli.merge import run_merge

    merging = unmerge is not None or (base is not None and dialect is None)
    if keep_undo and not merging:
        raise click.UsageError("--keep-undo is for merging: give --base")
    if dialect is not None and unmerge is not None:
        raise click.UsageError("--format is for adapters")
    if merging and dtype is not None:
        raise click.UsageError("--dtype is for adapters; merged weights keep the base model's dtypes")
    start = time.perf_counter()
    if merging:
        report = run_merge(
            [(file, 1.0)], base, unmerge, out, rung=rung, device=device, keep_undo=keep_undo, force=force, quiet=quiet
        )
        print_merge(report, time.perf_counter() - start, as_json=as_json, restored=unmerge is not None)
        return
    written = decode(
        file,
        out,
        base=base,
        dtype=dtype or "f32",
        rung=rung,
        format=dialect,
        device=device,
        overwrite=force,
        progress=progress(quiet),
    )
    seconds = time.perf_counter() - start
    total = sum(p.stat().st_size for p in written.rglob("*")) if written.is_dir() else Path(written).stat().st_size
    if as_json:
        print_json({"output": str(written), "merged": False, "bytes": total, "seconds": seconds})
        return
    click.echo(f"wrote  {written} ({size(total)}) in {seconds:.2f} s")
