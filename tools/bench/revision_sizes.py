"""The sizes of files of two revisions of the format at equal errors, for every real adapter at several sizes.

    python tools/bench/revision_sizes.py --label "revision 3"                       # with the package of this tree
    PYTHONPATH=OTHER python tools/bench/revision_sizes.py --label "revision 2"      # with that of another checkout

A run encodes each adapter at each size with the default options, and keeps bytes and errors under its label
(tools/experiments/results.py). Of a file of revision 3 it also keeps what three constructs save (constructs.py). When
both labels are there, the program prints the comparison. Files that are encoded at a size differ in their errors. So
each file of the newer revision is moved to the error of the older one along the adapter's own curve, a straight line
between its two nearest sizes in the logarithms of bytes and error.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import results
from page_tables.revision_sizes import NEWER, OLDER, SAVINGS, compare, revision_sizes
from real_data import adapters

NAME = "revision_sizes"
SIZES = ("10KB", "30KB", "90KB", "500KB")


def measure(path: Path, size: str, label: str) -> dict[str, Any]:
    """Encode an adapter at a size, and return the bytes of the file, its errors, and what constructs save."""
    from nola_codec import encode_bytes

    data, report = encode_bytes(path, size=size)
    made: dict[str, Any] = {"bytes": len(data), "effective_error": report.effective_error, "nmse": report.nmse}
    if label == NEWER:
        from constructs import CONSTRUCTS, Parts

        parts = Parts.of(data)
        made["saved"] = {name: CONSTRUCTS[name](parts).bytes for name in SAVINGS}
    return made


def main() -> None:
    """Measure with the package that is imported, and print the comparison as a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", choices=(OLDER, NEWER), help="measure the package that Python imports as this one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    results.add_options(parser)
    given = parser.parse_args()
    if given.label:
        from nola_codec.errors import EncodeError

        for name, path in adapters().items():
            for size in SIZES:
                settings = {"adapter": name, "size": size, "label": given.label}
                try:
                    results.measure(NAME, settings, partial(measure, path, size, given.label), anew=given.anew)
                except EncodeError as error:
                    print(f"{name} at {size} is left out: {error}", file=sys.stderr)
    found = results.read(NAME)
    print(json.dumps(compare(found), indent=1) if given.json else revision_sizes(found))


if __name__ == "__main__":
    main()
