"""Checks of what a caller hands to the library's functions, before any work; and writing to a target."""

from __future__ import annotations

import enum
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from nola_codec.container.prelude import MAGIC
from nola_codec.errors import AdapterError, EncodeError
from nola_codec.stores.files import atomic_file, require_free

_MAX_DEPTH = 100
"""Levels of nesting that are looked into; reading the adapter refuses more."""


class ConfigObject(Protocol):
    """A configuration as an object, such as a `peft.LoraConfig`."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as names and values."""


def require_source(source: object) -> None:
    """Refuse an object that is no path, bytes or binary stream. Raises AdapterError ``source-type``."""
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return
    found = f"{type(source).__module__}.{type(source).__qualname__}"
    message = f"expected a path, bytes or a binary stream, found {found}"
    if hasattr(source, "save_pretrained"):
        message += "; encode the adapter of the model first, with nola_codec.encode(model, OUT)"
    elif isinstance(source, Mapping):
        message += "; encode the tensors first, with nola_codec.encode(tensors, OUT, config=...)"
    raise AdapterError(message, code="source-type")


def require_target(out: object, *, overwrite: bool) -> None:
    """Refuse a target that a file cannot be written to.

    Args:
        out: A path, a binary stream, or None for no target.
        overwrite: True if a file that is there may be replaced.

    Raises:
        EncodeError: ``target-type`` for another object, a text stream or a directory, and for a path below a file;
            ``no-directory``.
        OutputExists: The path is there and `overwrite` is false.
    """
    if out is None:
        return
    if isinstance(out, str | os.PathLike):
        if Path(out).is_dir():
            message = "expected the name of a file to write, found a directory; add a file name to it"
            raise EncodeError(message, code="target-type", where=os.fspath(out))
        require_free(Path(out), overwrite=overwrite)
        require_parent(Path(out))
    elif not hasattr(out, "write") or isinstance(out, io.TextIOBase):
        raise EncodeError(f"expected a path or a binary stream, found {type(out).__qualname__}", code="target-type")


def require_parent(path: Path) -> None:
    """Check that the folder of a file to write is there.

    Raises:
        EncodeError: ``target-type``: A part of the path is a file; ``no-directory``.
    """
    if path.parent.is_dir():
        return
    nearest = next((folder for folder in path.parents if folder.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise EncodeError("expected a directory, found a file", code="target-type", where=str(nearest))
    raise EncodeError("no such directory", code="no-directory", where=str(path.parent))


def write_output(out: str | os.PathLike[str] | BinaryIO | None, data: bytes) -> None:
    """Write the bytes of a whole file to a target that `require_target` has let pass; a path appears at once."""
    if isinstance(out, str | os.PathLike):
        with atomic_file(out) as stream:
            stream.write(data)
    elif out is not None:
        out.write(data)


def require_path(out: object) -> None:
    """Refuse a target that is no path, where a directory may be written. Raises AdapterError ``target-type``."""
    if not isinstance(out, str | os.PathLike):
        raise AdapterError(f"expected a path to write to, found {type(out).__qualname__}", code="target-type")


def require_model_path(model: object) -> None:
    """Refuse a model that is no path, or that is a `.nola` file. Raises AdapterError ``source-type``, ``nola-file``."""
    if not isinstance(model, str | os.PathLike):
        found = f"{type(model).__module__}.{type(model).__qualname__}"
        message = f"expected the path of a model, found {found}"
        if hasattr(model, "save_pretrained"):
            message += "; save the model first, or use load(...).merge_into(model)"
        raise AdapterError(message, code="source-type")
    path = Path(model)
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) == MAGIC:
                message = "expected a model, found a .nola file; a model is a directory or a .safetensors file"
                raise AdapterError(message, code="nola-file", where=os.fspath(model))


def plain_config(config: Mapping[str, Any] | ConfigObject | None) -> dict[str, Any] | None:
    """A configuration as JSON would hold it: sets become sorted lists, tuples lists, enumerations their values.

    Raises:
        AdapterError: ``bad-config`` for an object that is no configuration, or a value that JSON cannot hold.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        if not callable(getattr(config, "to_dict", None)):
            message = f"config: expected a mapping or an object with to_dict(), found {type(config).__qualname__}"
            raise AdapterError(message, code="bad-config")
        config = config.to_dict()
    return {str(key): _plain_value(value, str(key)) for key, value in config.items()}


def _plain_value(value: object, name: str, depth: int = 0) -> Any:
    if isinstance(value, enum.Enum):
        return _plain_value(value.value, name, depth)
    if value is None or isinstance(value, str | int | float) or depth > _MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item, f"{name}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain_value(item, name, depth + 1) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain_value(item, name, depth + 1) for item in value]
    raise AdapterError(f"config: {name} is a {type(value).__qualname__}, which JSON cannot hold", code="bad-config")
