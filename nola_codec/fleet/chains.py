"""The checkpoints of a run as one chain: each file is coded against the file of the checkpoint before it."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nola_codec.container.limits import DEFAULT_LIMITS
from nola_codec.container.names import natural_key
from nola_codec.container.reader import open_container
from nola_codec.errors import NolaError
from nola_codec.fleet.items import Item, Source
from nola_codec.fleet.planning import Plan

_NUMBER = re.compile(r"\d+")
REFERENCE = "reference"
"""The option of an item that names the output before it, relative to the destination."""


def chain_items(items: Sequence[Item]) -> list[Item]:
    """Return the items in the order of their chains, each with the output before it as its reference.

    `chain_names` says which items are a chain. It goes in the order of the numbers in their names. Where a chain would
    be longer than a reader takes, another one begins.
    """
    names = dict(zip((item.source for item in items), chain_names([item.source for item in items]), strict=True))
    ordered = sorted(items, key=lambda item: (names[item.source], natural_key(item.source)))
    chained: list[Item] = []
    length = 0
    for order, item in enumerate(ordered):
        before = ordered[order - 1] if order else None
        is_next = before is not None and names[before.source] == names[item.source]
        length = length + 1 if is_next and length < DEFAULT_LIMITS.chain else 0
        options = dict(item.options)
        if length and before is not None:
            options[REFERENCE] = before.output
        chained.append(replace(item, options=options, order=order))
    return chained


def chain_names(sources: Sequence[str]) -> list[str]:
    """Return the name of the chain that each source belongs to.

    The sources in one folder are a chain, and its name is that of the folder. A source that is alone in its folder is
    of a chain with those of the same name in folders beside it, if the names of these differ in numbers alone:
    ``checkpoint-100/lora.safetensors`` and ``checkpoint-200/lora.safetensors``.
    """
    folders = Counter(posixpath.dirname(source) for source in sources)
    names = []
    for source in sources:
        folder, name = posixpath.split(source)
        if folders[folder] == 1:
            run, checkpoint = posixpath.split(folder)
            folder = posixpath.join(run, _NUMBER.sub("#", checkpoint), name)
        names.append(folder)
    return names


def chain_sources(sources: Sequence[Source]) -> list[Source]:
    """Return sources with names that put the outputs of a chain into one folder, where they find each other.

    Raises:
        NolaError: ``option``: No two sources are in one chain, so that every file would stand alone.
    """
    names = chain_names([source.path for source in sources])
    if len(sources) > 1 and len(set(names)) == len(sources):
        message = (
            f"no two of the {len(sources)} sources are in one chain: they must lie in one folder, or have one name in "
            "folders beside each other that differ in numbers alone. Give them so, or leave out the chain"
        )
        raise NolaError(message, code="option")
    return [
        source
        if source.is_named or chain == posixpath.dirname(source.path)
        else replace(source, name=source.name.replace("/", "-"))
        for source, chain in zip(sources, names, strict=True)
    ]


def written_reference(item: Item, items: Mapping[str, Item], directory: Path) -> Item:
    """Return an item as it is when its turn comes: with the nearest output before it in its chain that is there.

    Outputs are missing after sources that failed. The present output of the item is kept if that one is what it needs
    already: it was only looked at again, or was made again with the same result.

    Args:
        item: The item.
        items: All items of the run, by output.
        directory: The destination.
    """
    name = item.options.get(REFERENCE)
    while name is not None and not (directory / name).is_file():
        name = items[name].options.get(REFERENCE)
    options = {key: value for key, value in item.options.items() if key != REFERENCE}
    if name is None:
        return replace(item, options=options)
    is_stale = item.is_stale and not _needs(directory / item.output, directory / name)
    return replace(item, options={**options, REFERENCE: name}, is_stale=is_stale)


def renew_plan(plan: Plan, items: Sequence[Item], directory: Path) -> Plan:
    """Return the plan of a chain: what was coded against a file that is made anew, or that is another now, is work too.

    Args:
        plan: The plan of the items by themselves.
        items: All items, in the order of their chains.
        directory: The destination.
    """
    work = {item.output for item in plan.work}
    refused = {item.output for item, _ in plan.refused}
    stale = set()
    for item in items:
        before = item.options.get(REFERENCE)
        if before is None or item.output in refused:
            continue
        if before in work or not _needs(directory / item.output, directory / before):
            work.add(item.output)
            stale.add(item.output)
    return Plan(
        work=[replace(item, is_stale=item.output in stale) for item in items if item.output in work],
        unchanged=[item for item in plan.unchanged if item.output not in work],
        refused=plan.refused,
    )


def _needs(file: Path, reference: Path) -> bool:
    """Return True if a file is coded against another one as both are now."""
    try:
        with open_container(file) as own, open_container(reference) as other:
            entry = own.header.reference
            return entry is not None and entry.sha256 == other.header.decoded_sha256
    except (NolaError, OSError):
        return False
