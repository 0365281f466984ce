"""`encode_many`, `decode_many`, `verify_many`: one call for very many files, which can be stopped and called again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_codec.api.arguments import require_model_path
from nola_codec.api.encoding import check_options
from nola_codec.api.opened import stored_dtype
from nola_codec.container.limits import Limits
from nola_codec.encoder.reference import ANY_REFERENCE
from nola_codec.errors import NolaError, mismatch
from nola_codec.fleet.arguments import (
    Sources,
    absolute,
    as_list,
    check_names,
    gather_sources,
    reader_options,
    require_directory,
    split_run,
)
from nola_codec.fleet.chains import chain_items, chain_sources, renew_plan, written_reference
from nola_codec.fleet.items import INTERRUPTED, Item, Job, Outcome, Source, Verb
from nola_codec.fleet.keywords import MANY_DECODE_NAMES, MANY_ENCODE_NAMES, ManyEncodeKeywords, RunKeywords
from nola_codec.fleet.manifest import Manifest, has_manifest, read_manifest
from nola_codec.fleet.planning import Plan, Planner, sweep
from nola_codec.fleet.report import FleetInterrupted, FleetReport, count_warnings
from nola_codec.fleet.rows import Row, begun_row, finished_row, storable
from nola_codec.fleet.running import RunSettings, run_items
from nola_codec.fleet.stamps import stamp
from nola_codec.remote import is_url
from nola_codec.stores.tensor_files import SUFFIXES

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ENDING = ".nola"


def encode_many(
    sources: Sources,
    out: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    check: bool = False,
    overwrite: bool = False,
    chain: bool = False,
    encoding: ManyEncodeKeywords | None = None,
    **run: Unpack[RunKeywords],
) -> FleetReport:
    """Encode many adapters as `.nola` files in one directory, with a manifest of what became of each.

    A second call does only what is missing: new and changed sources, other options, and sources that failed. A source
    is unchanged if the sizes and times of its files are; else its content is hashed before anything is done.
    Sources of equal content are encoded one by one, to equal files; `Row.source_digest` tells which they are.

    Args:
        sources: Paths, globs (``**`` too) and directories, which are searched for adapters; an empty list if `manifest`
            has all.
        out: The directory of the outputs.
        manifest: A file that lists sources: ``.jsonl``, ``.csv`` or ``.parquet``, with the columns `source`, `output`
            and any option of `encoding`.
        check: True hashes all sources and outputs again, and repairs outputs that are damaged.
        overwrite: True replaces files in `out` that no run has written.
        chain: True codes the sources of each folder, such as the checkpoints of a run, in the order of the numbers in
            their names, each against the file before it. Lone files in folders whose names differ in numbers alone
            (``checkpoint-100/lora.safetensors``) are a chain too. The files are smaller, and each needs those before it
            to be decoded. They are made one after the other, by one worker.
        encoding: The options of `encode` for all sources that have none of their own.
        **run: The options of `nola_codec.fleet.keywords.RunKeywords`: engine, workers, memory, retries, ray_address,
            manifest_format, watch.

    Returns:
        Counts, the failed rows, and the path of the manifest. A bad source is no error: look at `FleetReport.failed`.

    Raises:
        AdapterError: ``no-sources``, ``not-found``, ``bad-manifest``: nothing was done.
        NolaError, EncodeError: ``option``, ``output-name``: nothing was done.
        OutputExists: ``in-use``: another run writes to `out`.
        FleetInterrupted: Ctrl-C was pressed. It is a KeyboardInterrupt, and has the report of what was done.

    Example:
        >>> report = encode_many("loras", "files", encoding={"ratio": 30})  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    settings = split_run("encode_many", dict(run))
    if not isinstance(encoding, Mapping | None):
        raise NolaError(mismatch("encoding", "options by their names", repr(encoding)), code="option")
    common = check_names("encode_many", dict(encoding or {}), MANY_ENCODE_NAMES)
    if common.get("base") is not None:
        require_model_path(common["base"])
        common["base"] = absolute(common["base"])
    of_encoder = {name: value for name, value in common.items() if name not in ("base", "scale", "carry_unknown")}
    if chain:
        if settings[0].engine != "local":
            raise NolaError("a chain is made file by file, and needs the engine local", code="option")
        settings = replace(settings[0], workers=1, retries=0), settings[1]
        of_encoder["reference"] = ANY_REFERENCE  # so that options are refused that cannot go with one
    check_options(None, size=of_encoder.pop("size", None), overwrite=False, **of_encoder)
    directory = require_directory(out)
    given = gather_sources(sources, manifest, "encode", MANY_ENCODE_NAMES, directory)
    if chain:
        given = chain_sources(given)
    return _run_to_outputs(
        "encode", given, directory, common, ending=_ENDING, check=check, overwrite=overwrite, run_settings=settings,
        is_chain=chain,
    )  # fmt: skip


def decode_many(
    sources: Sources,
    out: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    check: bool = False,
    overwrite: bool = False,
    ending: str = "",
    format: str | None = None,
    dtype: str | None = None,
    trim: bool = False,
    base: str | os.PathLike[str] | None = None,
    references: Sources | None = None,
    limits: Limits | None = None,
    **run: Unpack[RunKeywords],
) -> FleetReport:
    """Decode many `.nola` files to adapters in one directory; a second call does only what is missing.

    Args:
        sources: Paths, globs and directories, which are searched for `.nola` files.
        out: The directory of the outputs.
        manifest: A file that lists sources, with the columns `source`, `output`, `format`, `dtype`, `trim`, `rung` and
            `base`.
        check: As in `encode_many`.
        overwrite: As in `encode_many`.
        ending: What the name of an output ends with, such as ``.safetensors`` for lone files; empty for directories.
        format: The dialect of the adapters, if not their own.
        dtype: The dtype of the factors: f32 (the default), f16 or bf16.
        trim: True leaves out components that are zero.
        base: A model directory, which `format` may need for names. Nothing is merged.
        references: Files and folders with the earlier versions of files that were encoded against one; None looks in
            the folder of each file.
        limits: What a file may declare; as in `load`.
        **run: As in `encode_many`.

    Returns:
        As `encode_many` does.

    Raises:
        AdapterError, NolaError, OutputExists, FleetInterrupted: As in `encode_many`.
    """
    settings = split_run("decode_many", dict(run))
    if ending not in ("", *SUFFIXES):
        message = f"ending: expected one of {', '.join(SUFFIXES)}, or nothing for directories, found {ending!r}"
        raise NolaError(message, code="option")
    if base is not None and format is None:
        raise NolaError("base serves format; to merge into models, call decode for each", code="option")
    stored_dtype(dtype or "f32")
    common = {"format": format, "dtype": dtype, "trim": trim, "base": None if base is None else absolute(base)}
    directory = require_directory(out)
    given = gather_sources(sources, manifest, "decode", MANY_DECODE_NAMES, directory)
    return _run_to_outputs(
        "decode", given, directory, common, ending=ending, check=check, overwrite=overwrite, run_settings=settings,
        reader=reader_options(references, limits),
    )  # fmt: skip


def verify_many(
    sources: Sources,
    out: str | os.PathLike[str] | None = None,
    *,
    manifest: str | os.PathLike[str] | None = None,
    check: bool = False,
    references: Sources | None = None,
    limits: Limits | None = None,
    **run: Unpack[RunKeywords],
) -> FleetReport:
    """Check many `.nola` files as `verify` does.

    Of a directory that `encode_many` wrote, all files of its manifest must be there, and be the ones that it wrote.

    Args:
        sources: Paths, globs and directories, which are searched for `.nola` files.
        out: A directory for a manifest of the results; None writes nothing. The next run with it leaves out good files
            whose sizes and times have not changed.
        manifest: A file that lists sources in the column `source`.
        check: True checks all files again, whatever an earlier manifest in `out` says.
        references: As in `decode_many`.
        limits: As in `decode_many`.
        **run: As in `encode_many`.

    Returns:
        As `encode_many` does; `FleetReport.failed` has the damaged files.

    Raises:
        AdapterError, NolaError, OutputExists, FleetInterrupted: As in `encode_many`.
    """
    settings, file_format = split_run("verify_many", dict(run))
    listed = _outputs_of_manifests(sources)
    given = gather_sources(sources, manifest, "verify", (), None, may_be_empty=bool(listed))
    paths = list(dict.fromkeys([*(source.path for source in given), *listed]))
    items = [_verify_item(path) for path in paths]
    options = reader_options(references, limits)

    def make_job(item: Item, attempt: int) -> Job:
        return Job("verify", item.source, None, options, wanted_digest=listed.get(item.source, ""))

    if out is None:
        if file_format is not None:
            raise NolaError("manifest_format needs a directory for the manifest", code="option")
        return _run("verify", Plan(work=items), {}, lambda row: None, make_job, settings, None)
    with Manifest(require_directory(out), file_format=file_format) as opened:
        same = [] if check else [item for item in items if _was_good(item, opened.rows.get(item.output), listed)]
        known = {item.output for item in same}
        plan = Plan(work=[item for item in items if item.output not in known], unchanged=same)
        return _run("verify", plan, opened.rows, opened.record, make_job, settings, opened.path)


def _run_to_outputs(
    verb: Verb,
    given: Sequence[Source],
    out: Path,
    common: Mapping[str, Any],
    *,
    ending: str,
    check: bool,
    overwrite: bool,
    run_settings: tuple[RunSettings, str | None],
    is_chain: bool = False,
    reader: Mapping[str, Any] | None = None,
) -> FleetReport:
    settings, file_format = run_settings
    directory = Path(os.path.abspath(out))
    with Manifest(directory, file_format=file_format) as opened:
        planner = Planner(verb, directory, opened, check=check, overwrite=overwrite)
        items = planner.make_items(given, common, ending)
        if is_chain:
            items = chain_items(items)
        plan = planner.make_plan(items)
        if is_chain:
            plan = renew_plan(plan, items, directory)
        by_output = {item.output: item for item in items}

        def make_job(item: Item, attempt: int) -> Job:
            job = planner.make_job(written_reference(item, by_output, directory) if is_chain else item, attempt)
            return replace(job, options={**job.options, **(reader or {})})

        if opened.is_interrupted:
            sweep(directory, opened.rows)
        try:
            path = out / opened.path.name  # under the name that the user knows
            return _run(verb, plan, opened.rows, opened.record, make_job, settings, path)
        except FleetInterrupted:
            sweep(directory, (item.output for item in plan.work))
            raise


def _run(
    verb: Verb,
    plan: Plan,
    rows: Mapping[str, Row],
    record: Callable[[Row], None],
    make_job: Callable[[Item, int], Job],
    settings: RunSettings,
    path: Path | None,
) -> FleetReport:
    """Do what a plan says, write down each row, and return the report. Raises FleetInterrupted."""
    finished: dict[str, Row] = {item.output: rows[item.output] for item in plan.unchanged}

    def finish(item: Item, outcome: Outcome, attempts: int) -> None:
        before = rows.get(item.output)
        row = finished_row(item, verb, outcome, attempts=attempts, before=before)
        finished[item.output] = row
        if before is None or before.status != "done" or outcome.code != "output-exists":
            record(row)  # else the row of the source that has the output stays

    def begin_job(item: Item, attempt: int) -> Job:
        job = make_job(item, attempt)
        if job.target is not None and attempt == 1:
            record(begun_row(item, rows.get(item.output)))
        return job

    total = len(plan.unchanged) + len(plan.refused) + len(plan.work)
    watch = settings.watch
    if watch is not None:
        watch.total = total
        for item in plan.unchanged:
            watch.skip(item.output)
        for item, _ in plan.refused:
            watch.finish(item.output, failed=True)
    for item, outcome in plan.refused:
        finish(item, outcome, 0)
    result = run_items(plan.work, settings, make_job=begin_job, record=finish)
    good = [row for row in finished.values() if row.status == "done"]
    failed = [row for row in finished.values() if row.status == "failed" and row.code != INTERRUPTED]
    report = FleetReport(
        verb=verb, total=total, done=result.done, unchanged=len(plan.unchanged) + result.unchanged,
        failed=tuple(sorted(failed, key=lambda row: row.output)), unfinished=total - len(good) - len(failed),
        retries=result.retries, source_bytes=sum(row.source_bytes or 0 for row in good),
        bytes=sum(row.bytes or 0 for row in good), seconds=time.perf_counter() - settings.begin, manifest=path,
        warnings=count_warnings(good),
    )  # fmt: skip
    if result.is_stopped:
        raise FleetInterrupted(report)
    return report


def _outputs_of_manifests(sources: Sources) -> dict[str, str]:
    """Return the digest of each `.nola` file that the manifests of directories among the sources have, by its path."""
    listed: dict[str, str] = {}
    for source in as_list(sources):
        folder = Path(os.path.abspath(source))
        if not is_url(source) and folder.is_dir() and has_manifest(folder):
            rows = read_manifest(folder).values()
            mine = [row for row in rows if row.status == "done" and row.output.endswith(_ENDING)]
            listed |= {str(folder / row.output): row.output_digest for row in mine}
    return listed


def _verify_item(path: str) -> Item:
    try:
        mark, total = stamp([Path(path)])
    except OSError:  # the worker says what is wrong with it
        mark, total = "", 0
    return Item(path, storable(path), {}, total, mark)


def _was_good(item: Item, row: Row | None, listed: Mapping[str, str]) -> bool:
    if row is None or row.status != "done" or not item.stamp or row.source_stamp != item.stamp:
        return False
    return listed.get(item.source, row.source_digest) == row.source_digest
