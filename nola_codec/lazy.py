"""Import a value when it is first asked for, so that a program loads only the modules that it needs.

A package lists the names that it offers with `lazy_names`, and a table of values is a `LazyTable`. A function that
needs a module on a rare path has an ordinary import inside. NumPy takes half of the time of a small command, and a
header is read without it: a module that reading a header loads has ``from nola_codec.lazy import numpy as np``.
tests/cli/test_startup.py says which modules a command may load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

Value = TypeVar("Value")


class _LazyModule(ModuleType):
    """A module that is imported when one of its names is first used; from then on its names are here too."""

    def __getattr__(self, name: str) -> Any:
        vars(self).update(vars(import_module(self.__name__)))
        return getattr(import_module(self.__name__), name)


if TYPE_CHECKING:
    import ctypes as ctypes

    import numpy as numpy
else:
    ctypes, numpy = _LazyModule("ctypes"), _LazyModule("numpy")


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for the ``__init__`` of a package.

    Args:
        package: The name of the package.
        homes: For each name that the package offers, the module that defines it, relative to the package.

    Example:
        >>> __getattr__, __dir__ = lazy_names("collections", {"Mapping": "abc"})
        >>> __getattr__("Mapping")
        <class 'collections.abc.Mapping'>
    """
    names = vars(import_module(package))

    def getattr_of_package(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = names[name] = getattr(import_module(f"{package}.{homes[name]}"), name)
        return value

    return getattr_of_package, lambda: sorted({*names, *homes})


class LazyTable(MutableMapping[str, Value]):
    """A table whose values are imported one by one, each when it is first looked up.

    Example:
        >>> table = LazyTable("collections", {"map": "abc:Mapping"})
        >>> list(table), table["map"]
        (['map'], <class 'collections.abc.Mapping'>)
    """

    def __init__(self, package: str, homes: Mapping[str, str]) -> None:
        """Make a table.

        Args:
            package: The package of the modules.
            homes: For each key ``module:name``, with the module relative to the package.
        """
        self._package = package
        self._entries: dict[str, str | tuple[Value]] = dict(homes)

    def __getitem__(self, key: str) -> Value:
        entry = self._entries[key]
        if isinstance(entry, str):
            module, _, name = entry.partition(":")
            entry = self._entries[key] = (getattr(import_module(f"{self._package}.{module}"), name),)
        return entry[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __setitem__(self, key: str, value: Value) -> None:
        self._entries[key] = (value,)

    def __delitem__(self, key: str) -> None:
        del self._entries[key]
