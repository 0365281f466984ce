"""Fuzz one target with Atheris, which looks for inputs that reach branches of the package that none reached before.

    pip install atheris
    python tools/fuzz/coverage_guided.py --target container --minutes 10

The inputs are changed as in `fuzz.py`, and a finding is the same. Atheris ends the process itself, so the figures are
written to `<findings>/<target>.json` every few seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).parent)]
_REPORT_SECONDS = 5.0


def main() -> None:
    """Set up Atheris, and let it run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="a target of fuzz.py")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=ROOT / "fuzz-findings", help="folder for findings")
    options = parser.parse_args()
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["nola_codec"]):
        targets = importlib.import_module("targets")
        watching = importlib.import_module("watching")
    target = targets.all_targets()[options.target]
    warnings.simplefilter("error")
    watch = watching.Watch(target, options.findings)
    corpus = options.findings / f"{target.name.replace(' ', '-')}.corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = target.seeds()
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    watch.start(seeds)
    begin = reported = time.monotonic()

    def test_one_input(data: bytes) -> None:
        nonlocal reported
        watch.run(data)
        now = time.monotonic()
        if now - reported > _REPORT_SECONDS:
            reported = now
            figures = {
                "target": target.name, "runs": watch.runs, "seconds": round(now - begin, 1),
                "outcomes": dict(watch.outcomes), "findings": list(watch.findings.values()),
            }  # fmt: skip
            corpus.with_suffix(".json").write_text(json.dumps(figures, indent=1), encoding="utf-8")

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        made = target.change(data if data else rng.choice(seeds), rng)
        return made if len(made) <= max_size else data[:max_size]

    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={round(60 * options.minutes)}", f"-seed={options.seed}",
        "-max_len=20000", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=0", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup(arguments, test_one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
