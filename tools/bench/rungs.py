"""Measure the cost of rungs: each rung, cut to a file of its own, against a file made for its NMSE alone.

    python tools/bench/rungs.py [--adapters NAME ...] [--size 60KB] [--json]

The names of adapters are those that tools/real_data.py knows. The objective is the NMSE, since effective errors can be
compared only at equal gammas.
"""

from __future__ import annotations

import argparse
import json

from common import table
from real_data import adapter, adapters

import nola_codec


def measure(name: str, size: str) -> list[dict[str, object]]:
    """Return one row for each rung of a progressive file."""
    source = adapter(name)
    data, report = nola_codec.encode_bytes(source, size=size, objective="nmse", progressive=True)
    rows = []
    for rung, errors in enumerate(report.rungs):
        cut = nola_codec.truncate(data, rung=rung).bytes
        alone = nola_codec.encode(source, nmse=errors["nmse"]).bytes
        rows.append(
            {"adapter": name, "rung": rung, "error": errors["nmse"], "cut": cut, "alone": alone,
             "ratio": cut / alone}
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", help="default: the ones of three that are there")
    parser.add_argument("--size", default="60KB", help="size of the whole file")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    chosen = arguments.adapters or sorted({"smollm2_e2e", "smollm135m_medical", "gpt2_tigrinya"} & set(adapters()))
    rows = [row for name in chosen for row in measure(name, arguments.size)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    cells = [[str(r["adapter"]), str(r["rung"]), f"{r['error']:.4f}", f"{r['cut']:,}", f"{r['alone']:,}",
              f"{r['ratio']:.3f}x"] for r in rows]  # fmt: skip
    print(table(cells, ["adapter", "rung", "NMSE", "bytes, cut", "bytes, alone", "ratio"]))


if __name__ == "__main__":
    main()
