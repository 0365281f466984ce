"""Bytes at a given NMSE of delta_W, for every peer and for nola-codec, on every adapter of shared/data/lora.

    python tools/bench/rate_distortion.py [--adapters NAME ...] [--peers NAME ...] [--nmse E ...] [--json] [-o FILE]

Each peer is at its best setting for each error (see peers.py). The bound is what a Gaussian source of these singular
values needs at least (bound.py). A summary at the end names the closest peer at every point. All adapters take some
13 minutes of one processor.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import common
from bound import first_order_bound, gaussian_bound
from common import TARGETS
from peers import peers
from svd_codecs.columns import Point

OURS = "nola-codec"
BOUND = "Gaussian bound"
BOUNDS = {BOUND: gaussian_bound, "first-order bound": first_order_bound}
FP16 = ("SVD fp16, resize_lora", "SVD fp16, one threshold")
MISSED = "not reached"
Row = dict[str, object]


def ours(path: Path, nmse: float) -> Point | None:
    """The library's own file at this error, of the factors alone: the peers' files have no tensors carried along."""
    from nola_codec.adapters import read
    from nola_codec.encoder.options import EncodeOptions
    from nola_codec.encoder.pipeline import encode_adapter
    from nola_codec.errors import EncodeError

    try:
        data, report = encode_adapter(replace(read(path), raw={}), EncodeOptions(nmse=nmse), source_bytes=0)
    except EncodeError as error:
        print(f"{path.name}: {OURS} at {nmse:g}: {error}", file=sys.stderr)
        return None
    return Point("default", len(data), report.nmse)


def measure(name: str, path: Path, targets: list[float], wanted: list[str] | None) -> list[Row]:
    """One row for each peer and error."""
    pairs = common.load(path)
    components = [common.singular_components(pair) for pair in pairs]
    rows: list[Row] = []

    def note(peer: str, target: float, point: Point | None, seconds: float) -> None:
        found = {"setting": point.setting, "bytes": point.bytes, "nmse": point.nmse} if point else {"bytes": None}
        rows.append({"adapter": name, "peer": peer, "target": target, **found, "seconds": round(seconds, 2)})

    for label, bound in BOUNDS.items():
        for target in targets:
            start = time.perf_counter()
            note(label, target, Point("", round(bound(components, target)), target), time.perf_counter() - start)
    if wanted is None or OURS in wanted:
        for target in targets:
            start = time.perf_counter()
            note(OURS, target, ours(path, target), time.perf_counter() - start)
    for key, make in peers(pairs, common.source_itemsize(path)).items():
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
            return MISSED
        count = float(str(row["bytes"]))
        over = "!" if float(str(row["nmse"])) > target else ""
        return (
            over + common.size(count) + (f"  {count / float(str(own['bytes'])):5.2f}x" if own and own["bytes"] else "")
        )

    lines = [[peer, *(cell(found, target) for target in targets)] for peer, found in by_peer.items()]
    return f"\n{name}\n" + common.table(lines, ["bytes at NMSE", *(f"{target:g}" for target in targets)])


def summarize(rows: list[Row]) -> list[Row]:
    """For every adapter and error: the closest peer, the SVD in fp16 and the bound, as multiples of our bytes.

    Fields are None where we, or they, do not get there.
    """
    points: dict[tuple[str, float], dict[str, float]] = {}
    missed: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        key = str(row["adapter"]), float(str(row["target"]))
        found = points.setdefault(key, {})
        if row["bytes"] is None:
            missed.setdefault(key, []).append(str(row["peer"]))
        else:
            found[str(row["peer"])] = float(str(row["bytes"]))
    out: list[Row] = []
    for (adapter, target), found in points.items():
        own, bound = found.get(OURS), found.get(BOUND)
        rivals = {peer: count for peer, count in found.items() if peer != OURS and peer not in BOUNDS}
        closest = min(rivals, key=lambda peer: rivals[peer], default=None)
        times = {peer: count / own if own else None for peer, count in rivals.items()}
        out.append({
            "adapter": adapter, "target": target, "bytes": own, "closest": closest,
            "closest_ratio": times[closest] if closest else None, **{peer: times.get(peer) for peer in FP16},
            "over_bound": own / bound if own and bound else None, "missed": missed.get((adapter, target), []),
        })  # fmt: skip
    return out


def _times(ratio: object) -> str:
    return MISSED if ratio is None else f"{float(str(ratio)):.2f}x"


def show_summary(rows: list[Row], targets: list[float]) -> str:
    """The summary, and the geometric mean of every peer's ratio over the adapters where it gets there."""
    lines = [
        [
            f"{row['adapter']} at {row['target']:g}",
            MISSED if row["bytes"] is None else common.size(float(str(row["bytes"]))),
            row["closest"] or "none", _times(row["closest_ratio"]), *(_times(row[peer]) for peer in FP16),
            _times(row["over_bound"]),
        ]
        for row in summarize(rows)
    ]  # fmt: skip
    heading = ["adapter at NMSE", OURS, "closest peer", "its bytes", *FP16, "ours over the bound"]
    own = {(row["adapter"], row["target"]): row["bytes"] for row in rows if row["peer"] == OURS and row["bytes"]}
    means: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        name = re.sub(r"^(lossless .*|ZipNN) fp(16|32)$", r"\1 of the source", str(row["peer"]))
        logs = means.setdefault(name, {}).setdefault(float(str(row["target"])), [])
        mine = own.get((row["adapter"], row["target"]))
        if row["bytes"] and mine:
            logs.append(math.log(float(str(row["bytes"])) / float(str(mine))))
    count = len({row["adapter"] for row in rows})

    def mean(logs: list[float]) -> str:
        if not logs:
            return MISSED
        share = "" if len(logs) == count else f" ({len(logs)} of {count})"
        return f"{math.exp(sum(logs) / len(logs)):.2f}x{share}"

    by_peer = [[peer, *(mean(found[target]) for target in targets)] for peer, found in means.items()]
    return (
        "\nSummary: bytes as multiples of ours\n" + common.table(lines, heading)
        + "\n\nGeometric means over the adapters, where reached\n"
        + common.table(by_peer, ["bytes against ours at NMSE", *(f"{target:g}" for target in targets)])
    )  # fmt: skip


def main() -> None:
    """Measure, print tables on stdout (or JSON with --json), progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", nargs="+", metavar="NAME", help="short names, as the tables print them")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=f"keys of peers.py, and {OURS}")
    parser.add_argument("--nmse", nargs="+", type=float, default=list(TARGETS), metavar="E")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    found = common.adapters()
    if unknown := set(options.adapters or ()) - set(found):
        parser.error(f"no adapter {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    keys = [OURS, *peers([])]
    if unknown := set(options.peers or ()) - set(keys):
        parser.error(f"no peer {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    everything: list[Row] = []
    begin = time.perf_counter()
    for name in options.adapters or found:
        start = time.perf_counter()
        rows = measure(name, found[name], options.nmse, options.peers)
        everything += rows
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if not options.json:
            print(show(name, rows, options.nmse), flush=True)
    text = json.dumps({"rows": everything, "summary": summarize(everything)}, indent=1)
    if not options.json:
        print(show_summary(everything, options.nmse))
    print(f"all: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if options.json:
        print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
