"""The package as a reader that the conformance kit can drive (`spec/conformance/README.md`).

python spec/conformance/run.py --batch -- python tools/package_reader.py --batch
python spec/conformance/run.py -- python tools/package_reader.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from nola_codec.arrays import NUMPY
from nola_codec.container.limits import DEFAULT_LIMITS
from nola_codec.container.reader import open_container
from nola_codec.errors import FormatError
from nola_codec.references.finding import open_decoder


def answer(path: str, *references: str) -> dict[str, Any]:
    """Return what the kit asks of a file: what is decoded at each rung, or the code for which the file is refused."""
    rungs = []
    try:
        with open_container(Path(path).read_bytes(), DEFAULT_LIMITS) as container:
            for rung in range(container.rungs):
                container.select(rung)
                decoder = open_decoder(container, NUMPY, references)
                tensors: dict[str, Any] = {}
                for record, decoded in zip(decoder.header.coded, decoder.decode_all(), strict=True):
                    tensors[f"{record.name}.exponents"] = list(decoded.exponents)
                    names = ("lora_B", "lora_A") if len(decoded.sides) == 2 else ("vector",)
                    for name, side in zip(names, decoded.sides, strict=True):
                        tensors[f"{record.name}.{name}"] = hashlib.sha256(side.astype("<i2").tobytes()).hexdigest()
                for name, tensor in decoder.carried_tensors():
                    tensors[name] = hashlib.sha256(tensor.data).hexdigest()
                rungs.append({"decoded_sha256": decoder.header.decoded_sha256.hex(), "tensors": tensors})
            container.check_content()
    except FormatError as error:
        return {"refused": error.code}
    return {"rungs": rungs}


def main() -> None:
    """Answer for the file of the command line, or for each line of stdin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", action="store_true", help="read lines from stdin, each a JSON array of paths")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a file, then the files that are decoded before it")
    options = parser.parse_args()
    if options.batch:
        for line in sys.stdin:
            print(json.dumps(answer(*json.loads(line))), flush=True)
    elif options.paths:
        print(json.dumps(answer(*options.paths)))
    else:
        parser.error("name a file, or use --batch")


if __name__ == "__main__":
    main()
