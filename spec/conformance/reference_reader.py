"""The reference decoder as a reader that `run.py` can drive; also an example of such a reader.

    python spec/conformance/run.py --skip limit -- python spec/conformance/reference_reader.py
    python spec/conformance/run.py --skip limit --batch -- python spec/conformance/reference_reader.py --batch

The reference decoder sets no limits, so files that only exceed a limit must be left out.
"""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("reference_decoder", Path(__file__).parents[1] / "reference_decoder.py")
DECODER = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(DECODER)


def answer(path, *references):
    """Return what the kit asks of a file. The references come in the order in which they must be decoded."""
    known = {}
    for reference in references:
        DECODER.decode(Path(reference).read_bytes(), known)
    try:
        top, _, _ = DECODER.decode(Path(path).read_bytes(), known)
    except DECODER.Refused as refused:
        return {"refused": refused.args[0]}
    rungs = []
    for rung in top["rungs"]:
        _, tensors = known[rung["decoded_sha256"]]
        own = {name: digest(name, tensors[name]) for name in names_of(top)}
        rungs.append({"decoded_sha256": rung["decoded_sha256"].hex(), "tensors": own})
    return {"rungs": rungs}


def names_of(top):
    """Yield the names of what is decoded: the exponents and the sides of coded records, and the other tensors."""
    for record in top["coded"]:
        yield from (f"{record['name']}.{part}" for part in ("exponents", *record["sides"]))
    yield from (record["name"] for record in (*top["raw"], *top["drawn"]))


def digest(name, array):
    """Return the exponents as they are, and the SHA-256 of the bytes of any other array."""
    return array.tolist() if name.endswith(".exponents") else hashlib.sha256(array.tobytes()).hexdigest()


if __name__ == "__main__":
    if sys.argv[1:] == ["--batch"]:
        for line in sys.stdin:
            print(json.dumps(answer(*json.loads(line))), flush=True)
    else:
        print(json.dumps(answer(*sys.argv[1:])))
