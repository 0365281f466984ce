"""Fuzz targets with Atheris, which looks for inputs that reach branches of the package that none reached before.

    pip install atheris              # 3.0 has wheels for Python 3.11 to 3.13 on Linux
    python tools/fuzz/coverage_guided.py --target container --target undo --minutes 10

The inputs are changed as in `fuzz.py`, and a finding is the same. Each target has a process of its own and all of the
minutes, and goes on with the inputs that an earlier run has kept in `<findings>/<target>.corpus`. Atheris ends the
process itself, so it writes its figures to a file every second.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).parent)]
_REPORT_SECONDS = 1.0
_LONGEST = 20_000


def main() -> int:
    """Run Atheris on each target, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, action="append", help="a target of fuzz.py; may be repeated")
    parser.add_argument("--minutes", type=float, default=1.0, help="time for each target (default: 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=ROOT / "fuzz-findings", help="folder for findings and inputs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--figures", type=Path, help=argparse.SUPPRESS)  # set for the process of one target
    options = parser.parse_args()
    if options.figures is not None:
        _fuzz(options)  # never returns
    rows = [_run_alone(name, options) for name in options.target]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        from nola_codec.rendering import render_table

        lines = [["target", "runs", "a second", "inputs kept", "codes", "slowest", "findings"]]
        for row in rows:
            numbers = [row["runs"], round(row["runs"] / max(row["seconds"], 1)), row["kept"], len(row["outcomes"])]
            findings = str(len(row["findings"]))
            lines.append([row["target"], *(f"{each:,}" for each in numbers), f"{row['slowest']:.2f} s", findings])
        print("\n".join(render_table(lines, right=range(1, 7))))
        for row in rows:
            for line in row["findings"]:
                print(f"{row['target']}: {line}")
    return int(any(row["findings"] for row in rows))


def _run_alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run Atheris on one target in a process of its own, and return its figures."""
    options.findings.mkdir(parents=True, exist_ok=True)
    figures = options.findings / f"{name.replace(' ', '-')}.json"
    figures.unlink(missing_ok=True)
    command = [
        sys.executable, __file__, "--target", name, "--minutes", str(options.minutes), "--seed", str(options.seed),
        "--findings", str(options.findings), "--figures", str(figures),
    ]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "NOLA_THREADS": "1"}, capture_output=True, text=True)
    if not figures.exists():
        raise SystemExit(f"{name}: no input was run\n{done.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    if done.returncode != 0:
        row["findings"].append(f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return row


def _fuzz(options: argparse.Namespace) -> None:
    """Let Atheris run the target of this process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["nola_codec"]):
        targets = importlib.import_module("targets")
        watching = importlib.import_module("watching")
    from nola_codec.parallel import one_blas_thread

    target = targets.all_targets()[options.target[0]]
    warnings.simplefilter("error")
    one_blas_thread().__enter__()
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
                "kept": sum(1 for _ in corpus.iterdir()), "slowest": round(watch.slowest, 3), "memory": watch.memory,
                "outcomes": dict(watch.outcomes), "findings": list(watch.findings.values()),
            }  # fmt: skip
            part = options.figures.with_suffix(".part")
            part.write_text(json.dumps(figures, indent=1), encoding="utf-8")
            part.replace(options.figures)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        made = target.change(data if data else rng.choice(seeds), rng)
        return made if len(made) <= max_size else data[:max_size]

    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={round(60 * options.minutes)}", f"-seed={options.seed}",
        f"-max_len={_LONGEST}", "-timeout=0", "-rss_limit_mb=4096", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup(arguments, test_one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
