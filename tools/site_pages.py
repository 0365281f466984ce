"""Fit the pages of the repository into the site that mkdocs builds (a hook of mkdocs.yml).

The pages are written for GitHub. Some lie outside of docs/, and become pages of the site here: the README is its home.
Links are written as GitHub follows them, between files of the repository. In the site, a link to a page becomes one to
that page of the site, and a link to any other file leads to GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = "https://github.com/nola-codec/nola-codec"
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "spec/nola-v1.md": "spec/nola-v1.md",
    "spec/conventions.md": "spec/conventions.md",
    "spec/encoding.md": "spec/encoding.md",
    "spec/conformance/README.md": "spec/conformance/README.md",
}
"""Pages of the repository that lie outside of docs/, and their places in the site."""

_LINK = re.compile(r"(?P<start>\]\()(?P<target>[^)\s]+)(?P<end>[)\s])")
_FENCE = re.compile(r"^(`{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_ON_GITHUB = re.compile(re.escape(HOME) + r"/(?:blob|raw|tree)/main/(?P<path>[^#]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside of docs/."""
    from mkdocs.structure.files import File

    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Give every link of a page its target in the site."""
    places = {place: source for source, place in OUTSIDE.items()}
    uri = page.file.src_uri
    text = fit_links(text, places.get(uri, f"docs/{uri}"), uri)
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # there is only one page in this section
        text = text.replace("\n## ", f"\n**Start here:** {_tutorials(config)}\n\n## ", 1)
    return text


def _tutorials(config: Any) -> str:
    """Return links to the tutorials of the navigation."""
    tutorials = next(section["Tutorials"] for section in config.nav if "Tutorials" in section)
    return " · ".join(f"[{title}]({uri})" for entry in tutorials for title, uri in entry.items())


def fit_links(text: str, source: str, place: str) -> str:
    """Return a page with the links that it has in the site.

    Args:
        text: The page, in Markdown.
        source: Its path in the repository.
        place: Its path in the site, before it becomes HTML.
    """

    def fit(match: re.Match[str]) -> str:
        return f"{match['start']}{_site_link(match['target'], source, place)}{match['end']}"

    pieces, last = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(fit, text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*pieces, _LINK.sub(fit, text[last:])])


def _site_link(link: str, source: str, place: str) -> str:
    target, mark, anchor = link.partition("#")
    on_github = _ON_GITHUB.fullmatch(target)
    if on_github is not None:
        path = on_github["path"]
    elif not target or re.match(r"[a-z]+:", target):
        return link
    else:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    path = path.rstrip("/")
    if path in OUTSIDE:
        inside = OUTSIDE[path]
    elif path.startswith("docs/") and (ROOT / path).is_file():
        inside = path.removeprefix("docs/")
    elif (ROOT / path).exists():
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{HOME}/{kind}/main/{path}{mark}{anchor}"
    else:
        return link  # mkdocs says that it leads nowhere
    return f"{posixpath.relpath(inside, posixpath.dirname(place) or '.')}{mark}{anchor}"
