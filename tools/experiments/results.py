"""Results of experiments: measured once, kept as JSON, and shown on the pages by a program.

    found = results.measure("vit", {"method": "lora", "rank": 4, "seed": 0}, train_and_measure)

`measure` returns what is there for these settings, or calls the function and keeps its figures at once, so that a stop
loses nothing. Results are looked for in two places:

    docs/experiments/results/NAME.json              part of the repository; the tables of the pages come from it
    $NOLA_CACHE/experiments/results/NAME.json       what programs measured since; `write_tables.py --take NAME` moves it

A file is a list of results: {"settings", "figures", "date", "commit", "machine"}. Two results of one name never have
equal settings: the settings have to hold all that the figures depend on, the seed too. A result of the cache comes
before one of the repository.

The tables of a page stand between `<!-- table: NAME.TABLE -->` and `<!-- end -->`. To add one, write a function TABLE
in `page_tables/NAME.py`, from the list of results to Markdown (`as_table` helps; no PyTorch, since a test runs it), and
run `python tools/experiments/write_tables.py`. The test `tests/tools/test_results.py` compares pages and results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from real_data import ROOT, cache_dir

KEPT = ROOT / "docs" / "experiments" / "results"
Settings = Mapping[str, Any]
Result = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--anew`, whose value is for `measure`."""
    parser.add_argument("--anew", action="store_true", help="measure again what was measured before")


def working_file(name: str) -> Path:
    """Return the file of the cache that has the new results of this name."""
    return cache_dir() / "experiments" / "results" / f"{name}.json"


def measure(name: str, settings: Settings, program: Callable[[], Mapping[str, Any]], *, anew: bool = False) -> Result:
    """Return the result for these settings; call the program and keep its figures if there is none.

    Args:
        name: The name of the experiment.
        settings: All that the figures depend on; values of JSON.
        program: A function that returns the figures, which are values of JSON.
        anew: True measures again even if there is a result, which the new one replaces.
    """
    wanted = json.loads(json.dumps(settings))
    for found in [] if anew else read(name):
        if found["settings"] == wanted:
            return found
    return keep(name, settings, program())


def keep(name: str, settings: Settings, figures: Mapping[str, Any]) -> Result:
    """Add figures to the results of the cache, in place of older ones with these settings."""
    made: Result = {
        "settings": json.loads(json.dumps(settings)),
        "figures": json.loads(json.dumps(figures)),
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": _machine(),
    }
    path = working_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # several programs may add to one file
        write(path, join(_read_file(path), [made]))
    return made


def read(name: str, *, with_cache: bool = True) -> list[Result]:
    """Return all results of a name: those of the repository, then those of the cache, which replace older ones."""
    return join(_read_file(KEPT / f"{name}.json"), _read_file(working_file(name)) if with_cache else [])


def join(older: Sequence[Result], newer: Sequence[Result]) -> list[Result]:
    """Return both lists as one; a newer result takes the place of an older one with equal settings."""
    left = list(newer)
    joined = []
    for result in older:
        same = next((other for other in left if other["settings"] == result["settings"]), None)
        joined.append(result if same is None else same)
        if same is not None:
            left.remove(same)
    return joined + left


def write(path: Path, found: Sequence[Result]) -> None:
    """Write results to a file, which is replaced whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def take(name: str) -> None:
    """Move the results of the cache into the repository."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = working_file(name)
    with FileLock(f"{path}.lock"):
        write(KEPT / f"{name}.json", read(name))
        path.unlink(missing_ok=True)


def select(found: Iterable[Result], **settings: Any) -> list[Result]:
    """Return the results whose settings have these values; a setting that is missing counts as None."""
    return [r for r in found if all(r["settings"].get(key) == value for key, value in settings.items())]


def mean_and_spread(found: Iterable[Result], figure: str) -> tuple[float, float | None]:
    """Return the mean of a figure, and its standard deviation; None for the deviation of a single result."""
    values = [float(result["figures"][figure]) for result in found]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def losses_of_ends(found: Iterable[Result]) -> dict[str, float]:
    """Return the losses of the base model and of the adapter, by their doors; they are the results without a size."""
    return {r["settings"]["door"]: r["figures"]["loss"] for r in found if "size" not in r["settings"]}


def show_share(base: float, full: float, loss: float) -> str:
    """Return the share of the gain from the loss `base` to the loss `full` that a loss has, in percent."""
    return f"{(base - loss) / (base - full):.1%}"


def shares_of_gain(found: Sequence[Result], size: str, doors: Sequence[str]) -> list[float]:
    """Return the shares of the adapter's gain that files of a size kept, one for each door.

    They are means over the seeds that all doors have; of a door with several numbers of steps, the most count.
    """
    ends = losses_of_ends(found)
    losses = []
    for door in doors:
        own = select(found, size=size, door=door)
        most = max(r["settings"].get("steps", 0) for r in own)
        losses.append(
            {r["settings"]["seed"]: r["figures"]["loss"] for r in own if r["settings"].get("steps", 0) == most}
        )
    seeds = set.intersection(*map(set, losses))
    means = [statistics.fmean(each[seed] for seed in seeds) for each in losses]
    return [(ends["base"] - loss) / (ends["base"] - ends["adapter"]) for loss in means]


def as_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; its first column is flush left, and the others are flush right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def _read_file(path: Path) -> list[Result]:
    found: list[Result] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found


def _commit() -> str | None:
    """Return the commit of the code, with a + if files of it were changed since; None outside a repository of Git."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout

    try:
        changed = ask("status", "--porcelain", "--", "nola_codec", "tools").strip()
        return ask("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine() -> str:
    """Return the processor, the number of cores, and the version of Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = (names or [platform.processor() or platform.machine()])[0]
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"
