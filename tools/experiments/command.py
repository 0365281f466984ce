"""Options that the commands of the experiments share."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(doc: str | None, what: tuple[str, ...] = ()) -> argparse.Namespace:
    """`--json`, `--plot` and `--made`, and one of some words where there is a choice."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if what:
        parser.add_argument("what", choices=what)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="write a plot here: .svg or .png")
    parser.add_argument("--made", action="store_true", help="only runs that were made before; the others are left out")
    return parser.parse_args()
