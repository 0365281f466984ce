"""Write the reports of docs/reports/: of three real adapters, and of the change that a full fine-tuning made.

    python tools/make_reports.py [NAME ...] [-o docs/reports] [--cache DIR] [--evaluate]

Without names it makes all reports whose data are here, and says which ones it leaves out. Two adapters are in
`examples/`; the further data (tools/real_data.py) have the third. The two models of the change are those of
tools/bench/full_finetune.py under --cache, which is not asked to train them.

Losses and texts come from NAME.json beside the reports, as `nola-codec eval --json` printed it. They are of one file,
so the program stops if the encoder makes another one today. --evaluate measures again what needs it, with the base
model of tools/base_model.py: minutes for each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_data import CARRIED_ADAPTERS, ROOT, adapters, cache_dir

import nola_codec

OUT = ROOT / "docs" / "reports"
BASE = "smollm2-135m-instruct"
ROWS = "e2e.jsonl"
GENERATION = ("--generate", "4", "--max-new-tokens", "48")


@dataclass(frozen=True)
class Report:
    """A report that the program can make.

    Attributes:
        name: The name of the page and of the file that it describes.
        encode: Makes the file: it gets the path of the original, and that of the file.
        is_change: True for a change of a model's weights, which has no original adapter to hold the file against.
        is_measured: True if the page has an evaluation.
    """

    name: str
    encode: Callable[[Path, Path], Any]
    is_change: bool = False
    is_measured: bool = False


def at_size(size: str) -> Callable[[Path, Path], Any]:
    """Return the encode of an adapter at a size."""
    return lambda source, out: nola_codec.encode(source, out, size=size)


def change(source: Path, out: Path) -> Any:
    """Encode the change of a whole model; `source` holds base/ and tuned/."""
    return nola_codec.encode_delta(source / "tuned", source / "base", out, ratio=64)


REPORTS = (
    Report("smollm2_e2e", at_size("30KB"), is_measured=True),
    Report("gptneo125m_movies", at_size("20KB")),
    Report("sd15_catundchat", at_size("60KB")),
    Report("smollm2_full", change, is_change=True),
)


def find_originals(cache: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the adapter or the folder of models that each report needs, for those that are here."""
    found = {} if set(names) <= set(CARRIED_ADAPTERS) else dict(adapters())
    found |= {name: ROOT / "examples" / name for name in CARRIED_ADAPTERS if (ROOT / "examples" / name).is_dir()}
    if (cache / "tuned" / "config.json").is_file():
        found["smollm2_full"] = cache
    return {name: path for name, path in found.items() if name in names}


def make(report: Report, original: Path, out: Path, *, evaluate: bool) -> Path:
    """Encode the original, and write its report. Returns the path of the page."""
    result = out / f"{report.name}.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / f"{report.name}.nola"
        report.encode(original, file)
        if evaluate and report.is_measured:
            result.write_text(measure(report, original, folder), encoding="utf-8")
        page = out / f"{report.name}.html"
        nola_codec.report(
            file,
            page,
            against=None if report.is_change else original,
            sweep=not report.is_change,
            evaluation=result if report.is_measured else None,
            overwrite=True,
        )
    return page


def measure(report: Report, original: Path, folder: Path) -> str:
    """Return what `nola-codec eval --json` prints, run in a folder where all paths are short."""
    sys.path.insert(0, str(ROOT / "tools" / "bench"))
    from task_peers import base_directory

    for link, target in ((BASE, base_directory()), (report.name, original)):
        (folder / link).symlink_to(target.resolve(), target_is_directory=True)
    rows = [sys.executable, str(ROOT / "tools" / "e2e_loss.py"), "--write-rows", ROWS]
    subprocess.run(rows, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    sources = [report.name, f"{report.name}.nola"]
    command = [sys.executable, "-m", "nola_codec", "eval", "--base", BASE, *sources, "--data", ROWS, *GENERATION]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--json"],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
    )
    return done.stdout.decode("utf-8")


def main() -> None:
    """Make the reports, and say what was written."""
    names = [report.name for report in REPORTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("-o", "--output", type=Path, default=OUT, help="folder of the pages, and of NAME.json")
    parser.add_argument(
        "--cache", type=Path, default=cache_dir() / "full_finetune", help="folder with base/ and tuned/"
    )
    parser.add_argument("--evaluate", action="store_true", help="measure losses and texts again")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"no report of {', '.join(unknown)}; there are {', '.join(names)}")
    wanted = options.names or names
    originals = find_originals(options.cache, wanted)
    options.output.mkdir(parents=True, exist_ok=True)
    for report in REPORTS:
        if report.name not in wanted:
            continue
        if report.name not in originals:
            print(f"left out {report.name}: its data are not here", file=sys.stderr)
            continue
        page = make(report, originals[report.name], options.output, evaluate=options.evaluate)
        print(f"wrote {page}: {page.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
