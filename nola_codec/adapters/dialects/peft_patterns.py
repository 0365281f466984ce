r"""Match the patterns of `rank_pattern` and `alpha_pattern` as PEFT does, within a bounded time.

PEFT takes the first pattern for which ``re.match(rf"(.*\.)?({pattern})$", path)`` is true (`get_pattern_key` of peft
0.21). Python's `re` goes back and tries again, which takes days for some patterns of a hundred characters, and a
configuration may be a stranger's. So a literal name is looked up, a pattern without alternatives and repetitions
goes to `re`, and any other one is followed through all its alternatives at once (Thompson's simulation). Only whether a
pattern fits counts here, and that does not depend on the order in which alternatives are tried.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from nola_codec.errors import AdapterError

_LONGEST = 1000
_MOST_STATES = 5_000
_MOST_STEPS = 20_000_000
"""The steps that all patterns of an option may take, about ten seconds."""
_CALL, _STEP = 4, 1024
"""The steps that a call of `re` costs, and the comparisons of characters in it that take the time of one step."""

_LITERAL = re.compile(r"(\^?)((?:[\w/-]|\\[^\w\s])+)", re.ASCII)
_SIMPLE = re.compile(r"(?:[^\\()\[\]{}|*+?]|\\[^\w\s])+", re.ASCII)
"""Patterns of literal characters, ``.``, ``^`` and ``$``; `re` can fit them at a place in one way only."""
_ESCAPED = re.compile(r"\\(.)")
_REPEAT = re.compile(r"\{(\d*)(,?)(\d*)\}")
_CHARACTER_ESCAPES = frozenset("dDwWsSntrfva")
_PLACES = frozenset(("^", "$", "\\A", "\\Z", "\\b", "\\B"))
"""Atoms that match between characters."""


class PatternMap:
    r"""Patterns in their order, each with a value.

    ranks = PatternMap({r"layers\.0\..*": 16, "q_proj": 4}, "adapter_config.json: rank_pattern")
    ranks.find("model.layers.0.self_attn.q_proj")     # 16: the first one that fits
    """

    def __init__(self, patterns: Mapping[str, Any] | None = None, where: str = "") -> None:
        """Compile the patterns.

        Args:
            patterns: Values by pattern.
            where: The configuration and the option, for messages.

        Raises:
            AdapterError: ``bad-config``: These are not patterns; ``unsafe-pattern``: They take too long, or use what
                cannot be matched without going back.
        """
        self._where = where
        self._values: list[Any] = []
        self._exact: dict[str, int] = {}
        self._suffixes: dict[str, int] = {}
        self._others: list[tuple[int, str, Callable[[str], bool]]] = []
        self._left = _MOST_STEPS
        for number, (pattern, value) in enumerate((patterns or {}).items()):
            self._values.append(value)
            literal = _LITERAL.fullmatch(pattern)
            if literal is not None:
                names = self._exact if literal[1] else self._suffixes
                names.setdefault(_ESCAPED.sub(r"\1", literal[2]), number)
            else:
                self._others.append((number, pattern, self._compile(pattern)))

    def find(self, path: str) -> Any | None:
        """Return the value of the first pattern that fits the path of a module, or None.

        Raises:
            AdapterError: ``unsafe-pattern``: The patterns take too long for so many modules.
        """
        if not self._values:
            return None
        name = path.removesuffix("\n")  # `$` also matches before a last line feed, and `.` matches none
        line = name.partition("\n")[0]
        names = [name] + [name[match.end() :] for match in re.finditer(r"\.", line)]
        found = [self._suffixes[own] for own in names if own in self._suffixes]
        first = min([*found, self._exact.get(name, len(self._values))], default=len(self._values))
        for number, _, fits in self._others:
            if number >= first:
                break
            if fits(path):
                first = number
        return self._values[first] if first < len(self._values) else None

    def _compile(self, pattern: str) -> Callable[[str], bool]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what `[[` may mean in a later version of Python
            return self._compile_warned(pattern)

    def _compile_warned(self, pattern: str) -> Callable[[str], bool]:
        if len(pattern) > _LONGEST:
            raise self._unsafe(pattern)
        whole = rf"(.*\.)?({pattern})$"
        try:
            compiled = re.compile(whole)
        except (re.error, RecursionError, OverflowError) as error:
            message = f"pattern {pattern[:80]!r} is not a regular expression: {error}"
            raise AdapterError(message, code="bad-config", where=self._where) from error
        if _SIMPLE.fullmatch(pattern):

            def fits(path: str) -> bool:
                self._spend(_CALL + len(path) * len(pattern) // _STEP, pattern)
                return compiled.match(path) is not None

            return fits
        try:
            machine = _Machine(whole)
        except (_Unsupported, RecursionError) as error:
            raise self._unsafe(pattern) from error
        return lambda path: machine.fits(path, lambda steps: self._spend(steps, pattern))

    def _spend(self, steps: int, pattern: str) -> None:
        self._left -= steps
        if self._left < 0:
            raise self._unsafe(pattern)

    def _unsafe(self, pattern: str) -> AdapterError:
        message = (
            f"pattern {pattern[:80]!r} could take for ever to match, or looks ahead or back; write the names of "
            "modules, or a shorter expression"
        )
        return AdapterError(message, code="unsafe-pattern", where=self._where)


class _Unsupported(Exception):
    """A pattern is too large, or has a construct that the machine does not know."""


class _Machine:
    """An automaton for one regular expression: states that are left by a character, by a place, or freely.

    A state is (atom or None, its expression, the states after it); the last state is number 0.
    """

    def __init__(self, pattern: str) -> None:
        """Parse a pattern, which `re` accepts. Raises _Unsupported."""
        self._pattern, self._position, self._made = pattern, 0, 0
        self._states: list[tuple[str | None, re.Pattern[str] | None, list[int]]] = [(None, None, [])]
        tree = self._alternatives()
        if self._position < len(pattern):
            raise _Unsupported
        self._start = self._build(tree, 0)

    def fits(self, path: str, spend: Callable[[int], None]) -> bool:
        """Return True if the expression matches from the start of a path; it says where the match must end itself.

        `spend` is called with the number of states that each character takes.
        """
        current = self._reach([self._start], path, 0)
        for place, character in enumerate(path):
            spend(1 + len(current))
            if 0 in current:
                return True
            after = []
            for number in current:
                atom, expression, following = self._states[number]
                if atom == character or (expression is not None and expression.match(character) is not None):
                    after += following
            current = self._reach(after, path, place + 1)
        return 0 in current

    def _reach(self, numbers: list[int], path: str, place: int) -> set[int]:
        """Return the states that are left by a character and can be reached from some at a place, and the last one."""
        seen: set[int] = set()
        found: set[int] = set()
        while numbers:
            number = numbers.pop()
            if number in seen:
                continue
            seen.add(number)
            atom, expression, following = self._states[number]
            if number == 0 or (atom is not None and atom not in _PLACES):
                found.add(number)
            elif atom is None or (expression is not None and expression.match(path, place) is not None):
                numbers += following
        return found

    def _alternatives(self) -> list[list[tuple[Any, int, int | None]]]:
        """Parse sequences divided by ``|``; a sequence is a list of (atom or alternatives, least, most repeats)."""
        made = [self._sequence()]
        while self._take("|"):
            made.append(self._sequence())
        return made

    def _sequence(self) -> list[tuple[Any, int, int | None]]:
        made = []
        while self._position < len(self._pattern) and self._pattern[self._position] not in "|)":
            piece = self._piece()
            made.append((piece, *self._repeats()))
        return made

    def _piece(self) -> Any:
        text, start = self._pattern, self._position
        if self._take("("):
            if self._take("?"):
                named = re.compile(r":|P<\w+>").match(text, self._position)
                if named is None:
                    raise _Unsupported
                self._position = named.end()
            tree = self._alternatives()
            if not self._take(")"):
                raise _Unsupported
            return tree
        if text[start] == "[":
            end = start + 1 + (text[start + 1 : start + 2] == "^")
            end += text[end : end + 1] == "]"
            while text[end] != "]":
                end += 2 if text[end] == "\\" else 1
            self._position = end + 1
        elif text[start] == "\\":
            letter = text[start + 1]
            if letter.isalnum() and letter not in _CHARACTER_ESCAPES and text[start : start + 2] not in _PLACES:
                raise _Unsupported
            self._position += 2
        else:
            self._position += 1
        return text[start : self._position]

    def _repeats(self) -> tuple[int, int | None]:
        counts = _REPEAT.match(self._pattern, self._position)
        if self._take("*"):
            least, most = 0, None
        elif self._take("+"):
            least, most = 1, None
        elif self._take("?"):
            least, most = 0, 1
        elif counts is not None and (counts[1] or counts[2]):
            self._position = counts.end()
            least = int(counts[1] or 0)
            last = counts[3] if counts[2] else counts[1]
            most = int(last) if last else None
        else:
            return 1, 1
        if self._take("+"):  # possessive: what it took is not given back
            raise _Unsupported
        self._take("?")
        return least, most

    def _take(self, mark: str) -> bool:
        found = self._pattern.startswith(mark, self._position)
        self._position += found
        return found

    def _build(self, tree: Any, following: int) -> int:
        """Add the states of an atom or of alternatives before a state, and return the first of them."""
        self._made += 1
        if self._made > _MOST_STATES:
            raise _Unsupported
        if isinstance(tree, str):
            plain = len(tree) == 1 and tree not in ".^$"
            return self._add(tree, None if plain else re.compile(tree), [following])
        return self._add(None, None, [self._build_sequence(sequence, following) for sequence in tree])

    def _build_sequence(self, sequence: list[tuple[Any, int, int | None]], following: int) -> int:
        for piece, least, most in reversed(sequence):
            if most is None:
                loop = self._add(None, None, [following])
                self._states[loop][2].append(self._build(piece, loop))
                following = loop
            else:
                after = following
                for _ in range(most - least):
                    following = self._add(None, None, [after, self._build(piece, following)])
            for _ in range(least):
                following = self._build(piece, following)
        return following

    def _add(self, atom: str | None, expression: re.Pattern[str] | None, following: list[int]) -> int:
        self._states.append((atom, expression, following))
        return len(self._states) - 1
