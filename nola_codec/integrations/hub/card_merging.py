"""Put the sections of files into the README of a repository, and change nothing else that its owner wrote.

The section of a file stands between two comments that name the file. A later push replaces what is between them. In the
front matter only keys are added that are not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nola_codec.errors import HubError
from nola_codec.integrations.hub.escaping import plain

README = "README.md"
LARGEST_README = 2 << 20  # bytes; the Hub shows no larger ones

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?P<yaml>(?:.*\r?\n)*?)---[ \t]*(?:\r?\n|\Z)")


def begin_mark(path: str) -> str:
    """Return the comment above the section of a file. Paths hold neither quotes nor angle brackets (`check_path`)."""
    return f'<!-- nola-codec: begin "{path}" (this part is written again by each push) -->'


def end_mark(path: str) -> str:
    """Return the comment below the section of a file."""
    return f'<!-- nola-codec: end "{path}" -->'


def new_readme(metadata: Mapping[str, Any], title: str, sections: Mapping[str, str]) -> str:
    """Return a whole README with front matter, a title and a section for each file."""
    return f"---\n{_dump(metadata)}---\n\n{title}" + "".join(
        f"\n{_marked(path, section)}" for path, section in sections.items()
    )


def merge_readme(found: bytes, metadata: Mapping[str, Any], sections: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the README with the sections of these files, and notes for the user.

    Args:
        found: The README of the repository.
        metadata: The front matter of the card. Only keys that the README lacks are added.
        sections: The section of each file, by its path.

    Raises:
        HubError: ``bad-card``: the README is no UTF-8, its front matter is no YAML mapping, or the marks of a section
            are not in order.
    """
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad("it is not UTF-8") from error
    newline = "\r\n" if "\r\n" in text else "\n"
    text, notes = _merge_metadata(text, metadata, newline)
    for path, section in sections.items():
        text = _put_section(text, path, _marked(path, section).replace("\n", newline), newline)
    return text, notes


def _merge_metadata(text: str, metadata: Mapping[str, Any], newline: str) -> tuple[str, list[str]]:
    match = _FRONT_MATTER.match(text)
    if match is None:
        head = f"---\n{_dump(metadata)}---\n\n".replace("\n", newline)
        return head + text.removeprefix("\ufeff"), []
    there = _parse(match["yaml"])
    missing = {key: value for key, value in metadata.items() if key not in there}
    if "base_model" in there:
        missing.pop("base_model_relation", None)  # it would speak of a base model that somebody else named
    notes = []
    if "base_model" in metadata and "base_model" in there and not _covers(there["base_model"], metadata["base_model"]):
        notes.append(f"the README names the base model {plain(there['base_model'])}, and the file "
                     f"{plain(metadata['base_model'])}; the README was left as it is")  # fmt: skip
    if not missing:
        return text, notes
    end = match.end("yaml")
    return text[:end] + _dump(missing).replace("\n", newline) + text[end:], notes


def _covers(there: object, wanted: object) -> bool:
    """Return True if the base models of a README are those of the files, or more."""
    names = [set(value) if isinstance(value, Sequence) and not isinstance(value, str) else {value}
             for value in (there, wanted)]  # fmt: skip
    return names[1] <= names[0]


def _parse(yaml_text: str) -> Mapping[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(yaml_text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(f"its front matter is no YAML: {plain(str(error).splitlines()[0])}") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping) or yaml_text.lstrip().startswith("{"):
        raise _bad("its front matter is no YAML mapping with a key on each line")
    return value


def _dump(metadata: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def _marked(path: str, section: str) -> str:
    return f"{begin_mark(path)}\n{section.rstrip()}\n{end_mark(path)}\n"


def _put_section(text: str, path: str, marked: str, newline: str) -> str:
    """Replace the section of a file, or add it at the end."""
    begin, end = begin_mark(path), end_mark(path)
    counts = text.count(begin), text.count(end)
    if counts == (0, 0):
        gap = "" if text.endswith(newline * 2) else newline if text.endswith(newline) else newline * 2
        return text + gap + marked
    start, stop = text.find(begin), text.find(end)
    if counts != (1, 1) or stop < start:
        raise _bad(f"the comments around the section of {path} are not one pair in order")
    return text[:start] + marked.rstrip("\r\n") + text[stop + len(end) :]


def _bad(reason: str) -> HubError:
    message = f"the README of the repository cannot be extended: {reason}; mend it there, or push with --no-card"
    return HubError(message, code="bad-card", where=README)
