"""Write the tables of the pages from the results of experiments.

    python tools/experiments/write_tables.py                    # every table of docs/
    python tools/experiments/write_tables.py --take vit e2e     # first move new results from the cache to docs/

A table stands between `<!-- table: NAME.TABLE -->` and `<!-- end -->`; `results.py` says how one is added. Figures that
the package prints are lines of Python between `# table: NAME.TABLE` and `# end` in the files of FIGURES.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import results
from real_data import ROOT

DOCS = ROOT / "docs"
FIGURES = (ROOT / "nola_codec" / "encoder" / "expectation.py",)
_MARKED_LINES = re.compile(r"( *)# table: (\w+)\.(\w+)\n(.*?)( *# end\n)", re.DOTALL)
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


def with_figures(program: str) -> str:
    """Return the text of a file of the package with its figures made anew."""
    found = _MARKED_LINES.sub(
        lambda m: f"{m[1]}# table: {m[2]}.{m[3]}\n{m[1]}{make_table(m[2], m[3])}\n{m[5]}", program
    )
    if found.count("# table:") != len(_MARKED_LINES.findall(found)):
        raise ValueError("a `# table: NAME.TABLE` has no `# end`, or is not written so")
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
    for paths, make in ((pages(), with_tables), (FIGURES, with_figures)):
        for path in paths:
            before = path.read_text(encoding="utf-8")
            after = make(before)
            if after != before:
                path.write_text(after, encoding="utf-8")
                print(f"wrote the tables of {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
