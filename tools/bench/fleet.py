"""Measure runs over many adapters: throughput, workers that are killed, a second run, broken sources, and the cost.

    python tools/bench/fleet.py [--count 300] [--modules N] [--workers 2] [--engines local ray] [--json FILE]

The sources are all real adapters at hand, and copies of the small ones with a little noise, so that no two are equal.
They are encoded to 1/30 of fp16. In the run of each engine two workers are killed; afterwards no file may be missing,
and the files of the engines must decode to the same bits. Then 20 sources are replaced by adapters that are broken in
20 ways.

Seconds of the wall depend on what else the machine does; processor seconds hardly do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from broken_adapters import break_all
from safetensors import safe_open
from safetensors.numpy import save_file

import nola_codec
from nola_codec.fleet.keywords import EngineName
from nola_codec.fleet.manifest import read_manifest
from nola_codec.fleet.rows import Row
from nola_codec.rendering import render_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from real_data import adapters

_RATIO = 30
_NOISE = 1e-3  # of the standard deviation of each tensor
_SMALL = 1_200_000  # bytes of a file that is copied
_KILLED = 2
_STAGES = {
    "hash": ("hash",),
    "read": ("read",),
    "fit": ("canonical form", "rate control", "carried tensors"),
    "entropy": ("coding and decoding",),
    "measure": ("measuring",),
    "write": ("write",),
}


def write_sources(folder: Path, count: int, modules: int) -> Path:
    """Write the copies, with all or the first `modules`, and a manifest of all sources; return its path."""
    real = {name.replace("/", "-"): path for name, path in sorted(adapters().items())}
    rows: list[dict[str, Any]] = [{"source": str(path), "output": name} for name, path in real.items()][:count]
    for row in rows:
        if "roberta" in row["output"]:
            row |= {"carried": "coded", "ratio": 5}  # its head alone is larger than 1/30 of the adapter
    small = {name: path for name, path in real.items() if weights_of(path).stat().st_size <= _SMALL}
    if modules:
        small = {
            name: path for name, path in small.items() if not name.startswith("sam_")
        }  # whose keys name no modules
    rng = np.random.default_rng(0)
    for number in range(count - len(rows)):
        name, path = sorted(small.items())[number % len(small)]
        copy = folder / "copies" / f"{name}-{number:04d}"
        write_noisy_copy(weights_of(path), copy, rng, modules)
        rows.append({"source": str(copy if path.is_dir() else copy / weights_of(path).name), "output": copy.name})
    manifest = folder / "sources.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def weights_of(path: Path) -> Path:
    """Return the file of an adapter."""
    return next(iter(sorted(path.glob("*.safetensors")))) if path.is_dir() else path


def write_noisy_copy(weights: Path, folder: Path, rng: np.random.Generator, modules: int) -> None:
    """Write an adapter, or its first modules, with noise, and the configuration beside it."""
    folder.mkdir(parents=True)
    with safe_open(weights, framework="numpy") as file:
        names = list(file.keys())
        kept = sorted({name.partition(".lora")[0] for name in names})[: modules or None]
        tensors = {name: file.get_tensor(name) for name in names if name.partition(".lora")[0] in kept}
        metadata = file.metadata()
    for name, tensor in tensors.items():
        noise = rng.standard_normal(tensor.shape) * (_NOISE * float(tensor.std()))
        tensors[name] = (tensor + noise).astype(tensor.dtype)
    save_file(tensors, folder / weights.name, metadata=metadata)
    config = weights.parent / "adapter_config.json"
    if config.exists():
        shutil.copy(config, folder)


def find_workers(engine: str) -> list[int]:
    """Return the processes that are busy with items."""
    mark = b"spawn_main" if engine == "local" else b"ray::_run_job"
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "cmdline").read_bytes():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if engine == "ray" or parent == os.getpid():
                    found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


@contextmanager
def killing(engine: str, out: Path, count: int) -> Iterator[list[int]]:
    """Kill a worker after each third of the items; yield the list of those that were killed."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        journal = out / ".fleet" / "journal.jsonl"
        while len(killed) < _KILLED and not over.wait(0.05):
            done = journal.read_bytes().count(b'"status":"done"') if journal.exists() else 0
            if done < (len(killed) + 1) * count // (_KILLED + 1):
                continue
            workers = find_workers(engine)
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def run(manifest: Path, out: Path, engine: EngineName, workers: int, kill: int = 0) -> dict[str, Any]:
    """Run encode_many; return its figures. The seconds of the driver are processor time of this process."""
    begin, driver = time.perf_counter(), time.process_time()
    with killing(engine, out, kill) if kill else contextless() as killed:
        report = nola_codec.encode_many(
            [], out, manifest=manifest, engine=engine, workers=workers, encoding={"ratio": _RATIO}
        )
    seconds = time.perf_counter() - begin
    return {
        "engine": engine, "total": report.total, "done": report.done, "unchanged": report.unchanged,
        "failed": len(report.failed), "killed": len(killed), "retries": report.retries, "seconds": seconds,
        "a_second": report.done / seconds, "driver_cpu_seconds": time.process_time() - driver,
        "source_bytes": report.source_bytes, "bytes": report.bytes,
    }  # fmt: skip


@contextmanager
def contextless() -> Iterator[list[int]]:
    """Kill nothing."""
    yield []


def check_outputs(rows: Mapping[str, Row], out: Path, count: int, killed: int) -> dict[str, Any]:
    """Hold the files against the manifest: nothing lost, nothing twice."""
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.nola")}
    tried_again = sum(row.attempts > 1 for row in rows.values())
    report = nola_codec.verify_many(out)
    return {
        "rows": len(rows), "files": len(files), "verified": report.done, "tried_again": tried_again,
        "is_right": len(rows) == count == report.done and files == rows.keys() and tried_again <= killed,
    }  # fmt: skip


def cost(rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return the processor seconds of an adapter by its number of parameters, and the core-hours of a million."""
    classes: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.parameters is not None and row.cpu_seconds is not None:
            name = (
                "under 0.5M" if row.parameters < 500_000 else "0.5M to 1M" if row.parameters < 1_000_000 else "over 1M"
            )
            classes.setdefault(name, []).append(row)
    found = []
    for name in ("under 0.5M", "0.5M to 1M", "over 1M"):
        each = classes.get(name, [])
        if each:
            seconds = float(np.mean([row.cpu_seconds for row in each if row.cpu_seconds is not None]))
            parameters = float(np.mean([row.parameters for row in each if row.parameters is not None]))
            found.append({
                "parameters": name, "adapters": len(each), "mean_parameters": parameters, "cpu_seconds": seconds,
                "core_hours_a_million": seconds * 1e6 / 3600,
            })  # fmt: skip
    return found


def stage_shares(rows: Mapping[str, Row]) -> dict[str, float]:
    """Return the share of the workers' time that each stage takes."""
    seconds: Counter[str] = Counter()
    for row in rows.values():
        for name, parts in _STAGES.items():
            seconds[name] += sum(row.stages.get(part, 0.0) for part in parts)  # type: ignore[assignment]
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def break_some(manifest: Path, folder: Path) -> Path:
    """Return a manifest in which the last sources are replaced by broken ones, one of each kind."""
    rows = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    broken = [{"source": str(path), "output": f"broken/{name}"} for name, path in break_all(folder / "broken").items()]
    changed = folder / "with_broken.jsonl"
    kept = rows[: max(0, len(rows) - len(broken))]
    changed.write_text("".join([*kept, *(json.dumps(row) + "\n" for row in broken)]), encoding="utf-8")
    return changed


def measure(folder: Path, count: int, modules: int, workers: int, engines: list[EngineName]) -> dict[str, Any]:
    """Do all runs and return their figures."""
    manifest = write_sources(folder, count, modules)
    figures: dict[str, Any] = {"workers": workers, "processors": os.cpu_count(), "runs": [], "second_runs": []}
    digests: list[dict[str, str]] = []
    for engine in engines:
        out = folder / engine
        found = run(manifest, out, engine, workers, kill=count)
        rows = read_manifest(out)
        figures["runs"].append(found | check_outputs(rows, out, count, found["killed"]))
        figures["second_runs"].append(run(manifest, out, engine, workers))
        digests.append({name: row.decoded_sha256 for name, row in rows.items()})
        if engine == engines[0]:
            figures["cost"], figures["stages"] = cost(rows), stage_shares(rows)
        print(f"{engine}: {found['done']} of {count} in {found['seconds']:.0f} s", file=sys.stderr)
    figures["engines_agree"] = all(each == digests[0] for each in digests)
    out = folder / "with_broken"
    figures["with_broken"] = run(break_some(manifest, folder), out, engines[0], workers)
    failed = [row for row in read_manifest(out).values() if row.status == "failed"]
    figures["reasons"] = {row.output: f"{row.code}: {row.reason}" for row in failed}
    figures["codes"] = len({row.code for row in failed})
    return figures


def print_tables(figures: Mapping[str, Any]) -> None:
    """Print the figures."""
    heads = [
        "engine",
        "encoded",
        "killed",
        "tried again",
        "verified",
        "wall s",
        "a second",
        "driver CPU ms each",
        "right",
    ]
    rows = [heads]
    for each in figures["runs"]:
        driver = 1000 * each["driver_cpu_seconds"] / max(1, each["done"])
        rows.append([
            each["engine"], str(each["done"]), str(each["killed"]), str(each["tried_again"]), str(each["verified"]),
            f"{each['seconds']:.1f}", f"{each['a_second']:.2f}", f"{driver:.1f}", str(each["is_right"]),
        ])  # fmt: skip
    print("\n".join(render_table(rows, right=range(1, 8))))
    for each in figures["second_runs"]:
        print(f"second run, {each['engine']}: {each['unchanged']} unchanged, {each['done']} encoded, "
              f"{each['seconds']:.2f} s")  # fmt: skip
    print(f"the engines' files decode to the same bits: {figures['engines_agree']}")
    broken = figures["with_broken"]
    print(f"with broken sources: {broken['done']} encoded, {broken['failed']} failed with {figures['codes']} codes")
    for name, reason in figures["reasons"].items():
        print(f"  {name}: {reason:.110}")
    rows = [["parameters", "adapters", "mean", "CPU s each", "core-hours a million"]]
    for each in figures["cost"]:
        rows.append([
            each["parameters"], str(each["adapters"]), f"{each['mean_parameters'] / 1e6:.2f}M",
            f"{each['cpu_seconds']:.2f}", f"{each['core_hours_a_million']:.0f}",
        ])  # fmt: skip
    print("\n".join(render_table(rows, right=range(1, 5))))
    shares = figures["stages"]
    print("time in workers: " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items()))


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="adapters of a run")
    parser.add_argument("--modules", type=int, default=0, help="modules of a copy; 0 is all, which takes long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.count, arguments.modules, arguments.workers, arguments.engines)
    print_tables(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
