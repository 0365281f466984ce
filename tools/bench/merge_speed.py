"""Measure a merge into a base model against a copy of it, PEFT and mergekit, and resume a killed merge.

    python tools/bench/merge_speed.py [--work-dir DIR] [--peers peft,mergekit] [--mergekit PATH] [--json]
    python tools/bench/merge_speed.py --model MODEL_DIR --adapter PEFT_DIR

Without --model, the model has the shapes of Llama 3.2 3B (bf16, random, seeded, four shards, 6.4 GB), and the adapter
has rank 16 on all seven linear layers of each block. Model and .nola file stay in the work directory, and a run needs
about 20 GB. Every measurement runs in a process of its own. Its input is read once before, so that it is in the page
cache if memory allows.

A merge by nola-codec is on the disk when the process ends; a copy and the peers are not. So the table has two times:
the process alone, and the process and a sync of its output. A last table says where the time of a merge goes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import ROOT, table, write_peft
from measuring import Figures, measure_command, warm

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY, RANK = 3072, 8192, 28, 24, 8, 128256, 16
KV = HIDDEN // HEADS * KV_HEADS
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCABULARY,
    "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "attention_bias": False,
    "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def make_model(folder: Path, layers: int) -> None:
    """Write the model once, shard by shard."""
    from nola_codec.model.tensors import RawTensor
    from nola_codec.stores.safetensors_io import num_bytes
    from nola_codec.stores.safetensors_writer import SafetensorsWriter

    rng = np.random.default_rng(3)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in LINEAR.items()}
        shapes |= {f"{prefix}{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes["model.norm.weight"] = (HIDDEN,)
    total = sum(num_bytes("BF16", shape) for shape in shapes.values())
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{} for _ in range(4)]
    done = 0
    for name, shape in shapes.items():
        shards[min(3, 4 * done // total)][name] = ("BF16", shape)
        done += num_bytes("BF16", shape)
    weight_map = {}
    drawn: dict[tuple[int, ...], npt.NDArray[np.uint16]] = {}  # weights of one shape are all alike, to save minutes
    for number, specs in enumerate(shards, 1):
        file = f"model-{number:05d}-of-00004.safetensors"
        with (temporary / file).open("wb") as stream:
            writer = SafetensorsWriter(stream, specs, {"format": "pt"})
            for name, (dtype, shape) in specs.items():
                if shape not in drawn:
                    values = rng.standard_normal(min(int(np.prod(shape)), 1 << 24), np.float32) * np.float32(0.02)
                    drawn[shape] = np.resize((values.view(np.uint32) >> 16).astype(np.uint16), shape)
                data = np.full(shape, 0x3F80, np.uint16) if len(shape) == 1 else drawn[shape]
                writer.write(name, RawTensor(dtype, shape, data.tobytes()))
                weight_map[name] = file
            writer.finish()
    (temporary / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}, indent=1))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (temporary / "model.safetensors.index.json").write_text(json.dumps(index))
    temporary.rename(folder)


def make_adapter(folder: Path, layers: int) -> None:
    """Write a PEFT directory with fp32 factors; the deltas are about a fiftieth of the weights."""
    rng = np.random.default_rng(7)
    state = {}
    for layer in range(layers):
        for module, (out, into) in LINEAR.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            spectrum = np.exp(-0.15 * np.arange(RANK)).astype(np.float32)
            for name, shape in (("lora_A", (RANK, into)), ("lora_B", (out, RANK))):
                factor = rng.standard_normal(shape, np.float32) * np.float32(0.0115)
                scale = spectrum[:, None] if name == "lora_A" else spectrum
                state[f"{key}.{name}.weight"] = factor * scale
    write_peft(folder, state, RANK, 2 * RANK)


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the BLAKE2 hash of every file of a directory."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "blake2b").hexdigest()
    return found


def ours(nola: Path, model: Path, out: Path, *more: str) -> list[str]:
    """Return the command that merges."""
    return [sys.executable, "-m", "nola_codec", "decode", str(nola), "--base", str(model), "-o", str(out), *more]


def kill_and_resume(nola: Path, model: Path, out: Path, wanted: dict[str, str], whole: float) -> Figures:
    """Kill a merge at a random moment, run it again, and compare the bytes."""
    moment = random.Random(1).uniform(0.6, 0.9) * whole
    while True:
        process = subprocess.Popen(ours(nola, model, out, "-q"), stdout=subprocess.DEVNULL)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not out.exists():
            break
        shutil.rmtree(out)  # it was done before
        moment *= 0.8
    figures = measure_command(ours(nola, model, out, "--json"))
    if "failed" in figures:
        return figures
    report = json.loads(figures["output"])
    return {"killed_after": moment, "seconds": figures["seconds"], "peak": figures["peak"], "shards": report["shards"],
            "resumed": report["resumed"], "same_bytes": file_hashes(out) == wanted}  # fmt: skip


PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3], max_shard_size="2GB")
"""


def mergekit_command(program: str, model: Path, adapter: Path, out: Path, folder: Path) -> list[str]:
    """Return the mergekit command that applies the adapter to one model, which its method `passthrough` copies."""
    recipe = {"models": [{"model": f"{model}+{adapter}"}], "merge_method": "passthrough", "dtype": "bfloat16"}
    (folder / "mergekit.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return [program, str(folder / "mergekit.yaml"), str(out), "--lora-merge-cache", str(folder / "lora-cache"),
            "--out-shard-size", "2B", "--no-copy-tokenizer"]  # fmt: skip


PARTS = """
import os, sys, threading, time
start = time.perf_counter()
from nola_codec.api import merging
from nola_codec.merger import engine, merged_model, stream
parts, lock = {"imports": time.perf_counter() - start}, threading.Lock()

def timed(owner, name, part, clock=time.perf_counter):
    inner = getattr(owner, name)
    def outer(*arguments, **options):
        begin = clock()
        try:
            return inner(*arguments, **options)
        finally:
            with lock:
                parts[part] = parts.get(part, 0.0) + clock() - begin
    setattr(owner, name, outer)

timed(engine, "decode_source", "decode and verify the file")
timed(engine, "place_file", "place the deltas")
timed(merged_model, "write_files", "write the shards")
timed(merged_model, "copy_other_files", "copy the other files")
timed(stream._Worker, "copy", "CPU: read, add, sum and write", time.thread_time)
timed(merged_model, "add_rows", "CPU: of that, add", time.thread_time)
timed(stream, "_read_into", "CPU: of that, read", time.thread_time)
timed(stream, "piece_sums", "CPU: of that, sums of the journal", time.thread_time)
timed(os, "fsync", "fsync, on a thread beside")
merging.merge([sys.argv[1]], sys.argv[2], sys.argv[3])
parts["all"] = time.perf_counter() - start
import json
print(json.dumps(parts))
"""


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, help="directory for model and outputs; by default a temporary one")
    parser.add_argument("--model", type=Path, help="a base model that is there, instead of one that is made")
    parser.add_argument("--adapter", type=Path, help="a PEFT directory that fits --model")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the model that is made")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row but the last, in turn; medians count")
    parser.add_argument("--peers", default="peft,mergekit", help="comma-separated; empty for none")
    parser.add_argument("--mergekit", default="mergekit-yaml", help="the program, of an environment of its own")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.adapter is None):
        parser.error("give both --model and --adapter, or neither")
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory(prefix="nola-merge-") as temporary:
        # As in an installed package, there is bytecode.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = temporary + "/bytecode"
        folder = arguments.work_dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(folder.resolve(), arguments)  # a relative path would be a name on the hub to the peers


def prepare(folder: Path, arguments: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Return the base model, the PEFT adapter and its .nola file; those that are not there are made."""
    model, adapter = arguments.model or folder / "model", arguments.adapter or folder / "adapter"
    nola = folder / "adapter.nola"
    if not model.exists():
        print(f"writing {model}", file=sys.stderr)
        make_model(model, arguments.layers)
    if not nola.exists():
        if not adapter.exists():
            make_adapter(adapter, arguments.layers)
        command = [sys.executable, "-m", "nola_codec", "encode", str(adapter), "-o", str(nola), "-q"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return model.resolve(), adapter.resolve(), nola


def run(folder: Path, arguments: argparse.Namespace) -> None:
    """Make the inputs, measure and print, in one work directory."""
    model, adapter, nola = prepare(folder, arguments)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([*ours(nola, model, out, "-q")], check=True, stdout=subprocess.DEVNULL)  # writes the bytecode
    wanted = file_hashes(out)
    shutil.rmtree(out)
    commands: dict[str, tuple[list[str], dict[str, str]]] = {
        "cp -r": (["cp", "-r", str(model), str(out)], {}),
        "nola-codec": (ours(nola, model, out, "-q"), {}),
        "nola-codec, NumPy alone": (ours(nola, model, out, "-q"), {"NOLA_KERNELS": "off"}),
        "nola-codec --keep-undo": (ours(nola, model, out, "-q", "--keep-undo"), {}),
    }
    runs: dict[str, list[Figures]] = {name: [] for name in commands}
    parts: list[dict[str, float]] = []

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        warm(model)
        os.sync()

    for _ in range(arguments.repeat):
        for name, (command, environment) in commands.items():
            fresh()
            runs[name].append(measure_command(command, out, **environment))
            if "NumPy" in name and "failed" not in runs[name][-1] and file_hashes(out) != wanted:
                runs[name][-1] = {"failed": "other bytes"}
        fresh()
        done = subprocess.run([sys.executable, "-c", PARTS, str(nola), str(model), str(out)], check=True,
                              stdout=subprocess.PIPE)  # fmt: skip
        parts.append(json.loads(done.stdout))
    results: dict[str, Figures] = {
        name: sorted(figures, key=lambda f: f.get("synced", 1e9))[len(figures) // 2] for name, figures in runs.items()
    }
    for name, figures in runs.items():
        results[name]["all_synced"] = [f.get("synced") for f in figures]
    fresh()
    results["killed and resumed"] = kill_and_resume(nola, model, out, wanted, results["nola-codec"]["seconds"])
    for peer in filter(None, arguments.peers.split(",")):
        fresh()
        if peer == "peft":
            command = [sys.executable, "-c", PEFT, str(model), str(adapter), str(out)]
        else:
            command = mergekit_command(arguments.mergekit, model, adapter, out, folder)
        try:
            results[peer] = measure_command(command, out)
        except FileNotFoundError:
            results[peer] = {"failed": "not installed"}
        shutil.rmtree(folder / "lora-cache", ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    for row in results.values():
        row.pop("output", None)
    middle = sorted(parts, key=lambda p: p["all"])[len(parts) // 2]
    bytes_ = sum(path.stat().st_size for path in model.iterdir())
    if arguments.json:
        sizes = {"model_bytes": bytes_, "nola_bytes": nola.stat().st_size}
        print(json.dumps({**sizes, "rows": results, "parts": middle}, indent=1))
        return
    print(f"model {bytes_ / 1e9:.2f} GB, .nola file {nola.stat().st_size / 1e6:.2f} MB, warm page cache\n")
    print_results(results, middle)


def print_results(results: dict[str, Figures], parts: dict[str, float]) -> None:
    """Print both tables, and the figures as JSON."""
    copy = results["cp -r"]
    rows = []
    for name, f in results.items():
        if "failed" in f:
            rows.append([name, f"not run: {f['failed']}", "", "", "", "", ""])
            continue
        times = [f"{f[key]:.2f}" if key in f else "" for key in ("seconds", "synced", "cpu")]
        ratios = [f"{f[key] / copy[key]:.2f}" if key in f else "" for key in ("seconds", "synced")]
        rows.append([name, *times, *ratios, f"{f['peak'] / 1e6:.0f} MB" if "peak" in f else ""])
    print(table(rows, ["", "seconds", "and synced", "CPU", "of the copy", "both synced", "peak memory"]))
    print()
    print(table([[name, f"{seconds:.3f}"] for name, seconds in parts.items()], ["a merge", "seconds"]))
    print("\n" + json.dumps({"rows": results, "parts": parts}))


if __name__ == "__main__":
    main()
