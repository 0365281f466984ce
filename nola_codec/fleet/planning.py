"""Decide what a run has to do: which outputs are there already, which are another's, and which items need work."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nola_codec.encoder.options import EncodeOptions
from nola_codec.errors import EncodeError, NolaError
from nola_codec.fleet.items import Item, Job, Outcome, Source, Verb
from nola_codec.fleet.keywords import RATE_NAMES
from nola_codec.fleet.manifest import Manifest
from nola_codec.fleet.naming import name_outputs
from nola_codec.fleet.rows import Row, digest_options, storable
from nola_codec.fleet.stamps import output_files, source_files, stamp
from nola_codec.remote import is_url
from nola_codec.sizes import parse_size

_EXISTS = "output-exists"
_FLOATS = ("ratio", "nmse", "error", "scale")
_DEFAULTS: Mapping[str, Any] = {
    **{each.name: each.default for each in fields(EncodeOptions)},
    "carry_unknown": False, "trim": False, "dtype": "f32",
}  # fmt: skip
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")  # as `stores.files` names them


@dataclass
class Plan:
    """What a run has to do.

    Attributes:
        work: The items that workers get.
        unchanged: The items whose outputs are there and up to date.
        refused: The items that cannot be worked on, with the reason.
    """

    work: list[Item] = field(default_factory=list)
    unchanged: list[Item] = field(default_factory=list)
    refused: list[tuple[Item, Outcome]] = field(default_factory=list)


@dataclass(frozen=True)
class Planner:
    """Makes the plan and the jobs of a run that writes outputs.

    Attributes:
        verb: ``encode`` or ``decode``.
        directory: The destination.
        manifest: The manifest of the destination.
        check: True if sources and outputs are hashed again, whatever their sizes and times say.
        overwrite: True if outputs that are not the run's own may be replaced.
    """

    verb: Verb
    directory: Path
    manifest: Manifest
    check: bool
    overwrite: bool

    def make_items(self, sources: Sequence[Source], options: Mapping[str, Any], ending: str) -> list[Item]:
        """Return an item for each source, in order. Raises NolaError ``output-name``."""
        mine = {storable(source.path) for source in sources}
        owners = {
            output: None if row.source not in mine and _is_gone(row.source) else row.source
            for output, row in self.manifest.rows.items()
        }
        renamed = [replace(source, path=storable(source.path)) for source in sources]
        names = name_outputs(renamed, ending, owners)
        items = []
        for source, name in zip(sources, names, strict=True):
            mark, total = "", 0
            if not is_url(source.path):
                with contextlib.suppress(NolaError, OSError):  # the worker says what is wrong with it
                    mark, total = stamp(source_files(Path(source.path), self.verb))
            items.append(Item(source.path, name, join_options(options, source.options), total, mark))
        return items

    def make_plan(self, items: Sequence[Item]) -> Plan:
        """Return the plan."""
        plan = Plan()
        for item in items:
            row = self.manifest.rows.get(item.output)
            target = self.directory / item.output
            if self._is_up_to_date(item, row) and not self.check:
                plan.unchanged.append(item)
            elif os.path.lexists(target) and not self._may_replace(item, row):
                owner = f"; {row.source} was its source" if row is not None and row.code != _EXISTS else ""
                reason = f"{target}: already exists, and is not of this source{owner}; -f replaces it"
                plan.refused.append((item, Outcome("failed", code=_EXISTS, reason=reason)))
            else:
                plan.work.append(item)
        return plan

    def make_job(self, item: Item, attempt: int) -> Job:
        """Return the job of an item, whose output may be replaced now."""
        row = self.manifest.rows.get(item.output)
        is_same_work = row is not None and not item.is_stale and self._is_made_with(item, row)
        options = dict(item.options)
        if "reference" in options:  # an output of the same run
            options["reference"] = str(self.directory / options["reference"])
        return Job(
            self.verb,
            item.source,
            str(self.directory / item.output),
            options,
            overwrite=True,  # the plan has made sure of it
            known_digest=row.source_digest if row is not None and is_same_work else "",
            wanted_digest=row.output_digest if row is not None and is_same_work and self.check else "",
        )

    def _is_up_to_date(self, item: Item, row: Row | None) -> bool:
        if row is None:
            return False
        if not is_url(item.source) and (not item.stamp or row.source_stamp != item.stamp):
            return False  # what lies behind a URL is only looked at if the user asks for a check
        return row.source == storable(item.source) and self._is_made_with(item, row)

    def _is_made_with(self, item: Item, row: Row) -> bool:
        """True if the output is there, whole, and made with the options of the item."""
        if row.status != "done" or row.options_digest != digest_options(self.verb, item.options):
            return False
        files = output_files(self.directory / item.output)
        return bool(files) and sum(file.stat().st_size for file in files) == row.bytes

    def _may_replace(self, item: Item, row: Row | None) -> bool:
        if self.overwrite:
            return True
        if row is None or row.code == _EXISTS:
            return False
        return row.source == storable(item.source) or _is_gone(row.source)


def join_options(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an item: its own, and those of the run that they do not replace."""
    has_rate = any(own.get(name) is not None for name in RATE_NAMES)
    kept = {name: value for name, value in common.items() if not (has_rate and name in RATE_NAMES)}
    joined = {name: _normal(name, value) for name, value in {**kept, **own}.items()}
    # An option that has its default is the same as one that is not given, and must not have another digest.
    return {name: value for name, value in joined.items() if value is not None and value != _DEFAULTS.get(name)}


def _normal(name: str, value: Any) -> Any:
    """Return one spelling of equal values, such as 50000 for "50KB"; what is no value is left for the worker."""
    if name in ("size", "block_size") and isinstance(value, str):
        try:
            return parse_size(value)
        except EncodeError:
            return value
    return float(value) if name in _FLOATS and isinstance(value, int) and not isinstance(value, bool) else value


def _is_gone(source: str) -> bool:
    return not is_url(source) and not os.path.lexists(source)


def sweep(directory: Path, outputs: Iterable[str]) -> None:
    """Remove the temporary files that killed workers left beside outputs. Only the holder of the lock may call this."""
    names: dict[Path, set[str]] = {}
    for output in outputs:
        target = directory / output
        names.setdefault(target.parent, set()).add(target.name)
    for folder, own in names.items():
        for path in folder.iterdir() if folder.is_dir() else ():
            match = _TEMPORARY.fullmatch(path.name)
            if match is not None and match[1] in own:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
