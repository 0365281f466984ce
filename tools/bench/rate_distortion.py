"""Bytes at a given NMSE of delta_W, for every peer and for nola-codec, on every adapter of shared/data/lora.

    python tools/bench/rate_distortion.py [--adapters NAME ...] [--peers NAME ...] [--nmse E ...] [--lend]
                                            [--json] [-o FILE]

Each peer is at its best setting for each error (see peers.py). The bound is what a Gaussian source of these singular
values needs at least (bound.py). All adapters take some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import common
from bound import first_order_bound, gaussian_bound
from columns import Point
from common import TARGETS, Pair
from peers import peers

OURS = "nola-codec"
Row = dict[str, object]


def ours(path: Path, pairs: list[Pair], nmse: float) -> Point | None:
    """The library's own file at this error: encoded from the adapter as it is where that is PEFT, else from a copy."""
    import nola_codec

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.nola"
        source = path if common.is_peft(path) else common.as_peft(pairs, Path(folder) / "adapter")
        try:
            report = nola_codec.encode(source, out, nmse=nmse)
        except nola_codec.EncodeError as error:
            print(f"{path.name}: {OURS} at {nmse:g}: {error}", file=sys.stderr)
            return None
        return Point("default", out.stat().st_size, report.nmse)


def measure(name: str, path: Path, targets: list[float], wanted: list[str] | None, lend: bool) -> list[Row]:
    """One row for each peer and error."""
    pairs = common.load(path)
    components = [common.canonical(pair) for pair in pairs]
    rows: list[Row] = []

    def note(peer: str, target: float, point: Point | None, seconds: float) -> None:
        found = {"setting": point.setting, "bytes": point.bytes, "nmse": point.nmse} if point else {"bytes": None}
        rows.append({"adapter": name, "peer": peer, "target": target, **found, "seconds": round(seconds, 2)})

    for label, bound in (("Gaussian bound", gaussian_bound), ("first-order bound", first_order_bound)):
        for target in targets:
            start = time.perf_counter()
            note(label, target, Point("", round(bound(components, target)), target), time.perf_counter() - start)
    if wanted is None or OURS in wanted:
        for target in targets:
            start = time.perf_counter()
            note(OURS, target, ours(path, pairs, target), time.perf_counter() - start)
    for key, make in peers(pairs, common.source_itemsize(path), lend).items():
        if wanted is not None and key not in wanted:
            continue
        start = time.perf_counter()
        peer = make()
        if peer is None:
            print(f"{name}: {key} is not installed, left out", file=sys.stderr)
            continue
        for target in targets:
            note(peer.name, target, peer.best_at(target), time.perf_counter() - start)
            start = time.perf_counter()
    return rows


def show(name: str, rows: list[Row], targets: list[float]) -> str:
    """The table of one adapter: bytes, and how many times ours; `!` where the error is over what was asked for."""
    by_peer: dict[str, dict[float, Row]] = {}
    for row in rows:
        by_peer.setdefault(str(row["peer"]), {})[float(str(row["target"]))] = row
    mine = by_peer.get(OURS, {})

    def cell(found: dict[float, Row], target: float) -> str:
        row, own = found[target], mine.get(target)
        if row["bytes"] is None:
            return "-"
        count = float(str(row["bytes"]))
        over = "!" if float(str(row["nmse"])) > target else ""
        return (
            over + common.size(count) + (f"  {count / float(str(own['bytes'])):5.2f}x" if own and own["bytes"] else "")
        )

    lines = [[peer, *(cell(found, target) for target in targets)] for peer, found in by_peer.items()]
    return f"\n{name}\n" + common.table(lines, ["bytes at NMSE", *(f"{target:g}" for target in targets)])


def main() -> None:
    """Measure, print tables on stdout (or JSON with --json), progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", metavar="NAME", help="short names, as the tables print them")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=f"keys of peers.py, and {OURS}")
    parser.add_argument("--nmse", nargs="+", type=float, default=list(TARGETS), metavar="E")
    parser.add_argument("--lend", action="store_true", help="add peers with a global choice of ranks lent to them")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    found = common.adapters()
    if unknown := set(options.adapters or ()) - set(found):
        parser.error(f"no adapter {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    keys = [OURS, *peers([], lend=options.lend)]
    if unknown := set(options.peers or ()) - set(keys):
        parser.error(f"no peer {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    everything: list[Row] = []
    for name in options.adapters or found:
        start = time.perf_counter()
        rows = measure(name, found[name], options.nmse, options.peers, options.lend)
        everything += rows
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if not options.json:
            print(show(name, rows, options.nmse), flush=True)
    text = json.dumps(everything, indent=1)
    if options.json:
        print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
