"""Look through a pickle before torch runs it, and refuse everything that a dict of tensors does not need.

``torch.load(weights_only=True)`` alone is not safe for files of strangers. It has had holes (CVE-2025-32434), it allows
calls that ask for any amount of memory, and a program of a few hundred bytes can keep it busy for ever.
"""

from __future__ import annotations

import io
import pickletools
import re
from types import MappingProxyType
from typing import Any

from nola_codec.errors import AdapterError

__all__ = ["require_plain"]

_MAX_OPCODES = 4_000_000  # a tensor needs about thirty; each opcode may make an object of 100 bytes
_MAX_TUPLE = 200  # elements, with those of inner tuples; torch.save needs about twenty

_ORDERED_DICT = "collections OrderedDict"
_FUNCTIONS = frozenset({
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
})  # fmt: skip
_TYPE = re.compile(
    r"torch(?:\.storage)? (?:[A-Z][A-Za-z0-9]*Storage|_UntypedStorage)"
    r"|torch (?:u?int\d+|b?float\d+(?:_\w+)?|complex\d+|bool|half|double|float)"
)


def require_plain(stream: io.BytesIO, count: int, where: str) -> None:
    """Check pickle programs without running them: only what a dict of tensors needs may be in them.

    Only the few functions above may be called. Tuples have to be small, and a list or dict may not be used twice: forty
    tuples or lists, each holding the one before it twice, are a small program, but hashing or printing the last of
    them would take for ever. To see this, the check follows the stack of the pickle machine.

    Args:
        stream: The programs, one after the other; it is left after the last one.
        count: The number of programs.
        where: The file's name, for messages.

    Raises:
        AdapterError: ``pickle``.
    """
    start = stream.tell()
    try:
        for _ in range(count):
            start = stream.tell()
            _Follower().follow(stream)
    except _Refused as e:
        stream.seek(start)
        name = _foreign_global(stream)
        reason = f"it refers to {name!r}, which a dict of tensors does not need" if name else str(e)
        message = f"this pickle is refused, and none of it was run: {reason}"
        raise AdapterError(message, code="pickle", where=where) from e
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, DeprecationWarning) as e:
        # The warning, of an escape in a name, is an exception where the caller made warnings errors.
        message = f"the pickle is damaged, or was not written by PyTorch: {e}"
        raise AdapterError(message, code="pickle", where=where) from e


class _Refused(Exception):
    """A program that does more than make a dict of tensors."""


# An object on the stack is represented by its number of elements (1 unless it is a tuple), or by one of these marks.
_CONTAINER = 0  # a dict or a list, or a tuple that holds one; its final size is not known yet
_FUNCTION, _DICT_CLASS = -1, -2

_PUSH = MappingProxyType({
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), _CONTAINER),
    **dict.fromkeys((
        "NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
        "LONG1", "EMPTY_TUPLE",
    ), 1),
})  # fmt: skip
_POP = MappingProxyType({"APPEND": 1, "SETITEM": 2, "BUILD": 1})
_TUPLES = MappingProxyType({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})


class _Follower:
    """The stack and the memo of a pickle machine that only counts elements, and builds no objects."""

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marked: list[list[int]] = []
        self._memo: dict[int, int] = {}

    def follow(self, stream: io.BytesIO) -> None:
        """Follow one program to its end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_OPCODES:
                raise _Refused(f"it has more than {_MAX_OPCODES} opcodes")
            self._step(opcode.name, argument)

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSH:
            stack.append(_PUSH[name])
        elif name == "GLOBAL":
            stack.append(_classify_global(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if self._memo[argument] == _CONTAINER:
                raise _Refused("it uses a dict or list twice, which no state dict needs")
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name == "TUPLE":
            self._push_tuple(self._to_mark())
        elif name in _TUPLES:
            self._push_tuple([stack.pop() for _ in range(_TUPLES[name])])
        elif name == "REDUCE":
            stack.pop()
            called = stack.pop()
            if called not in (_FUNCTION, _DICT_CLASS):
                raise _Refused("it calls something that is not a function")
            stack.append(1 if called == _FUNCTION else _CONTAINER)
        elif name == "BINPERSID":
            if stack.pop() == _CONTAINER:
                raise _Refused("it names a storage by a dict or list")
            stack.append(1)
        elif name in _POP:
            for _ in range(_POP[name]):
                stack.pop()
        elif name in ("SETITEMS", "APPENDS"):
            self._to_mark()
        elif name not in ("PROTO", "STOP"):
            raise _Refused(f"it uses the pickle opcode {name}, which torch.save does not write for a dict of tensors")

    def _to_mark(self) -> list[int]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _push_tuple(self, items: list[int]) -> None:
        size = 1 + sum(max(item, 1) for item in items)
        if size > _MAX_TUPLE:
            raise _Refused(f"it has a tuple of more than {_MAX_TUPLE} elements")
        self._stack.append(_CONTAINER if _CONTAINER in items else size)


def _classify_global(name: str) -> int:
    """Return the mark of a class or function that may occur, or 1 for a type; raise _Refused for any other."""
    if name == _ORDERED_DICT:
        return _DICT_CLASS
    if name in _FUNCTIONS:
        return _FUNCTION
    if _TYPE.fullmatch(name):
        return 1
    raise _Refused(f"it refers to {name[:80]!r}")


def _foreign_global(stream: io.BytesIO) -> str | None:
    """Return the first class or function in a refused program that a dict of tensors does not need, or None."""
    strings = ["", ""]
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_OPCODES:
                return None
            if opcode.name in ("GLOBAL", "INST"):
                name = str(argument)
            elif opcode.name == "STACK_GLOBAL":  # it takes the two strings that were pushed last
                name = " ".join(strings)
            else:
                if isinstance(argument, str):
                    strings = [strings[1], argument[:200]]
                continue
            if name != _ORDERED_DICT and name not in _FUNCTIONS and not _TYPE.fullmatch(name):
                return name[:200].replace(" ", ".")
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError):
        pass
    return None
