"""Measure the forms of carried tensors (`--carried`): bits a number and the loss of the largest carried matrix.

    python tools/bench/carried_forms.py [--adapters NAME ...] [--json]

The names of adapters are those that tools/real_data.py knows. The bits are those of the tensor in the finished file.
The loss is what `encode` reports, which it measures on what the file decodes to.
"""

from __future__ import annotations

import argparse
import json
import math

from common import table
from real_data import adapter

import nola_codec
from nola_codec.decoder.carried_forms import CARRIED_FORMS


def measure(name: str) -> list[dict[str, object]]:
    """Return one row for each form."""
    rows = []
    for form in CARRIED_FORMS:
        report = nola_codec.encode(adapter(name), nmse=0.1, carried=form)
        largest = max(report.carried, key=lambda each: math.prod(each.shape))
        bits = 8 * largest.bytes / math.prod(largest.shape)
        rows.append(
            {"adapter": name, "form": form, "tensor": largest.name, "bits": bits, "error": largest.relative_error,
             "file_bytes": report.bytes, "fp16_bytes": round(report.bytes * report.ratio)}
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", default=["roberta_base_lora_mnli"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [row for name in arguments.adapters for row in measure(name)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    cells = [[str(r["tensor"]), str(r["form"]), f"{r['bits']:.1f}", f"{r['error']:.2g}", f"{r['file_bytes']:,}",
              f"{r['fp16_bytes']:,}"] for r in rows]  # fmt: skip
    print(table(cells, ["largest tensor", "form", "bits", "error", "bytes of file", "in fp16"]))


if __name__ == "__main__":
    main()
