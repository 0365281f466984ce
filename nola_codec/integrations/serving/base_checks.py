"""Check that an adapter is of the model that is served: by name, and by shapes where the weights are at hand.

A server knows its model by an identifier of the Hub or by a path, and an adapter names the model that its trainer was
given. Two identifiers must be equal. If one of them is a path, or has no owner, the last part of it counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from nola_codec import adapters
from nola_codec.adapters import dialect_of
from nola_codec.checkpoints.checkpoint import Checkpoint
from nola_codec.errors import AdapterError
from nola_codec.merger.places import WeightShapes, grouped_deltas
from nola_codec.merger.plan import plan_merge
from nola_codec.stores.files import read_json

BaseCheck = Literal["strict", "warn"]
"""What is done about an adapter that names another model, or none: ``strict`` refuses it, ``warn`` says so."""

# The place of a model in the cache of the Hub, which servers show as its name: models--owner--repo/snapshots/<commit>
_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")


def names_of_model(base_model: str, others: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names that a served model goes by.

    Args:
        base_model: The identifier or the path that the server was given. The configuration of a directory may name the
            model too (``_name_or_path``).
        others: Further names.
    """
    found = [base_model, *others]
    config = Path(base_model) / "config.json"
    if config.is_file():
        named = _read_config(config).get("_name_or_path")
        found += [named] if isinstance(named, str) and named else []
    return tuple(found)


def is_same_model(first: str, second: str) -> bool:
    """Return True if two names may be those of one model."""
    first, second = _plain(first), _plain(second)
    if first.casefold() == second.casefold():
        return True
    if _is_identifier(first) and _is_identifier(second):
        return False
    return re.split(r"[/\\]", first)[-1].casefold() == re.split(r"[/\\]", second)[-1].casefold()


def check_shapes(adapter_directory: Path, model_directory: Path, name: str) -> bool:
    """Find a place in a model for every factor of a decoded adapter.

    Args:
        adapter_directory: The decoded adapter.
        model_directory: The model; only the headers of its weights are read.
        name: The adapter's name, for messages.

    Returns:
        False if it cannot be told: the directory has no weights in safetensors, or they are quantized.

    Raises:
        AdapterError: ``base-mismatch``: there is no such place.
    """
    adapter = adapters.read(adapter_directory)
    try:
        checkpoint = Checkpoint(model_directory)
        base = WeightShapes.of(checkpoint)
        targets = dialect_of(adapter).merge_targets(adapter, grouped_deltas(adapter), base, name)
        plan_merge(checkpoint, targets, names=base.names)
    except AdapterError as error:
        if error.code == "base-mismatch":
            raise
        return False
    return True


def model_state(model_directory: Path) -> str | None:
    """Return a text that changes when a model directory does; None if it is not one."""
    config = model_directory / "config.json"
    if not config.is_file() or not any(model_directory.glob("*.safetensors")):
        return None
    facts = [os.fspath(model_directory.resolve())]
    for path in sorted([config, *model_directory.glob("*.safetensors")]):
        found = path.stat()
        facts += [path.name, str(found.st_size), str(found.st_mtime_ns)]
    return "\n".join(facts)


def _plain(name: str) -> str:
    snapshot = _SNAPSHOT.search(name)
    return f"{snapshot[1]}/{snapshot[2]}" if snapshot else name.rstrip("/\\")


def _is_identifier(name: str) -> bool:
    """Return True for owner/repo."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).is_dir()


def _read_config(path: Path) -> Mapping[str, object]:
    try:
        return read_json(path)
    except AdapterError:
        return {}
