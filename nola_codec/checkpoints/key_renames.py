"""The names that a model of Transformers gives its weights in memory, from the keys of a checkpoint.

Transformers renames keys when it loads a model, joins the experts of a layer into one tensor, and splits or joins fused
projections. An adapter has the names of the model in memory, and an adapter of an older Transformers has those of an
older memory, which are the keys that checkpoints still have. So the same rules, applied to the keys of a checkpoint and
to the names of an adapter, bring both to one name.

The rules are data: ``key_renames.json``, which ``tools/make_key_renames.py`` copies from the installed Transformers.

    rules           by the name of a class or the type of a model: rows of [source patterns, target patterns, kind]
    architectures   the parts of a model that have rules: [name of the rules, scope, prefix of the base model]
    types           the architecture that a type of model stands for if the configuration names none

The kinds of a row are ``rename`` (if there is none), ``group`` (each source has its own target), ``experts`` (one
weight for each expert, and for each source one part of the rows), ``join`` (the sources are the rows of the target),
``split`` (the reverse) and ``other`` (the numbers change places, so that the two weights do not correspond).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("key_renames.json")
# The scopes of the parts of composite models whose parts are of another type than those of the table.
_SCOPES = {"text_config": "language_model", "vision_config": "vision_tower"}
# Models that keep the experts of one tensor (in, out) each (`is_transposed` in Transformers).
_TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter"})
# The rules for experts serve every type of model that has none for them.
_GENERAL_RULES = ("mixtral", "qwen2_moe")


@dataclass(frozen=True)
class WeightName:
    """A weight in memory, or a part of one.

    Attributes:
        whole: The name of the weight in memory; for a fused weight on disk, the names of its parts.
        part: The number of the part, of `count` equal shares of the rows; 0 if it is the whole.
        count: The number of parts; 1 if the name means the whole weight.
        expert: The number of the expert; None if the weight has no dimension for experts, or for all of them.
    """

    whole: str
    part: int = 0
    count: int = 1
    expert: int | None = None

    @property
    def is_whole(self) -> bool:
        """True if the name means the whole weight."""
        return self.count == 1 and self.expert is None


class _Rule:
    """One row of the table, for the keys under one scope."""

    def __init__(self, row: list[Any], scope: list[str]) -> None:
        self.sources, self.targets = row[0], row[1]
        self.kind = row[2] if len(row) > 2 else "rename"
        self._prefixes = None if not scope else tuple(_scope_prefixes(*scope))
        self._pattern = _alternatives(self.sources)
        self._parts = _alternatives(self.targets) if self.kind == "split" else None

    def match(self, name: str) -> tuple[str, str, int, re.Match[str]] | None:
        """Return the prefix, the rest of the name, the number of the source that matches, and the match."""
        return self._find(name, self._pattern)

    def match_part(self, name: str) -> tuple[str, str, int, re.Match[str]] | None:
        """Return the same for the targets of a row that splits one weight; None for another row."""
        return None if self._parts is None else self._find(name, self._parts)

    def _find(self, name: str, pattern: re.Pattern[str]) -> tuple[str, str, int, re.Match[str]] | None:
        prefix = ""
        if self._prefixes is not None:
            found = next((each for each in self._prefixes if name.startswith(each)), None)
            if found is None:
                return None
            prefix = found
        rest = name[len(prefix) :]
        match = pattern.search(rest)
        if match is None:
            return None
        number = next(int(group[1:]) for group, value in match.groupdict().items() if value is not None)
        return prefix, rest, number, match

    def replace(self, found: tuple[str, str, int, re.Match[str]], replacement: str) -> str:
        """Return the name with the match replaced; a backslash and 1 stand for the first group of the source."""
        prefix, rest, number, match = found
        first = match.re.groupindex[f"g{number}"]
        replacement = re.sub(r"\\(\d)", lambda each: match.group(first + int(each[1])) or "", replacement)
        return prefix + rest.replace(match.group(0), replacement, 1)


def _scope_prefixes(scope: str, base: str) -> Iterable[str]:
    scope, base = (f"{each}." if each else "" for each in (scope, base))
    return (base + scope, scope)


def _alternatives(patterns: list[str]) -> re.Pattern[str]:
    """Return one pattern for all, as `WeightTransform` of Transformers makes it."""
    branches = []
    for number, pattern in sorted(enumerate(patterns), key=lambda each: -len(each[1])):
        body = pattern.replace("*.", r".*\.")
        end = r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", body) else ""
        branches.append(f"(?P<g{number}>{body}{end})")
    return re.compile("|".join(branches))


class KeyRenames:
    """The rules of one model."""

    def __init__(self, rules: Iterable[_Rule]) -> None:
        """Take the rules in their order."""
        rules = list(rules)
        self._renames = [rule for rule in rules if rule.kind in ("rename", "group")]
        self._converters = [rule for rule in rules if rule.kind not in ("rename", "group")]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> KeyRenames:
        """Return the rules for a model with this configuration; those for experts if its type has none.

        Args:
            config: The parsed ``config.json``.
        """
        table = _table()
        names = [*_strings(config.get("architectures")), table["types"].get(_type_of(config), "")]
        parts = next((table["architectures"][name] for name in names if name in table["architectures"]), None)
        if parts is None:
            own = [name for name in (*names, _type_of(config)) if name in table["rules"]][:1]
            parts = [[name] for name in own]
        parts = list(parts)
        used = {part[0] for part in parts}
        for key, scope in _SCOPES.items():
            inner = _type_of(config.get(key))
            for name in (table["types"].get(inner, ""), inner):
                if name in table["rules"] and name not in used:
                    parts.append([name, scope, "model"])
                    break
        rules = [_Rule(row, part[1:]) for part in parts for row in table["rules"][part[0]]]
        if not any(rule.kind == "experts" for rule in rules):
            rules += [_Rule(row, []) for name in _GENERAL_RULES for row in table["rules"][name]]
        return cls(rules)

    def read(self, name: str) -> WeightName:
        """Return what a key of a checkpoint, or the name of a weight in an adapter, means in memory."""
        for rule in self._renames:
            found = rule.match(name)
            if found is not None:
                name = rule.replace(found, rule.targets[found[2] if rule.kind == "group" else 0])
        for rule in self._converters:
            found = rule.match(name)
            if found is not None:
                return _converted(rule, found, name)
            found = rule.match_part(name)
            if found is not None:
                return WeightName(_fused(rule, found), found[2], len(rule.targets))
        return WeightName(name)


def _converted(rule: _Rule, found: tuple[str, str, int, re.Match[str]], name: str) -> WeightName:
    if rule.kind == "other":
        return WeightName(f"{name} ({rule.targets[0]})")
    if rule.kind == "split":
        return WeightName(_fused(rule, found))
    expert = None
    if rule.kind == "experts":
        number = re.search(r"\.(\d{1,9})\.", found[3].group(0))
        if number is None:
            return WeightName(name)
        expert = int(number[1])
    return WeightName(rule.replace(found, rule.targets[0]), found[2], len(rule.sources), expert)


def _fused(rule: _Rule, found: tuple[str, str, int, re.Match[str]]) -> str:
    """Return one name for a fused weight on disk, from its own name or from that of a part."""
    prefix, rest, _, match = found
    return prefix + rest.replace(match.group(0), "+".join(rule.targets), 1)


def _strings(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _type_of(config: Any) -> str:
    found = config.get("model_type") if isinstance(config, Mapping) else None
    return found if isinstance(found, str) else ""


def experts_transposed(config: Mapping[str, Any]) -> bool | None:
    """Return True if a model keeps the experts of one tensor (in, out) each, and False if (out, in).

    Args:
        config: The parsed ``config.json``.

    Returns:
        None if the type of the model does not tell it: it is not known, or it has checkpoints of both kinds.
    """
    found = [config.get("model_type"), _type_of(config.get("text_config"))]
    if _TRANSPOSED_EXPERTS.intersection(found):
        return True
    rules = _table()["rules"]
    rows = [row for name in found if name in rules for row in rules[name]]
    return False if any(row[2:] == ["experts"] for row in rows) else None


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table
