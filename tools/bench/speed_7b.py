"""Encode and decode time and memory on a LLaMA-2-7B-shaped rank-16 LoRA: 224 modules, 40 million parameters.

    python tools/bench/speed_7b.py [--layers 32] [--json] [OPTION=VALUE ...]

Weights are synthetic, with a decaying spectrum, seeded. Every measurement is a process of its own: imports are done
before the clock starts, and memory is the peak resident set over what it was then. The time by stage is the
report's own; the time by layer comes from a further run under the profiler, which costs time itself and sees worker
threads only as waiting.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from common import ROOT, table, write_peft
from measuring import Figures, resident_peak, run_child

HIDDEN, INTERMEDIATE, RANK = 4096, 11008, 16
SHAPES = {  # (out, in)
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def synthesize(folder: Path, layers: int) -> int:
    """Write the adapter as a PEFT directory with fp32 factors and return its number of parameters."""
    rng = np.random.default_rng(7)
    state = {}
    for layer in range(layers):
        for module, (out, into) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            spectrum = np.exp(-rng.uniform(0.1, 0.3) * np.arange(RANK)) * np.exp(0.4 * rng.standard_normal())
            root = np.sqrt(spectrum).astype(np.float32) * np.float32(0.1)
            mix = np.linalg.qr(rng.standard_normal((RANK, RANK)))[0].astype(np.float32)  # factors are not canonical
            b, a = (rng.standard_normal((n, RANK), np.float32) * (root / n**0.5) @ mix for n in (out, into))
            state[f"{key}.lora_B.weight"], state[f"{key}.lora_A.weight"] = b, np.ascontiguousarray(a.T)
    write_peft(folder, state, RANK, 2 * RANK)
    return sum(tensor.size for tensor in state.values())


def by_layer(stats: pstats.Stats) -> Figures:
    """Seconds of a profile by subpackage of nola_codec: its own and what NumPy, torch and zstd did on its behalf."""
    entries = stats.stats  # type: ignore[attr-defined]
    package = str(ROOT / "nola_codec")
    totals: defaultdict[str, float] = defaultdict(float)

    def charge(function: tuple[str, int, str], seconds: float, depth: int) -> None:
        if function[0].startswith(package):
            totals[Path(function[0]).relative_to(package).parts[0].removesuffix(".py")] += seconds
            return
        callers = entries[function][4] if function in entries else {}
        weight = sum(entry[3] for entry in callers.values())
        if not callers or depth == 12 or weight <= 0:
            totals["other"] += seconds
            return
        for caller, entry in callers.items():
            if seconds * entry[3] / weight > 1e-4:
                charge(caller, seconds * entry[3] / weight, depth + 1)

    for function, (_, _, own, _, callers) in entries.items():
        if function[0].startswith(package) or not callers:
            charge(function, own, 0)
        else:
            for caller, entry in callers.items():
                charge(caller, entry[2], 0)
    return {
        layer: round(seconds, 2)
        for layer, seconds in sorted(totals.items(), key=lambda item: -item[1])
        if seconds >= 0.01
    }


def child(task: str, source: Path, out: Path, options: Figures, profile: bool) -> Figures:
    """Do one task in this process and measure it: `encode` source to out, or decode out to `factors`."""
    import torch  # noqa: F401 - imported before the clock starts

    import nola_codec

    nola_codec.encode, nola_codec.load  # noqa: B018 - loads what the package loads on first use
    before = resident_peak()
    profiler = cProfile.Profile()
    start = time.perf_counter()
    if profile:
        profiler.enable()
    figures: Figures = {}
    if task == "encode":
        report = nola_codec.encode(source, out, overwrite=True, **options)
        figures = {"bytes": report.bytes, "nmse": report.nmse, "stages": report.stages}
    else:
        figures = {"tensors": len(nola_codec.load(out).state_dict())}
    profiler.disable()
    figures |= {"seconds": time.perf_counter() - start, "peak": resident_peak() - before, "peak_all": resident_peak()}
    if profile:
        figures["layers"] = by_layer(pstats.Stats(profiler))
    return figures


def run(task: str, source: Path, out: Path, options: Figures, profile: bool = False) -> Figures:
    """Run `child` in a new process, and return its figures."""
    return run_child(__file__, [task, str(source), str(out), options, profile])


def option(text: str) -> tuple[str, object]:
    """``nmse=0.09`` -> ("nmse", 0.09)."""
    name, _, value = text.partition("=")
    try:
        return name.replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return name.replace("-", "_"), value


def main() -> None:
    """Synthesize, measure, print a table (or JSON) on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="keyword arguments of nola_codec.encode")
    arguments = parser.parse_args()
    if arguments.child:
        task, source, out, options, profile = json.loads(arguments.child)
        print(json.dumps(child(task, Path(source), Path(out), options, profile)))
        return
    options = dict(map(option, arguments.options))
    with tempfile.TemporaryDirectory(prefix="nola-7b-") as folder:
        source, out = Path(folder) / "adapter", Path(folder) / "adapter.nola"
        parameters = synthesize(source, arguments.layers)
        print(f"{parameters:,} parameters in {source}", file=sys.stderr)
        results = {}
        for task in ("encode", "factors"):
            results[task] = run(task, source, out, options)
            results[task]["layers"] = run(task, source, out, options, profile=True)["layers"]
    fp32 = 4 * parameters
    for figures in results.values():
        figures |= {"memory_over_fp32": figures["peak"] / fp32, "process_over_fp32": figures["peak_all"] / fp32}
    if arguments.json:
        print(json.dumps({"parameters": parameters, "options": options, **results}, indent=1))
        return
    print(f"{parameters:,} parameters, {fp32 / 1e6:.0f} MB in fp32; encode options {options or 'default'}")
    print(f"file {results['encode']['bytes']:,} bytes, NMSE {results['encode']['nmse']:.4f}\n")
    rows = [
        [task, f"{r['seconds']:.2f}", f"{r['peak'] / 1e6:.0f} MB", f"{r['memory_over_fp32']:.2f}",
         f"{r['process_over_fp32']:.2f}"]
        for task, r in results.items()
    ]  # fmt: skip
    print(table(rows, ["", "seconds", "memory taken", "of fp32 size", "whole process"]))
    for kind, title in (("stages", "stage, as the report says"), ("layers", "layer of the package, profiled")):
        found = [[f"{task}: {name}", f"{s:.2f}"] for task, r in results.items() for name, s in r.get(kind, {}).items()]
        print("\n" + table(found, [title, "seconds"]))


if __name__ == "__main__":
    main()
