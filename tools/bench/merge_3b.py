"""Measure a merge into 3 billion parameters against a copy, PEFT and mergekit, and resume a killed merge.

    python tools/bench/merge_3b.py [--work-dir DIR] [--peers peft,mergekit] [--mergekit PATH] [--json]

The model has the shapes of Llama 3.2 3B (bf16, random, seeded, four shards, 6.4 GB). The adapter has rank 16 on all
seven linear layers of each block. Model and .nola file stay in the work directory, and a run needs about 20 GB. Every
measurement runs in a process of its own. Its input is read once before, so that it is in the page cache if memory
allows. For all programs, the copy included, the clock stops after the output is synced to disk.
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
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, table

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
Figures = dict[str, Any]


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
    for number, specs in enumerate(shards, 1):
        file = f"model-{number:05d}-of-00004.safetensors"
        with (temporary / file).open("wb") as stream:
            writer = SafetensorsWriter(stream, specs, {"format": "pt"})
            for name, (dtype, shape) in specs.items():
                if len(shape) == 1:
                    data = np.full(shape, 0x3F80, np.uint16)
                else:
                    values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
                    data = (values.view(np.uint32) >> 16).astype(np.uint16)
                writer.write(name, RawTensor(dtype, shape, data.tobytes()))
                weight_map[name] = file
            writer.finish()
    (temporary / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}, indent=1))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (temporary / "model.safetensors.index.json").write_text(json.dumps(index))
    temporary.rename(folder)


def make_adapter(folder: Path, layers: int) -> None:
    """Write a PEFT directory with fp32 factors; the deltas are about a fiftieth of the weights."""
    from safetensors.numpy import save_file

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
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none", "use_rslora": False,
              "target_modules": sorted(name.split(".")[1] for name in LINEAR), "task_type": "CAUSAL_LM"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def warm(folder: Path) -> None:
    """Read every file, so that all start from the same page cache."""
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def sync(folder: Path) -> None:
    """Sync every file of a directory to disk."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def peak_of(process: subprocess.Popen[bytes]) -> int:
    """Return the peak resident set in bytes of a process, read from /proc until it ends."""
    peak = 0
    while process.poll() is None:
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = max(peak, 1024 * int(line.split()[1]))
        except OSError:
            break
        time.sleep(0.05)
    return peak


def measure(command: list[str], out: Path | None = None) -> Figures:
    """Run a command, and return its seconds, with the sync of `out`, and its peak resident set."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    result: dict[str, int] = {}
    watcher = threading.Thread(target=lambda: result.update(peak=peak_of(process)))
    watcher.start()
    output = process.communicate()[0].decode(errors="replace")
    watcher.join()
    if process.returncode:
        return {"failed": " ".join(output.strip().splitlines()[-1:])[:100] or f"exit {process.returncode}"}
    if out is not None:
        sync(out)
    return {"seconds": time.perf_counter() - start, "peak": result["peak"], "output": output}


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
    process = subprocess.Popen(ours(nola, model, out, "-q"))
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    figures = measure(ours(nola, model, out, "--json"))
    if "failed" in figures:
        return figures
    report = json.loads(figures["output"])
    return {"killed_after": moment, "seconds": figures["seconds"], "shards": report["shards"],
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


def main() -> None:
    """Make what is missing, measure, and print a table (or JSON with --json)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, help="a folder to keep; default: a temporary one")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--repeat", type=int, default=3, help="runs of copy and ours, in turn; the median counts")
    parser.add_argument("--peers", default="peft,mergekit", help="comma-separated; empty for none")
    parser.add_argument("--mergekit", default="mergekit-yaml", help="the program, of an environment of its own")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    if arguments.work_dir is None:
        with tempfile.TemporaryDirectory(prefix="nola-3b-") as folder:
            run(Path(folder), arguments)
    else:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
        run(arguments.work_dir.resolve(), arguments)  # a relative path would be a name on the hub to the peers


def run(folder: Path, arguments: argparse.Namespace) -> None:
    """Make the inputs, measure and print, in one work directory."""
    model, adapter, nola, out = (folder / name for name in ("model", "adapter", "adapter.nola", "out"))
    if not model.exists():
        print(f"writing {model}", file=sys.stderr)
        make_model(model, arguments.layers)
    if not nola.exists():
        make_adapter(adapter, arguments.layers)
        command = [sys.executable, "-m", "nola_codec", "encode", str(adapter), "-o", str(nola), "-q"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    shutil.rmtree(out, ignore_errors=True)
    runs: dict[str, list[Figures]] = {"copy": [], "ours": []}
    wanted: dict[str, str] = {}
    for _ in range(arguments.repeat):
        for name, command in (("copy", ["cp", "-r", str(model), str(out)]), ("ours", ours(nola, model, out, "-q"))):
            warm(model)
            os.sync()
            runs[name].append(measure(command, out))
            if name == "ours":
                wanted = wanted or file_hashes(out)
            shutil.rmtree(out, ignore_errors=True)
    results: dict[str, Figures] = {
        name: sorted(figures, key=lambda f: f.get("seconds", 1e9))[len(figures) // 2] for name, figures in runs.items()
    }
    for name in runs:
        results[name]["all_seconds"] = [f.get("seconds") for f in runs[name]]
    results["killed and resumed"] = kill_and_resume(nola, model, out, wanted, results["ours"]["seconds"])
    shutil.rmtree(out, ignore_errors=True)
    for peer in filter(None, arguments.peers.split(",")):
        if peer == "peft":
            command = [sys.executable, "-c", PEFT, str(model), str(adapter), str(out)]
        else:
            command = mergekit_command(arguments.mergekit, model, adapter, out, folder)
        warm(model)
        os.sync()
        try:
            results[peer] = measure(command, out)
        except OSError as error:
            results[peer] = {"failed": str(error)}
        for left in (out, folder / "lora-cache"):
            shutil.rmtree(left, ignore_errors=True)
    for figures in results.values():
        figures.pop("output", None)
    bytes_ = sum(path.stat().st_size for path in model.iterdir())
    if arguments.json:
        print(json.dumps({"model_bytes": bytes_, "nola_bytes": nola.stat().st_size, **results}, indent=1))
        return
    copy = results["copy"]["seconds"]
    rows = [
        [name, f"not run: {f['failed']}", "", ""] if "failed" in f else
        [name, f"{f['seconds']:.1f}", f"{f['seconds'] / copy:.2f}", f"{f['peak'] / 1e6:.0f} MB" if "peak" in f else ""]
        for name, f in results.items()
    ]  # fmt: skip
    print(f"model {bytes_ / 1e9:.2f} GB, .nola file {nola.stat().st_size / 1e6:.1f} MB; synced, warm page cache\n")
    print(table(rows, ["", "seconds", "of the copy", "peak resident"]))
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
