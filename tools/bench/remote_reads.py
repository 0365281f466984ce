"""Count the requests and bytes, and measure the time, of opening a remote `.nola` file and of reading one tensor of it.

    python tools/bench/remote_reads.py [ADAPTER] [--size 500KB] [--latency 50] [--rate 20] [--json]
    python tools/bench/remote_reads.py [ADAPTER] --blocks 104KiB 24KiB 8KiB [--error 0.02]

A server on this machine answers requests for ranges, each `--latency` milliseconds late, and sends `--rate` megabytes a
second. The peers of reading the `.nola` file by ranges are:

- downloading all of it, and opening the copy;
- the file object of fsspec for HTTP, with the read-ahead that it has by default, given to `nola_codec.load`;
- the adapter itself, as safetensors in fp16, read by ranges: first its header, then the two factors of one module.

Times are the medians of `--repeat` runs. What is read is compared with the local file.

With `--blocks` it measures what sizes of blocks cost and save: the same coefficients, with the error that is asked for,
in blocks of each size; the bytes of the file, and what is read of it by ranges for one module.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
from common import ROOT, table
from safetensors.numpy import save

import nola_codec
from nola_codec.remote import open_url

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Server:
    """A server of files in memory, which counts what it answers."""

    files: dict[str, bytes]
    latency: float
    rate: float
    requests: int = 0
    sent: int = 0
    http: ThreadingHTTPServer = field(init=False)

    def __post_init__(self) -> None:
        """Start to listen."""
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.http.daemon_threads = True
        self.http.state = self  # type: ignore[attr-defined]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str) -> str:
        """Return the URL of a file."""
        return f"http://127.0.0.1:{self.http.server_address[1]}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        state = cast("Server", self.server.state)  # type: ignore[attr-defined]
        data = state.files[self.path.lstrip("/")]
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = 0, len(data) - 1
        if wanted is not None:
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        body = data[first : last + 1]
        state.requests += 1
        time.sleep(state.latency)
        self.send_response(200 if wanted is None else 206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        if wanted is not None:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if has_body:
            state.sent += len(body)
            time.sleep(len(body) / state.rate)
            self.wfile.write(body)


@dataclass(frozen=True)
class Row:
    """What one way of reading took."""

    way: str
    step: str
    requests: int
    bytes: int
    seconds: float


class Meter:
    """Counts the requests, bytes and seconds between two calls."""

    def __init__(self, server: Server, way: str) -> None:
        """Begin to count."""
        self._server, self._way = server, way
        self.rows: list[Row] = []
        self._begin()

    def step(self, name: str) -> None:
        """Note what was used since the last call."""
        seconds = time.perf_counter() - self._start
        self.rows.append(Row(self._way, name, self._server.requests, self._server.sent, seconds))
        self._begin()

    def _begin(self) -> None:
        self._server.requests = self._server.sent = 0
        self._start = time.perf_counter()


def by_ranges(server: Server, meter: Meter, module: str) -> Any:
    """Read the `.nola` file as the package does."""
    with nola_codec.load(server.url("task.nola"), device="numpy") as task:
        meter.step("open")
        pair = task.factors(module)
        meter.step("one module")
    return pair


def whole(server: Server, meter: Meter, module: str) -> Any:
    """Download all of the `.nola` file."""
    import requests

    data = requests.get(server.url("task.nola"), timeout=60).content
    with nola_codec.load(data, device="numpy") as task:
        meter.step("open")
        pair = task.factors(module)
        meter.step("one module")
    return pair


def by_fsspec(server: Server, meter: Meter, module: str) -> Any:
    """Read the `.nola` file through fsspec's own file object."""
    import fsspec

    with fsspec.open(server.url("task.nola"), "rb") as stream:
        task = nola_codec.load(stream, device="numpy", verify=False)
        meter.step("open")
        pair = task.factors(module)
        meter.step("one module")
    return pair


def safetensors_by_ranges(server: Server, meter: Meter, module: str) -> Any:
    """Read the header and two tensors of the adapter in fp16."""
    with open_url(server.url("fp16.safetensors")) as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        meter.step("open")
        pair = []
        for side in ("lora_A", "lora_B"):
            entry = header[f"{module}.{side}.weight"]
            start, stop = entry["data_offsets"]
            stream.seek(8 + length + start)
            pair.append(np.frombuffer(stream.read(stop - start), np.float16).reshape(entry["shape"]))
        meter.step("one module")
    return pair


WAYS: dict[str, Callable[[Server, Meter, str], Any]] = {
    ".nola by ranges": by_ranges,
    ".nola downloaded whole": whole,
    ".nola through fsspec's file": by_fsspec,
    "fp16 safetensors by ranges": safetensors_by_ranges,
}


def measure(adapter: Path, size: str, latency: float, rate: float, repeat: int) -> tuple[int, int, list[Row]]:
    """Return the sizes of the `.nola` file and of the adapter in fp16, and what each way took."""
    data, _ = nola_codec.encode_bytes(str(adapter), size=size)
    source = nola_codec.read_adapter(str(adapter))
    fp16 = {
        f"{module.name}.{side}.weight": getattr(module, side).astype(np.float16)
        for module in source.modules
        for side in ("lora_A", "lora_B")
    }
    server = Server({"task.nola": data, "fp16.safetensors": save(fp16)}, latency, rate)
    module = source.modules[len(source.modules) // 2].name
    with nola_codec.load(data, device="numpy") as task:
        expected = task.factors(module)
    rows = []
    for way, read in WAYS.items():
        runs = []
        for _ in range(repeat + 1):  # the first run imports packages, and does not count
            meter = Meter(server, way)
            pair = read(server, meter, module)
            runs.append(meter.rows)
            if way.startswith(".nola") and not all(map(np.array_equal, pair, expected)):
                raise SystemExit(f"{way} gives other numbers than the local file")
        for step in zip(*runs[1:], strict=True):
            seconds = statistics.median(row.seconds for row in step)
            rows.append(Row(way, step[0].step, step[0].requests, step[0].bytes, seconds))
    server.http.shutdown()
    return len(data), len(server.files["fp16.safetensors"]), rows


def measure_blocks(adapter: Path, sizes: list[str], error: float) -> list[dict[str, Any]]:
    """Return, for each size of blocks, the bytes of the file, and the requests and bytes of reading one module."""
    module = nola_codec.read_adapter(str(adapter)).modules
    name = module[len(module) // 2].name
    rows = []
    for size in sizes:
        data, _ = nola_codec.encode_bytes(str(adapter), error=error, block_size=size)
        server = Server({"task.nola": data}, 0.0, 1e9)
        meter = Meter(server, size)
        by_ranges(server, meter, name)
        server.http.shutdown()
        opening, reading = meter.rows
        rows.append({"block_size": size, "bytes": len(data), "opening_requests": opening.requests,
                     "opening_bytes": opening.bytes, "module_requests": reading.requests,
                     "module_bytes": reading.bytes})  # fmt: skip
    return rows


def show_blocks(rows: list[dict[str, Any]]) -> str:
    """Return a table of what `measure_blocks` found."""
    first = rows[0]["bytes"]
    shown = []
    for row in rows:
        opening, read = row["opening_bytes"], row["opening_bytes"] + row["module_bytes"]
        requests = f"{row['opening_requests']} and {row['module_requests']}"
        cost = f"{row['bytes'] / first - 1:+.2%}"
        shown.append((row["block_size"], f"{row['bytes']:,}", cost, requests, f"{opening:,}", f"{read:,}",
                      f"{read / row['bytes']:.1%}"))  # fmt: skip
    return table(shown, ("block size", "bytes", "cost", "requests", "opened with", "and one module", "of the file"))


def main() -> None:
    """Print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, nargs="?", default=ROOT / "examples" / "smollm2_e2e")
    parser.add_argument("--size", default="500KB")
    parser.add_argument("--latency", type=float, default=50, help="milliseconds before each answer")
    parser.add_argument("--rate", type=float, default=20, help="megabytes a second")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--blocks", nargs="+", metavar="SIZE", help="compare sizes of blocks instead")
    parser.add_argument("--error", type=float, default=0.02, help="for --blocks: the error of the files")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.blocks:
        found = measure_blocks(given.adapter, given.blocks, given.error)
        print(json.dumps(found, indent=2) if given.json else show_blocks(found))
        return
    nola, fp16, rows = measure(given.adapter, given.size, given.latency / 1e3, given.rate * 1e6, given.repeat)
    if given.json:
        print(json.dumps({"nola_bytes": nola, "fp16_bytes": fp16, "rows": [vars(row) for row in rows]}, indent=2))
        return
    print(f"{nola:,} bytes of .nola, {fp16:,} bytes of fp16; {given.latency:g} ms, {given.rate:g} MB/s\n")
    shown = [(r.way, r.step, r.requests, f"{r.bytes:,}", f"{1000 * r.seconds:.0f} ms") for r in rows]
    print(table(shown, ("way", "step", "requests", "bytes", "time")))


if __name__ == "__main__":
    main()
