"""Measure the size of an installation: the package alone, and with each of its extras.

    python tools/bench/install_size.py [--json] [-o FILE]

The program counts the files of every package that an installation brings, as they lie in this environment. It downloads
nothing.
Packages that are not installed here are named, and their size is not counted. Compiled Python files are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from common import ROOT, table
from packaging.requirements import Requirement

EXTRAS = ("", "torch", "peft", "gguf", "plot")


def requirements(extra: str) -> list[str]:
    """Return the requirements in pyproject.toml: the dependencies, and those of an extra."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = []
    for name in ("dependencies", *([extra] if extra else [])):
        listed = re.search(rf"^{name} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
        assert listed is not None, name
        found += re.findall(r'"([^"]+)"', listed[1])
    return found


def packages(wanted: Sequence[str]) -> tuple[dict[str, metadata.Distribution], list[str]]:
    """Return all packages that these requirements bring, by name, and the names of those that are not installed."""
    found: dict[str, metadata.Distribution] = {}
    missing: list[str] = []
    left = [(Requirement(text), "") for text in wanted]
    seen = set()
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = tuple(sorted(requirement.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        found[name] = distribution
        for text in distribution.requires or ():
            left += [(Requirement(text), extra) for extra in ("", *extras)]
    return found, sorted(set(missing))


def installed_bytes(distribution: metadata.Distribution) -> int:
    """Return the bytes of a package's files."""
    paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file())


def own_bytes() -> int:
    """Return the bytes of this package."""
    files = (ROOT / "nola_codec").rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file() and path.suffix != ".pyc")


def main() -> None:
    """Measure, and print a table (or JSON with --json)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for extra in EXTRAS:
        found, missing = packages(requirements(extra))
        sizes = {name: installed_bytes(distribution) for name, distribution in sorted(found.items())}
        rows.append({
            "install": f"nola-codec[{extra}]" if extra else "nola-codec", "bytes": own_bytes() + sum(sizes.values()),
            "packages": {"nola-codec": own_bytes(), **sizes}, "missing": missing,
        })  # fmt: skip
    text = json.dumps(rows, indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
        return
    lines = []
    for row in rows:
        largest = sorted(row["packages"].items(), key=lambda item: -item[1])[:3]
        names = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest)
        lines.append([row["install"], f"{row['bytes'] / 1e6:,.1f}", len(row["packages"]), names])
        if row["missing"]:
            print(f"{row['install']}: not installed here, not counted: {', '.join(row['missing'])}", file=sys.stderr)
    print(table(lines, ["install", "MB", "packages", "largest, MB"]))


if __name__ == "__main__":
    main()
