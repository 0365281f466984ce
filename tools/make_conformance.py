"""Write the conformance kit: `spec/conformance/`, except its programs and its README.

    python tools/make_conformance.py             # adds what is missing, and refuses to change what is there
    python tools/make_conformance.py --replace   # makes all files anew; only while the format is a draft

Valid files are golden files, which the encoder made once (`tools/make_golden.py`) and which stay as they are, and
random files, which hold what no encoder writes; the random ones are chosen so that few of them use every construct.
Invalid files have one fault each (`tests/support/reject_cases.py`, `costly_files.py`). The reference decoder computes
what is written of a file.

A file of the kit is a promise: a reader that decodes it today decodes it for ever, to the same bits. So once the format
has a version above 0, this program adds files and never replaces one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT = Path(__file__).resolve().parent.parent
KIT = ROOT / "spec" / "conformance"
sys.path.insert(0, str(ROOT / "tests" / "support"))
sys.path.insert(0, str(KIT))

from costly_files import COSTLY  # noqa: E402
from file_features import features  # noqa: E402
from known_answers import known_answers, to_json  # noqa: E402
from nola_forge import golden, golden_names, split  # noqa: E402
from random_files import RandomFile, random_file  # noqa: E402
from reference_reader import DECODER, answer  # noqa: E402
from reject_cases import CASES  # noqa: E402

from nola_codec.container.prelude import VERSION  # noqa: E402
from nola_codec.container.signature import Signature, signed_message  # noqa: E402

CANDIDATES = 160
"""Random files to choose from."""
SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
"""It signs a file of the kit and protects nothing."""
MOST_BYTES = 6000
"""A random file of the kit is no larger."""


class Kit:
    """Writes files into a folder, and never changes one unless it may."""

    def __init__(self, folder: Path, *, replace: bool) -> None:
        self.folder, self._replace = folder, replace
        self.changed: list[str] = []

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or note that it is there with other bytes."""
        path = self.folder / name
        if path.exists() and path.read_bytes() != data and not self._replace:
            self.changed.append(name)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def valid_files() -> Iterator[tuple[str, bytes, list[str]]]:
    """Yield name, bytes, and names of the files that are decoded before it; those come first."""
    chains: dict[bytes, list[str]] = {}
    left = {f"{name}.nola": golden(name) for name in golden_names()}
    while left:
        name, data = next(iter(left.items()))
        del left[name]
        top = split(data).top
        wanted = top.get("reference", [None])[0]
        if wanted is not None and wanted not in chains:
            left[name] = data
            continue
        before = [] if wanted is None else chains[wanted]
        chains |= {sha256: [*before, f"valid/{name}"] for sha256, _ in top["rungs"]}
        yield f"valid/{name}", data, before
    right = signed(golden("worked"))
    yield "valid/signed.nola", right, []
    yield "valid/signed-wrongly.nola", right[:-1] + bytes([right[-1] ^ 1]), []
    for number, file in chosen_files():
        before = [f"valid/random-{number}-{chr(97 + i)}.nola" for i in range(len(file.references))]
        for i, data in enumerate(file.references):
            yield before[i], data, before[:i]
        yield f"valid/random-{number}.nola", file.data, before


def signed(data: bytes) -> bytes:
    """Return a file with a signature, which is right."""
    content = hashlib.sha256(data[:18] + data[38:]).digest()
    public = SIGNING_KEY.public_key().public_bytes_raw()
    return data + Signature(public, SIGNING_KEY.sign(signed_message(content))).pack()


def chosen_files() -> Iterator[tuple[int, RandomFile]]:
    """Yield few random files, so that three of them use each construct that occurs, if three do."""
    made = {number: random_file(number) for number in range(CANDIDATES)}
    made = {number: file for number, file in made.items() if sum(map(len, (file.data, *file.references))) <= MOST_BYTES}
    has = {number: features(file) for number, file in made.items()}
    wanted = Counter({feature: 3 for own in has.values() for feature in own})
    while has:
        best = max(has, key=lambda n: (sum(wanted[f] > 0 for f in has[n]) / len(made[n].data) ** 0.5, -n))
        own = has.pop(best)
        if not any(wanted[feature] > 0 for feature in own):
            return
        wanted.subtract(own)
        yield best, made[best]


def invalid_files() -> Iterator[tuple[str, str, str, bytes]]:
    """Yield name, code, fault and bytes."""
    for fault, case in CASES.items():
        yield f"invalid/{slug(fault)}.nola", case.code, fault, case.make()
    for fault, costly in COSTLY.items():
        if not costly.inspect_only:
            yield f"invalid/{slug(fault)}.nola", "limit", fault, costly.make()


def slug(text: str) -> str:
    """Return a text as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def make(kit: Kit) -> None:
    """Write all files, and the list of them."""
    valid: list[dict[str, Any]] = []
    for name, data, before in valid_files():
        kit.write(name, data)
        valid.append(entry(kit, name, {"references": before} if before else {}))
        paths = [str(kit.folder / path) for path in (name, *before)]
        valid[-1]["rungs"] = answer(*paths)["rungs"]
    others = [f"valid/{name}.nola" for name in ("vectors", "reference", "rungs")]
    invalid = []
    for name, code, fault, data in invalid_files():
        kit.write(name, data)
        needs = {"references": others} if len(data) > 13 and data[12] & 1 else {}
        invalid.append({**entry(kit, name, needs), "code": code, "fault": fault})
    listed = {"format": {"version": VERSION, "revision": revision()}, "valid": valid, "invalid": invalid}
    text = json.dumps(listed, indent=1, ensure_ascii=False)
    kit.write("files.json", re.sub(r"\[\s+(-?\d+)(?:,\s+(-?\d+))?\s+\]", join_numbers, text).encode() + b"\n")
    for name, answers in known_answers(DECODER).items():
        kit.write(f"answers/{name}.json", to_json(answers))


def join_numbers(match: re.Match[str]) -> str:
    """Put a list of one or two integers on one line."""
    return f"[{', '.join(filter(None, match.groups()))}]"


def entry(kit: Kit, name: str, more: dict[str, Any]) -> dict[str, Any]:
    """Return what the list says of any file."""
    data = (kit.folder / name).read_bytes()
    return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **more}


def revision() -> int:
    """Return the revision of the format that the files are of."""
    return int.from_bytes(golden("nmse")[10:12], "little")


def main() -> int:
    """Write the kit; the exit status is 1 if files would have to change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="make all files but the golden ones anew; only while the format is a draft",
    )
    options = parser.parse_args()
    if options.replace and VERSION > 0:
        parser.error("files of a format that is no draft are never replaced")
    if options.replace:
        kept = {f"{name}.nola" for name in golden_names()}
        for path in [*KIT.glob("valid/*"), *KIT.glob("invalid/*"), *KIT.glob("answers/*")]:
            if path.name not in kept:
                path.unlink()
    kit = Kit(KIT, replace=options.replace)
    make(kit)
    for name in kit.changed:
        print(f"{name}: is there with other bytes, and was left as it is", file=sys.stderr)
    print(f"{sum(path.stat().st_size for path in KIT.rglob('*') if path.is_file())} bytes in {KIT.relative_to(ROOT)}")
    return int(bool(kit.changed))


if __name__ == "__main__":
    sys.exit(main())
