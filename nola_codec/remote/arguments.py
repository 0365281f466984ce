"""`accepts_urls`: let a function that takes paths take URLs too."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from nola_codec.errors import NolaError
from nola_codec.remote.addresses import is_url, shown_url

_Function = TypeVar("_Function", bound=Callable[..., Any])


def accepts_urls(*names: str, nola: str = "", out: str = "") -> Callable[[_Function], _Function]:
    """Return a decorator for a function of paths.

    The function gets local copies of the URLs (`fetch`), and a local path in place of a URL to write to (`publish`),
    with the caller's ``progress`` and ``overwrite``. In its errors and notes, and in the paths that it returns, the
    URLs stand again.

    Args:
        *names: The parameters that are read: each a path, or a list of paths or of pairs of a path and something.
        nola: The parameter for `.nola` files, read as the others are; empty if there is none.
        out: The parameter that is written to; empty if there is none.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            if not any(_holds_url(value) for value in (*arguments, *keywords.values())):
                return function(*arguments, **keywords)
            try:
                bound = signature.bind(*arguments, **keywords)
            except TypeError:
                return function(*arguments, **keywords)  # which says what is wrong with its arguments
            given = bound.arguments
            options = {**keywords, **given}
            shown: dict[str, str] = {}
            with _as_given(shown):
                target = given.get(out) if out else None
                with _target(target, overwrite=bool(options.get("overwrite")), shown=shown) as place:
                    fetch_options = {"progress": options.get("progress")}
                    for name in (*names, *([nola] if nola else [])):
                        if _holds_url(given.get(name)):
                            given[name] = _localize(given[name], shown, **fetch_options, wants_nola=name == nola)
                    if out and out in given:
                        given[out] = place
                    if callable(note := options.get("note")) and "note" in given:
                        given["note"] = lambda sentence: note(_replaced(sentence, shown))
                    result = function(*bound.args, **bound.kwargs)
                return _shown_result(result, shown, target if is_url(target) else None, place)

        return cast("_Function", call)

    return decorate


@contextmanager
def local_copies(*values: str | None, progress: Any = None) -> Iterator[tuple[str | None, ...]]:
    """Yield values with local copies in place of URLs; errors within the ``with`` block name the URLs again.

    Args:
        *values: Paths, URLs, or None.
        progress: Called as `fetch` says, or None.
    """
    shown: dict[str, str] = {}
    with _as_given(shown):
        yield tuple(_localize(value, shown, progress=progress) for value in values)


def _holds_url(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_url(item) for item in value)
    return is_url(value)


def _localize(value: Any, shown: dict[str, str], **options: Any) -> Any:
    """Return a value with local paths in place of URLs, and note which path stands for which URL."""
    if isinstance(value, list | tuple):
        return type(value)(_localize(item, shown, **options) for item in value)
    if not is_url(value):
        return value
    from nola_codec.remote.fetching import fetch

    path = fetch(value, **options)
    shown[os.fspath(path)] = shown_url(value)
    return os.fspath(path)


@contextmanager
def _target(value: Any, *, overwrite: bool, shown: dict[str, str]) -> Iterator[Any]:
    if not is_url(value):
        yield value
        return
    from nola_codec.remote.publishing import publish

    with publish(value, overwrite=overwrite) as path:
        shown[os.fspath(path)] = shown_url(value)
        yield os.fspath(path)


@contextmanager
def _as_given(shown: dict[str, str]) -> Iterator[None]:
    """Raise errors under the names that the caller gave."""
    try:
        yield
    except NolaError as error:
        message, where = _replaced(str(error), shown), _replaced(error.where, shown)
        if (message, where) == (str(error), error.where):
            raise
        if error.where:
            message = message.removeprefix(f"{where}: ")
        raise type(error)(message, code=error.code, where=where) from error


def _replaced(text: str, shown: dict[str, str]) -> str:
    for path, url in shown.items():
        text = text.replace(path, url)
    return text


def _shown_result(result: Any, shown: dict[str, str], target: str | None, place: Any) -> Any:
    """Return a result whose notes and paths name URLs."""
    if isinstance(result, Path) and target is not None and os.fspath(result) == place:
        return target
    if isinstance(result, tuple):
        return tuple(_shown_result(item, shown, target, place) for item in result)
    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        return result
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if field.name == "notes":
            changes["notes"] = tuple(_replaced(note, shown) for note in value)
        elif field.name == "output" and target is not None and os.fspath(value) == place:
            changes["output"] = target
    return dataclasses.replace(result, **changes) if changes else result
