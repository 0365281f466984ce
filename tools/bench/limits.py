"""How far nola-codec is from what the machine allows, and from what other tools take: all in one run and one table.

    python tools/bench/limits.py [--rows decode,encode,...] [--short] [--json FILE] [--keep]

Each row has a limit that is measured in the same run: a decode is held against `zstd -d` of the same adapter in fp16
and a copy of the result, a merge against `cp -r` of the base model, a small command against Python that imports NumPy.
An encode has no such limit; it is held against `torch.svd_lowrank`, with which other tools resize an adapter. Every
measurement is a process of its own, several are made in turn, and the median counts. Memory is the peak resident set of
the process; of a decode and an encode it is what that grew by from the imports on. Peers that are not installed are
said to be so.

The rows `merge` and `merge-3b` run merge_speed.py. The first needs SmolLM2-135M (tools/base_model.py), the second 20 GB
of disk. --short takes a smaller adapter and a smaller model, and one run of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import encode_small
import numpy as np
from common import ROOT
from measuring import Figures, add_options, measure_call, measure_command, resident_peak, run_child
from real_data import adapters, more_data
from speed_7b import synthesize

sys.path.insert(0, str(ROOT / "tools" / "experiments"))
import results
from page_tables.limits import ROWS, lines

RESIZED = 2
"""The transformer layers whose deltas are resized; the time of all is their mean."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is done.
        ours: The figures of nola-codec.
        limit: The figures of the limit, which has a ``name``; None where the goal is a number.
        goal: The greatest ratio to the limit; or, without a limit, the greatest value.
        unit: The unit of the goal without a limit.
        peers: The figures of others, by name; ``failed`` says why one was not run.
        faster: True if the goal is how many times faster than the limit ours is.
    """

    name: str
    ours: Figures
    goal: float
    limit: Figures | None = None
    unit: str = ""
    peers: dict[str, Figures] = field(default_factory=dict)
    faster: bool = False

    @property
    def value(self) -> float:
        """The number that the goal is about."""
        if self.limit is None:
            return float(self.ours["value"])
        ratio = float(self.ours["seconds"] / self.limit["seconds"])
        return 1 / ratio if self.faster else ratio

    @property
    def is_met(self) -> bool:
        """True if the goal is reached."""
        return self.value >= self.goal if self.faster else self.value <= self.goal

    def to_dict(self) -> Figures:
        """Everything, for JSON."""
        return {"name": self.name, "ours": self.ours, "limit": self.limit, "value": self.value, "goal": self.goal,
                "unit": self.unit, "met": self.is_met, "faster": self.faster, "peers": self.peers}  # fmt: skip


# What children do. Each returns the figures of `measure_call`.


def decode_ours(file: str) -> Figures:
    """Decode a file to float32 factors in memory."""
    import nola_codec

    nola_codec.load(file, device="numpy").close()
    return measure_call(lambda: nola_codec.load(file, device="numpy").state_dict(), most_calls=3)


def decode_zstd(packed: str) -> Figures:
    """Decompress an adapter in fp16 that zstd compressed, and copy the result once."""
    import zstandard

    data = Path(packed).read_bytes()

    def work() -> object:
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8).copy()

    return measure_call(work, most_calls=3)


def decode_safetensors(file: str) -> Figures:
    """Load an adapter in fp16 by safetensors, and convert it to float32."""
    from safetensors.numpy import load_file

    return measure_call(lambda: {k: v.astype(np.float32) for k, v in load_file(file).items()}, most_calls=3)


def decode_zipnn(file: str) -> Figures:
    """Decompress the same bytes that ZipNN compressed; the compression is not measured."""
    from zipnn import ZipNN

    codec = ZipNN(bytearray_dtype="float16")
    packed = codec.compress(Path(file).read_bytes())
    return measure_call(lambda: codec.decompress(packed), most_calls=3)


def encode_ours(source: str, file: str, options: Figures) -> Figures:
    """Encode an adapter once."""
    import nola_codec
    import nola_codec.api.encoding
    import nola_codec.encoder.pipeline

    return measure_call(lambda: nola_codec.encode(source, file, overwrite=True, **options), most_calls=1)


def encode_resize(source: str, modules: int) -> Figures:
    """Resize the deltas of some modules by `torch.svd_lowrank` to half the rank; the time is that of one module."""
    import torch
    from safetensors.torch import load_file

    state = load_file(str(Path(source) / "adapter_model.safetensors"))
    names = sorted(name for name in state if name.endswith("lora_A.weight"))[:modules]

    def work() -> object:
        for name in names:
            lora_A, lora_B = state[name], state[name.replace("lora_A", "lora_B")]
            u, s, v = torch.svd_lowrank(lora_B @ lora_A, q=max(1, lora_A.shape[0] // 2))
            u * s.sqrt(), (v * s.sqrt()).T
        return None

    figures = measure_call(work, most_calls=1)
    return figures | {"seconds": figures["seconds"] / len(names), "modules": len(names)}


CHILDREN: dict[str, Callable[..., Figures]] = {
    work.__name__: work
    for work in (decode_ours, decode_zstd, decode_safetensors, decode_zipnn, encode_ours, encode_resize)
}


class Bench:
    """Makes the inputs in a directory, and measures the rows."""

    def __init__(self, folder: Path, short: bool) -> None:
        self.folder, self.short = folder, short
        self.repeat = 1 if short else 3
        self.layers = 2 if short else 32
        self.rows: dict[str, Callable[[], list[Row]]] = {
            "decode": self.decode, "encode": self.encode, "encode-small": self.encode_small, "merge": self.merge,
            "merge-3b": self.merge_3b, "startup": self.startup,
        }  # fmt: skip

    def in_turn(self, tasks: dict[str, list[object]]) -> dict[str, Figures]:
        """Run children several times in turn, and return the median of each."""
        runs: dict[str, list[Figures]] = {name: [] for name in tasks}
        for _ in range(self.repeat):
            for name, task in tasks.items():
                runs[name].append(run_child(__file__, task))
        return {name: _median(each) for name, each in runs.items()}

    def _adapter(self) -> tuple[Path, Path, Path, Path]:
        """Return the 7B-shaped adapter, its .nola file, and itself in fp16 without and with zstd."""
        from safetensors.numpy import load_file, save_file

        source, file = self.folder / "adapter", self.folder / "adapter.nola"
        half, packed = self.folder / "half.safetensors", self.folder / "half.safetensors.zst"
        if not packed.exists():
            print("writing an adapter of the shape of LLaMA-2-7B", file=sys.stderr)
            synthesize(source, self.layers)
            state = load_file(source / "adapter_model.safetensors")
            save_file({name: value.astype(np.float16) for name, value in state.items()}, half)
            import zstandard

            packed.write_bytes(zstandard.ZstdCompressor(level=3).compress(half.read_bytes()))
            run_child(__file__, ["encode_ours", str(source), str(file), {}])
        return source, file, half, packed

    def decode(self) -> list[Row]:
        """Decode the 7B-shaped adapter to float32 factors."""
        _, file, half, packed = self._adapter()
        found = self.in_turn({
            "ours": ["decode_ours", str(file)],
            "zstd -d of fp16, and a copy": ["decode_zstd", str(packed)],
            "safetensors, fp16 to fp32": ["decode_safetensors", str(half)],
            **({"ZipNN": ["decode_zipnn", str(half)]} if _is_installed("zipnn") else {}),
        })  # fmt: skip
        ours, limit = found.pop("ours"), found.pop("zstd -d of fp16, and a copy")
        if "ZipNN" not in found:
            found["ZipNN"] = {"failed": "not installed"}
        returned = 2 * half.stat().st_size
        limit = {"name": "zstd -d of fp16, and a copy", **limit}
        memory = ours | {"value": ours["memory"] / returned}
        return [
            Row("decode a 7B-shaped adapter to float32 factors", ours, 2, limit, peers=found),
            Row("memory of that decode, over what it returns", memory, 1.3, unit="x"),
        ]

    def encode(self) -> list[Row]:
        """Encode the 7B-shaped adapter."""
        source, file, half, _ = self._adapter()
        modules = 7 * self.layers
        found = self.in_turn({
            "ours": ["encode_ours", str(source), str(file), {}],
            "resize": ["encode_resize", str(source), min(modules, 7 * RESIZED)],
        })  # fmt: skip
        ours, resize = found["ours"], found["resize"]
        name = f"svd_lowrank resize, estimated from {resize['modules']} of {modules} modules"
        limit = resize | {"name": name, "seconds": resize["seconds"] * modules}
        memory = ours | {"value": ours["memory"] / (2 * half.stat().st_size)}
        return [
            Row("encode a 7B-shaped adapter", ours, 30, limit, faster=True),
            Row("memory of that encode, over the fp32 adapter", memory, 2, unit="x"),
        ]

    def encode_small(self) -> list[Row]:
        """Encode small adapters, each for the first time in a process: microseconds of CPU a parameter."""
        data = more_data()
        cases: list[tuple[str, Path, Figures]] = []
        cases += [("GPT-NeoX shape, rank 1", encode_small.write_neox(self.folder / "neox"), {})]
        cases += [] if data is None or self.short else encode_small.cases(data)
        rows = []
        for name, source, options in cases:
            ours = run_child(encode_small.__file__, [str(source), options, 1])
            ours |= {"seconds": ours["first"], "value": 1e6 * ours["first"] / ours["parameters"]}
            rows.append(Row(f"encode {name}", ours, 2, unit="us of CPU a parameter"))
        return rows

    def _merge(self, name: str, goal: float, *arguments: str) -> list[Row]:
        program = Path(__file__).with_name("merge_speed.py")
        command = [sys.executable, str(program), "--json", "--repeat", str(self.repeat), *arguments]
        document = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        rows = document["rows"]
        ours, limit = rows["nola-codec"], rows["cp -r"] | {"name": "cp -r"}
        peers = {
            title: rows[key] for key, title in (("peft", "PEFT load, merge and save"), ("mergekit", "mergekit"))
            if key in rows
        }  # fmt: skip
        memory = ours | {"value": ours["peak"] / 1e9}
        return [Row(name, ours, goal, limit, peers=peers), Row("memory of that merge", memory, 0.3, unit="GB")]

    def merge(self) -> list[Row]:
        """Merge into SmolLM2-135M."""
        from base_model import base_model

        model, adapter = base_model(), adapters()["smollm2_e2e"]
        size = sum(path.stat().st_size for path in model.iterdir()) / 1e6
        name = f"decode --base into SmolLM2-135M ({size:.0f} MB)"
        return self._merge(name, 1.5, "--model", str(model), "--adapter", str(adapter))

    def merge_3b(self) -> list[Row]:
        """Merge into a model of 3 billion parameters in four shards."""
        name = "the same, 3 billion parameters in four shards"
        return self._merge(name, 1.3, *(["--layers", "2"] if self.short else []), "--peers", "peft,mergekit")

    def startup(self) -> list[Row]:
        """Small commands as whole processes, and the import of the package."""
        file, out = self.folder / "small.nola", self.folder / "out"
        source = adapters()["smollm2_e2e"]
        run_child(__file__, ["encode_ours", str(source), str(file), {"size": "50KB"}])
        python, module = [sys.executable, "-c"], [sys.executable, "-m", "nola_codec"]
        commands = {
            "bare": [*python, "pass"],
            "NumPy": [*python, "import numpy"],
            "package": [*python, "import nola_codec"],
            "inspect": [*module, "inspect", str(file)],
            "decode": [*module, "decode", str(file), "-o", str(out), "-f", "-q"],
        }
        runs: dict[str, list[Figures]] = {name: [] for name in commands}
        for _ in range(1 + 5 * self.repeat):  # the first one writes bytecode
            for name, command in commands.items():
                runs[name].append(measure_command(command))
        found = {name: _median(each[1:]) for name, each in runs.items()}
        limit = {"name": "Python that imports NumPy", **found["NumPy"]}
        bare = found["package"] | {"value": 1000 * (found["package"]["seconds"] - found["bare"]["seconds"])}

        def whole(name: str, goal: float) -> Row:
            value = found[name] | {"value": found[name]["seconds"]}
            return Row(f"`{name}` of a file of 50 KB, the whole process", value, goal, unit="s",
                       peers={"Python that imports NumPy": limit})  # fmt: skip

        return [whole("decode", 0.3), whole("inspect", 0.12), Row("import nola_codec", bare, 20, unit="ms")]


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _median(runs: Sequence[Figures]) -> Figures:
    """Return the run of median time; the peak of memory is the greatest of all."""
    failed = next((run for run in runs if "failed" in run), None)
    if failed is not None:
        return failed
    middle = statistics.median_low(run["seconds"] for run in runs)
    figures = next(run for run in runs if run["seconds"] == middle)
    figures |= {key: max(run[key] for run in runs) for key in ("memory", "peak") if key in figures}
    return {key: value for key, value in figures.items() if key != "output"}


def main() -> None:
    """Measure the rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"comma-separated [default: {','.join(ROWS)}]")
    add_options(parser, short="small inputs, one run each")
    arguments = parser.parse_args()
    if arguments.child:
        name, *rest = json.loads(arguments.child)
        figures = CHILDREN[name](*rest)
        print(json.dumps(figures | {"peak": resident_peak()}))
        return
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as in an installed package, there is bytecode
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nola-limits-") as folder:
        bench = Bench(Path(folder), arguments.short)
        if unknown := set(arguments.rows.split(",")) - set(bench.rows):
            parser.error(f"no such row: {', '.join(sorted(unknown))}")
        for name in arguments.rows.split(","):
            made = bench.rows[name]()
            rows += made
            if arguments.keep:
                results.keep("limits", {"row": name}, {"lines": [row.to_dict() for row in made]})
            print(f"{name} is done", file=sys.stderr)
    print(lines([row.to_dict() for row in rows]))
    if arguments.json:
        arguments.json.write_text(json.dumps([row.to_dict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
