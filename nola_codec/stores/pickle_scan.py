"""Look through a pickle before torch runs it: only what a dict of tensors needs may be in it.

``torch.load(weights_only=True)`` does not suffice for files of strangers: it has had holes (CVE-2025-32434), it allows
calls that ask for any amount of memory, and it can be kept busy for ever by programs of a few hundred bytes.
"""

from __future__ import annotations

import io
import pickletools
import re
from types import MappingProxyType
from typing import Any

from nola_codec.errors import AdapterError

__all__ = ["require_plain"]

_MAX_OPCODES = 4_000_000  # some thirty a tensor; each may make an object of 100 bytes
_MAX_TUPLE = 200  # elements, those of inner tuples included: torch.save needs some twenty

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
    """Look through pickle programs, without running them: only what a dict of tensors needs may be in them.

    The stack is followed because small programs can build things that Python, or a message of torch's, takes for ever
    to hash or print: forty tuples or lists, each holding the one before it twice. So tuples may only be small, and
    lists and dicts may not occur twice. Only the few functions above may be called.
    """
    start = stream.tell()
    try:
        for _ in range(count):
            start = stream.tell()
            _Follower().follow(stream)
    except _Refused as e:
        stream.seek(start)
        name = _foreign_global(stream)
        reason = f"it refers to {name!r}, which is no part of a dict of tensors" if name else str(e)
        raise AdapterError(f"refused, and nothing of it was run: {reason}", code="pickle", where=where) from e
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as e:
        raise AdapterError(f"a damaged pickle, or none of PyTorch's: {e}", code="pickle", where=where) from e


class _Refused(Exception):
    """A program that does more than make a dict of tensors."""


# A thing on the stack is the number of elements in it, 1 unless it is a tuple, or one of these.
_CONTAINER = 0  # a dict or a list, or a tuple that holds one: how large it will be cannot be known here
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
    """The stack and the memo of a pickle machine that only measures."""

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marked: list[list[int]] = []
        self._memo: dict[int, int] = {}

    def follow(self, stream: io.BytesIO) -> None:
        """Follow one program to its end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_OPCODES:
                raise _Refused(f"more than {_MAX_OPCODES} opcodes")
            self._step(opcode.name, argument)

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSH:
            stack.append(_PUSH[name])
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if self._memo[argument] == _CONTAINER:
                raise _Refused("a dict or list occurs twice in it, which no state dict needs")
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
                raise _Refused("it calls what is no function")
            stack.append(1 if called == _FUNCTION else _CONTAINER)
        elif name == "BINPERSID":
            if stack.pop() == _CONTAINER:
                raise _Refused("a storage is named by a dict or list")
            stack.append(1)
        elif name in _POP:
            for _ in range(_POP[name]):
                stack.pop()
        elif name in ("SETITEMS", "APPENDS"):
            self._to_mark()
        elif name not in ("PROTO", "STOP"):
            raise _Refused(f"the pickle opcode {name} is no part of a dict of tensors as torch.save writes it")

    def _to_mark(self) -> list[int]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _push_tuple(self, items: list[int]) -> None:
        size = 1 + sum(max(item, 1) for item in items)
        if size > _MAX_TUPLE:
            raise _Refused(f"a tuple of more than {_MAX_TUPLE} elements")
        self._stack.append(_CONTAINER if _CONTAINER in items else size)


def _global(name: str) -> int:
    if name == _ORDERED_DICT:
        return _DICT_CLASS
    if name in _FUNCTIONS:
        return _FUNCTION
    if _TYPE.fullmatch(name):
        return 1
    raise _Refused(f"it refers to {name[:80]!r}")


def _foreign_global(stream: io.BytesIO) -> str | None:
    """Return the first class or function of a refused program that is no part of a dict of tensors."""
    strings = ["", ""]
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MAX_OPCODES:
                return None
            if opcode.name in ("GLOBAL", "INST"):
                name = str(argument)
            elif opcode.name == "STACK_GLOBAL":  # its two names were pushed last
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
