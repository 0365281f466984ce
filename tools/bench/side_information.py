"""What a file spends on anything but coded coefficients, by part, for every real adapter at several sizes.

    python tools/bench/side_information.py [--adapters NAME ...] [--sizes SIZE ...] [--json]
    python tools/bench/side_information.py --parts FILE.nola ...       # of a file that is there, part by part

The figures are kept (tools/experiments/results.py), so that a later version of the format can be held against this one.
`--label` names the state of the program that they belong to. All adapters at four sizes take about a minute.

The stored bytes of a part of the header are what the header's frame would be shorter without the part's value; matches
between parts are therefore counted for both of them, and their sum is not that of the header.
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
from real_data import adapters

SIZES = ("5KB", "10KB", "30KB", "90KB")
NAME = "side_information"


def count_parts(data: bytes) -> dict[str, int]:
    """Return the bytes of the parts of a file: they add up to all of it."""
    from nola_codec.container.prelude import SIZE
    from nola_codec.container.reader import open_container

    with open_container(data) as container:
        header = container.header
        lengths = [section.length for section in header.sections]
        units = sum(lengths[header.units_section(rung)] for rung in range(len(header.rungs)))
        carried = sum(lengths[header.raw_section(index)] for index in range(len(header.raw)))
        stored = container.header_length - SIZE
        blocks = sum(lengths) - units - carried
        return {"prelude": SIZE, "header": stored, "units": units, "coefficients": blocks, "carried": carried}


def count_header(data: bytes) -> dict[str, int]:
    """Return, for each key of the header, the bytes that its frame would be shorter with an empty value."""
    from nola_codec.container import canonical
    from nola_codec.container.prelude import SIZE
    from nola_codec.container.reader import header_dictionary, open_container
    from nola_codec.entropy.frames import compress, declared_size, decompress

    with open_container(data) as container:
        stored = data[SIZE : container.header_length]
    plain = decompress(stored, declared_size(stored, "header"), "header", header_dictionary())
    top = canonical.unpack(plain)

    def without(key: str) -> int:
        return len(compress(canonical.pack({**top, key: None}), header_dictionary()))

    return {key: len(stored) - without(key) for key in top}


def measure(path: Path, size: str) -> dict[str, Any]:
    """Encode an adapter at a size, and return the bytes of the parts of the file and its errors."""
    from nola_codec import encode_bytes

    data, report = encode_bytes(path, size=size)
    parts = count_parts(data)
    side = parts["prelude"] + parts["header"] + parts["units"]
    return {**parts, "bytes": len(data), "side": side, "effective_error": report.effective_error, "nmse": report.nmse}


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="SIZE", help="default: 5KB 10KB 30KB 90KB")
    parser.add_argument("--label", default="revision 3", help="the state of the program (default: revision 3)")
    parser.add_argument("--parts", nargs="+", type=Path, metavar="FILE", help="show these files instead")
    parser.add_argument("--json", action="store_true", help="print JSON")
    results.add_options(parser)
    options = parser.parse_args()
    from nola_codec.errors import EncodeError

    if options.parts:
        files = {str(file): file.read_bytes() for file in options.parts}
        made = {name: {**count_parts(data), **count_header(data)} for name, data in files.items()}
        print(json.dumps(made, indent=1))
        return
    found = []
    for name, path in adapters().items():
        if options.adapters is None or name in options.adapters:
            for size in options.sizes:
                settings = {"adapter": name, "size": size, "label": options.label}
                try:
                    found.append(results.measure(NAME, settings, partial(measure, path, size), anew=options.anew))
                    print(f"{name} at {size}", file=sys.stderr)
                except EncodeError as error:
                    print(f"{name} at {size} is left out: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'adapter':<24}{'size':>6}{'bytes':>8}{'header':>8}{'units':>7}{'side':>7}{'share':>8}{'eff. error':>12}")
    for result in found:
        f, s = result["figures"], result["settings"]
        shown = f"{s['adapter']:<24}{s['size']:>6}{f['bytes']:>8}{f['header']:>8}{f['units']:>7}{f['side']:>7}"
        print(f"{shown}{f['side'] / f['bytes']:>8.1%}{f['effective_error'] or 0:>12.4f}")


if __name__ == "__main__":
    main()
