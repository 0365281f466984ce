"""Text that comes from strangers' files, made safe for Markdown: it stays text, whatever it holds."""

from __future__ import annotations

import json
import unicodedata

_LONGEST = 200


def plain(text: object, longest: int = _LONGEST) -> str:
    """Return text as one line without control characters, or those that turn the direction of writing; shortened."""
    kept = "".join(
        " " if char.isspace() else char for char in str(text)[: 4 * longest] if char.isspace() or _is_shown(char)
    )
    line = " ".join(kept.split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _is_shown(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn")


def code(text: object) -> str:
    """Return text as a code span, which shows HTML, links and marks of Markdown as they are, also in a table."""
    line = plain(text).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else "(empty)"


def literal(text: str) -> str:
    """Return text as a string literal of Python in double quotes, on one line and in ASCII."""
    return json.dumps(plain(text))
