"""Processor time of encoding small adapters, a parameter, with the compiled kernels and without.

    python tools/bench/encode_small.py [--json] [--repeat 3] [--data ../shared/data]

Each adapter and path is a process of its own. "first" is the first encode of a process, which makes the tables of all
quantizers; "next" is the median of those after it. "command" is all of `nola-codec encode`, with the start of Python
and the imports. Processor time is that of all threads: it says nothing about waiting, and changes less than the clock
when other programs run. Both paths must write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import table, write_peft
from measuring import Figures, measure_command, run_child
from real_data import more_data

NEOX_LAYERS, NEOX_WIDTH = 24, 2048
TIMES = ("next", "first", "command")


def cases(data: Path) -> list[tuple[str, Path, Figures]]:
    """Return the name, the path and the options of each adapter that is there."""
    lora = data / "lora"
    found: list[tuple[str, Path, Figures]] = [
        ("gpt2_tigrinya, nmse 0.09", lora / "gpt2_tigrinya", {"nmse": 0.09}),
        ("gpt2_tigrinya", lora / "gpt2_tigrinya", {}),
        ("gptneo125m_movies", lora / "gptneo125m_movies", {}),
        ("smollm135m_medical, 60 KB", lora / "smollm135m_medical", {"size": 60_000}),
        ("sd15_disney_rank1", lora / "sd15_disney_rank1.safetensors", {}),
    ]
    return [case for case in found if case[1].exists()]


def write_neox(folder: Path) -> Path:
    """Write an adapter of rank 1 in the shape of a GPT-NeoX with 24 layers: 197 thousand parameters in long vectors."""
    rng = np.random.default_rng(3)
    state = {}
    for layer in range(NEOX_LAYERS):
        key = f"base_model.model.gpt_neox.layers.{layer}.attention.query_key_value"
        strength = 0.01 * np.exp(0.4 * rng.standard_normal())
        state[f"{key}.lora_A.weight"] = (0.02 * rng.standard_normal((1, NEOX_WIDTH))).astype(np.float32)
        state[f"{key}.lora_B.weight"] = (strength * rng.standard_normal((3 * NEOX_WIDTH, 1))).astype(np.float32)
    write_peft(folder, state, rank=1, alpha=32)
    return folder


def child(source: Path, options: Figures, repeat: int) -> Figures:
    """Encode an adapter in this process, and measure it."""
    import nola_codec
    from nola_codec.kernels import kernel_status

    nola_codec.encode  # noqa: B018 - loads what the package loads on first use
    lib = kernel_status().library
    seconds = []
    with tempfile.TemporaryDirectory(prefix="nola-small-") as folder:
        out = Path(folder) / "adapter.nola"
        for _ in range(repeat + 1):
            start = time.process_time()
            report = nola_codec.encode(source, out, overwrite=True, **options)
            seconds.append(time.process_time() - start)
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
    return {
        "path": lib.variant if lib else "NumPy",
        "parameters": report.parameters,
        "bytes": report.bytes,
        "sha256": digest,
        "first": seconds[0],
        "next": statistics.median(seconds[1:]),
    }


def run(source: Path, options: Figures, repeat: int, kernels: str) -> Figures:
    """Run `child` in a new process, and return its figures."""
    figures = run_child(__file__, [str(source), options, repeat], {"NOLA_KERNELS": kernels})
    return figures | {"command": command(source, options, kernels)}


def command(source: Path, options: Figures, kernels: str) -> float:
    """Return the processor time of `nola-codec encode` in seconds, the least of three runs."""
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    found = []
    with tempfile.TemporaryDirectory(prefix="nola-small-") as folder:
        for number in range(3):
            out = str(Path(folder) / f"{number}.nola")
            words = [sys.executable, "-m", "nola_codec", "encode", "-q", str(source), "-o", out, *arguments]
            figures = measure_command(words, NOLA_KERNELS=kernels)
            if "failed" in figures:
                sys.exit(f"encode_small: {source}: {figures['failed']}")
            found.append(float(figures["cpu"]))
    return min(found)


def main() -> None:
    """Measure all adapters, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data", type=Path, default=more_data(), help="a folder with lora/ [default: NOLA_DATA]")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        source, options, repeat = json.loads(arguments.child)
        print(json.dumps(child(Path(source), options, repeat)))
        return
    results: list[Figures] = []
    further = [] if arguments.data is None else cases(arguments.data)
    with tempfile.TemporaryDirectory(prefix="nola-small-") as folder:
        neox = write_neox(Path(folder) / "neox")
        for name, source, options in [("GPT-NeoX shape, rank 1", neox, {}), *further]:
            pair = [run(source, options, arguments.repeat, kernels) for kernels in ("off", "on")]
            if pair[0]["sha256"] != pair[1]["sha256"]:
                sys.exit(f"encode_small: {name} has other bytes with the kernels")
            results.append({"adapter": name, "options": options, "numpy": pair[0], "kernels": pair[1]})
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    rows = []
    for result in results:
        own, other = result["kernels"], result["numpy"]
        micro = 1e6 / own["parameters"]
        times = [f"{micro * figures[key]:.2f}" for key in TIMES for figures in (other, own)]
        rows.append([result["adapter"], f"{own['parameters']:,}", f"{own['bytes']:,}", *times])
    print(f"Microseconds of processor time a parameter: NumPy, and kernels ({results[0]['kernels']['path']})\n")
    heads = [f"{key}, {path}" for key in TIMES for path in ("NumPy", "kernels")]
    print(table(rows, ["adapter", "parameters", "bytes", *heads]))


if __name__ == "__main__":
    main()
