"""Measure how long a server waits for an adapter: decoded for the first time, and found in the cache.

    python tools/bench/serving_cache.py [--adapter examples/smollm2_e2e] [--size 53KB] [--hits 200] [--json]

Four ways to the same directory are timed in one run: `decode` alone; the first `AdapterCache.resolve` of a machine; the
first one of a process that finds what another process decoded; and all later ones. The base model is checked by name
and by shapes, as a server does, if it is there (tools/base_model.py makes it). Then 16 threads ask at once for an
adapter that nobody has decoded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, source_itemsize, table

import nola_codec
from nola_codec.adapters import read
from nola_codec.disk_cache import DiskCache
from nola_codec.integrations.serving import AdapterCache

THREADS = 16


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(adapter: Path, size: str, hits: int, folder: Path) -> dict[str, Any]:
    """Return the sizes in bytes and the times in milliseconds."""
    source = folder / "source"
    source.mkdir()
    file = source / "task.nola"
    nola_codec.encode(adapter, file, size=size)
    base = ROOT / ".cache" / "smollm2-135m-instruct"
    model = str(base) if base.is_dir() else None
    named = nola_codec.inspect(file).base_model

    def open_cache(name: str) -> AdapterCache:
        return AdapterCache([source], cache=DiskCache(folder / name), base_names=[named] if named else [])

    decode = seconds(lambda: nola_codec.decode(file, folder / "decoded", trim=True, dtype="bf16"))
    first_cache = open_cache("cache")
    first = seconds(lambda: first_cache.resolve("task", model))
    other = seconds(lambda: open_cache("cache").resolve("task", model))
    later = [seconds(lambda: first_cache.resolve("task", model)) for _ in range(hits)]
    crowd_cache = open_cache("crowd")
    threads = [threading.Thread(target=crowd_cache.resolve, args=("task", model)) for _ in range(THREADS)]

    def run_all() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    crowd = seconds(run_all)
    path = first_cache.resolve("task", model).path
    parameters = sum(m.lora_A.size + m.lora_B.size for m in read(adapter).modules)
    return {
        "base checked by shapes": model is not None,
        "bytes": {
            "the adapter as it came": parameters * source_itemsize(adapter),
            "task.nola": file.stat().st_size,
            "the decoded directory": sum(item.stat().st_size for item in path.iterdir()),
        },
        "milliseconds": {
            "decode alone": 1000 * decode,
            "first request of the machine": 1000 * first,
            f"{THREADS} first requests at once": 1000 * crowd,
            "first request of another process": 1000 * other,
            "later requests, median": 1000 * statistics.median(later),
            "later requests, 99 of 100 within": 1000 * sorted(later)[int(0.99 * (len(later) - 1))],
        },
    }


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, default=ROOT / "examples" / "smollm2_e2e")
    parser.add_argument("--size", default="53KB")
    parser.add_argument("--hits", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.adapter, options.size, options.hits, Path(folder))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(table([(name, f"{size:,}") for name, size in found["bytes"].items()], ("", "bytes")))
    times = found["milliseconds"]
    alone = times["decode alone"]
    rows = [(name, f"{value:.2f}", f"{value / alone:.2g}") for name, value in times.items()]
    print(table(rows, ("", "ms", "of decode")))
    print("The base model was checked by name" + (" and by shapes." if found["base checked by shapes"] else "."))


if __name__ == "__main__":
    main()
