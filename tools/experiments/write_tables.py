"""Write the tables of the pages from the results of experiments.

    python tools/experiments/write_tables.py                    # every table of docs/
    python tools/experiments/write_tables.py --take vit e2e     # first move new results from the cache to docs/

A table stands between `<!-- table: NAME.TABLE -->` and `<!-- end -->`; `results.py` says how one is added.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import results
from real_data import ROOT

DOCS = ROOT / "docs"
_MARKED = re.compile(r"(<!-- table: (\w+)\.(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def make_table(name: str, table: str) -> str:
    """Return a table as Markdown, made from the results in the repository."""
    module = importlib.import_module(f"page_tables.{name}")
    made: str = getattr(module, table)(results.read(name, with_cache=False))
    return made


def with_tables(page: str) -> str:
    """Return the text of a page with its tables made anew."""
    found = _MARKED.sub(lambda m: f"{m[1]}\n{make_table(m[2], m[3])}\n\n{m[5]}", page)
    if found.count("<!-- table:") != len(_MARKED.findall(found)):
        raise ValueError("a `<!-- table: NAME.TABLE -->` has no `<!-- end -->`, or is not written so")
    return found


def pages() -> list[Path]:
    """Return the pages of the documentation."""
    return sorted(DOCS.rglob("*.md"))


def main() -> None:
    """Move results, and write tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", nargs="+", default=[], metavar="NAME", help="move these results from the cache")
    for name in parser.parse_args().take:
        results.take(name)
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = with_tables(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote the tables of {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
