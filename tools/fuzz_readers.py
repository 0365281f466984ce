"""Compare the package with the reference decoder on random legal files, and on damaged ones, for some minutes.

    python tools/fuzz_readers.py --minutes 10
    python tools/fuzz_readers.py --file 123        # file 123 alone, and its damaged versions

Each random file (`tests/support/random_files.py`) is decoded at every rung by the reference decoder, and by the package
with each variant of the kernels and without. Then it is damaged in many ways, with right checksums: both readers must
refuse the same files, and decode the same bits of the others. The numbers of files and outcomes are printed as a table,
and with --json as JSON. Each finding is written to a folder, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from damage import compare_readers, damage  # noqa: E402
from kernel_paths import PATHS  # noqa: E402
from nola_forge import verify  # noqa: E402
from random_files import RandomFile, random_file  # noqa: E402

DAMAGED_VERSIONS = 40


class Fuzzer:
    """Runs the comparisons, and counts what comes out.

    Attributes:
        outcomes: The number of damaged files by outcome: "decoded", or the code for which both readers refuse them.
        files: The number of random files.
        findings: One line for each finding.
    """

    def __init__(self, folder: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self.files = 0
        self.findings: list[str] = []
        self._folder = folder

    def compare(self, number: int) -> None:
        """Compare the readers on a random file, and on damaged versions of it."""
        name = f"random-{number}"
        with self._watch(name, []):
            made: RandomFile = random_file(number)
            self.files += 1
            for path in PATHS:
                os.environ["NOLA_KERNELS"] = path
                with self._watch(f"{name}-{path}", [*made.references, made.data]):
                    verify(made.data, references=list(made.references))
            rng = random.Random(number)
            for version in range(DAMAGED_VERSIONS):
                os.environ["NOLA_KERNELS"] = PATHS[version % len(PATHS)]
                data = damage(made.data, made.known, rng)
                with self._watch(f"{name}-damaged-{version}", [*made.references, data]):
                    self.outcomes[compare_readers(data, list(made.references), made.known)] += 1

    @contextmanager
    def _watch(self, name: str, files: list[bytes]) -> Iterator[None]:
        """Record any exception as a finding, with the files that led to it."""
        try:
            yield
        except Exception as error:
            self._folder.mkdir(parents=True, exist_ok=True)
            for index, data in enumerate(files):
                (self._folder / f"{name}.{index}.nola").write_bytes(data)
            (self._folder / f"{name}.txt").write_text(traceback.format_exc(), encoding="utf-8")
            self.findings.append(f"{name}: {type(error).__name__}: {error}")
            print(self.findings[-1], file=sys.stderr)


def main() -> int:
    """Run until the time is over, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default: 1)")
    parser.add_argument("--seed", type=int, help="number of the first random file (default: from the clock)")
    parser.add_argument("--file", type=int, help="compare the readers on this random file alone")
    parser.add_argument("--findings", type=Path, default=ROOT / "fuzz-findings", help="folder for findings")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    started = time.monotonic()
    first = time.time_ns() % 2**40 if options.seed is None else options.seed
    fuzzer = Fuzzer(options.findings)
    if options.file is not None:
        fuzzer.compare(options.file)
    else:
        number = first
        while time.monotonic() - started < 60 * options.minutes:
            fuzzer.compare(number)
            number += 1
    figures = {
        "first file": first if options.file is None else options.file,
        "random files": fuzzer.files,
        "paths": PATHS,
        "damaged files": sum(fuzzer.outcomes.values()),
        "outcomes": dict(fuzzer.outcomes.most_common()),
        "findings": fuzzer.findings,
        "seconds": round(time.monotonic() - started, 1),
    }
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        print(f"{fuzzer.files} random files, the first one number {figures['first file']}, on {', '.join(PATHS)}")
        for outcome, count in fuzzer.outcomes.most_common():
            print(f"{count:9,d}  damaged files: {outcome}")
        print(f"{len(fuzzer.findings)} findings" + (f" in {options.findings}" if fuzzer.findings else ""))
    return int(bool(fuzzer.findings))


if __name__ == "__main__":
    sys.exit(main())
