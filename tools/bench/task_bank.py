"""Measure a `TaskBank` beside PEFT: memory of a thousand tasks, switches, forward passes, and the base's bits.

    python tools/bench/task_bank.py [--tasks 1000] [--size 50KB] [--rounds 6] [--switches 1000] [--json]

The base model is SmolLM2-135M (tools/base_model.py) in float32. The tasks of timed switches are encoded: the adapter
in `examples/`, and the same one with its layers moved on by one, two and so on, which are other deltas of the same
kind. The files after these have one of their contents with a seed of its own, and a decoded SHA-256 that is computed
anew: each decodes to other factors, at the cost of a file that was encoded. From the hundredth on, a file is one of
these with a name in its metadata, so that the bank takes it for another one and shares no byte. Files are kept in the
cache of the tools.

PEFT loads the same task from a directory in fp16, as `nola-codec decode --dtype f16` writes it (rank 8), by
`load_adapter` and `set_adapter`, and removes it again outside of the time. A further row is its hot swap. All ways take
turns in one run, so that a busy machine slows them alike.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ROOT, table
from real_data import cache_dir
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import nola_codec
from nola_codec.arrays import NUMPY
from nola_codec.container.reader import header_dictionary, open_container
from nola_codec.container.writer import assemble
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.hashing import DecodedHash

sys.path.insert(0, str(ROOT / "tools"))
from base_model import base_model

SEEDED = 100
"""The number of files that decode to factors of their own."""
TRACED = 20
"""The number of tasks whose allocations are counted, which is slow."""
WANDERED = 64
"""The number of tasks that random switches choose from."""
STACKED = 16
"""The number of tasks whose factors are stacked."""


def with_seed(data: bytes, seed: int) -> bytes:
    """Return a file with another seed, whose decoded SHA-256 is right."""
    container = open_container(data)
    header = replace(container.header, seed=seed)
    sections = [(section.codec, container.section(number)) for number, section in enumerate(header.sections)]
    draft = Decoder(open_container(assemble(header, sections)), NUMPY)
    sha256 = DecodedHash()
    for _, record in draft.decode():
        sha256.update(record, NUMPY)
    (rung,) = header.rungs
    return assemble(replace(header, rungs=(replace(rung, decoded_sha256=sha256.digest()),)), sections)


def with_name(data: bytes, name: str) -> bytes:
    """Return a file with a name in its metadata."""
    container = open_container(data)
    header = replace(container.header, metadata={**container.header.metadata, "task": name})
    return assemble(
        header, [(section.codec, container.section(number)) for number, section in enumerate(header.sections)]
    )


def moved(source: Path, steps: int, target: Path) -> Path:
    """Write an adapter whose layers are moved on by some steps, and return its directory."""
    tensors = load_file(source / "adapter_model.safetensors")
    layers = 1 + max(int(key.split(".layers.")[1].split(".")[0]) for key in tensors)
    target.mkdir()

    def move(match: re.Match[str]) -> str:
        return f".layers.{(int(match[1]) + steps) % layers}."

    save_file(
        {re.sub(r"\.layers\.(\d+)\.", move, key): tensor for key, tensor in tensors.items()},
        target / "adapter_model.safetensors",
    )
    shutil.copy(source / "adapter_config.json", target)
    return target


def task_files(count: int, size: str, encoded: int) -> Iterator[bytes]:
    """Yield distinct files of one size, made once; the first ones are encoded."""
    source = ROOT / "examples" / "smollm2_e2e"
    # While the format is a draft, files of one version of the package may need another header dictionary.
    folder = cache_dir() / f"task_bank-{size}-{nola_codec.__version__}-{zlib.crc32(header_dictionary()):08x}"
    folder.mkdir(parents=True, exist_ok=True)
    made: list[bytes] = []
    for number in range(min(count, SEEDED)):
        path = folder / (f"moved-{number}.nola" if number < encoded else f"seed-{number}.nola")
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}")
            with tempfile.TemporaryDirectory() as place:
                if number < encoded:
                    nola_codec.encode(moved(source, number, Path(place) / "moved"), part, size=size)
                else:
                    part.write_bytes(with_seed(made[number % encoded], number))
            part.replace(path)
        made.append(path.read_bytes())
        yield made[-1]
    for number in range(SEEDED, count):
        yield with_name(made[number % SEEDED], f"task-{number}")


Times = tuple[float, float]
"""How long a call takes, and the time of the processor in it, both in seconds."""


def times_of(call: Callable[[], object]) -> Times:
    """Return the times of a call."""
    start, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - used


def median(times: list[Times], which: int) -> float:
    """Return the median of one of the two times, in milliseconds."""
    return 1000 * statistics.median(each[which] for each in times)


def filled_bank(model: torch.nn.Module, files: dict[str, bytes]) -> tuple[Any, float]:
    """Return a bank with all files, and the bytes that are allocated for one task and held, a mean over some."""
    bank = nola_codec.TaskBank(model)
    names = list(files)
    bank.add(names[0], files[names[0]])  # what is loaded and planned once does not count
    gc.collect()
    traced = names[1 : TRACED + 1]
    tracemalloc.start()
    for name in traced:
        bank.add(name, bytes(bytearray(files[name])))  # a copy; otherwise the bank holds the caller's bytes
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for name in names[len(traced) + 1 :]:
        bank.add(name, files[name])
    return bank, held / len(traced)


def base_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of all weights of a model."""
    sha256 = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha256.update(name.encode())
        sha256.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def fresh(path: Path) -> Any:
    """Return the base model."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


def measure_switches(
    path: Path, bank: Any, names: list[str], files: dict[str, bytes], rounds: int, folder: Path
) -> tuple[dict[str, list[Times]], dict[str, list[Times]]]:
    """Return the seconds of each way to switch, and of forward passes, by their names."""
    import peft
    from peft.utils.hotswap import hotswap_adapter

    for name in names[: rounds + 1]:
        nola_codec.decode(files[name], folder / name, dtype="f16")
    wrapped = peft.PeftModel.from_pretrained(fresh(path), folder / names[0], "resident").eval()
    swapped = peft.PeftModel.from_pretrained(fresh(path), folder / names[0], "slot").eval()
    merged = nola_codec.TaskBank(fresh(path), apply="merged")
    merged.add("task", files[names[0]])
    merged.add("other", files[names[1]])
    merged.switch("task")
    prompt, token = torch.arange(128)[None], torch.arange(1)[None]
    switch: dict[str, list[Times]] = {}
    forward: dict[str, list[Times]] = {}

    def note(kept: dict[str, list[Times]], name: str, call: Callable[[], object]) -> None:
        kept.setdefault(name, []).append(times_of(call))

    def load_with_peft(name: str) -> None:
        wrapped.load_adapter(folder / name, name)
        wrapped.set_adapter(name)

    plain = fresh(path)
    with torch.inference_mode():
        for name in names[1 : rounds + 1]:
            bank.switch(None)
            note(switch, "TaskBank, beside the weights, not in the cache", partial(bank.switch, name))
            bank.switch(None)
            note(switch, "TaskBank, beside the weights, in the cache", partial(bank.switch, name))
            note(switch, "PEFT load_adapter and set_adapter", partial(load_with_peft, name))
            note(switch, "PEFT hotswap_adapter", partial(hotswap_adapter, swapped, str(folder / name), "slot"))
            for tokens, what in ((prompt, "128 tokens"), (token, "1 token")):
                note(forward, f"base model, {what}", partial(plain, tokens))
                note(forward, f"TaskBank beside, {what}", partial(bank.model, tokens))
                note(forward, f"TaskBank merged, {what}", partial(merged.model, tokens))
                note(forward, f"PEFT, {what}", partial(wrapped, tokens))
            wrapped.set_adapter("resident")
            wrapped.delete_adapter(name)
    for number in range(3):
        name = ("other", "task")[number % 2]
        note(switch, "TaskBank, merged, in the cache", partial(merged.switch, name))
    merged.close()
    if base_hash(merged.model) != base_hash(plain):
        raise SystemExit("the base of the merged bank has lost its bits")
    return switch, forward


def measure(count: int, size: str, rounds: int, switches: int) -> dict[str, Any]:
    """Return all figures."""
    path = Path(base_model())
    files = {f"task-{number}": data for number, data in enumerate(task_files(count, size, rounds + 1))}
    names = list(files)
    model = fresh(path)
    before = base_hash(model)
    bank, traced = filled_bank(model, files)
    with tempfile.TemporaryDirectory() as folder:
        switch, forward = measure_switches(path, bank, names, files, rounds, Path(folder))
    asked = names[:STACKED]
    bank.prefetch(asked).result()
    stacking, _ = times_of(lambda: bank.factors(asked))
    stacked = bank.factors(asked)
    equal = all(
        torch.equal(stacked[module].lora_A[number, : one.lora_A.shape[1]], one.lora_A[0])
        and torch.equal(stacked[module].lora_B[number, :, : one.lora_B.shape[2]], one.lora_B[0])
        for number, name in enumerate(asked)
        for module, one in bank.factors([name]).items()
    )
    rng = random.Random(0)
    began = time.perf_counter()
    for _ in range(switches):
        bank.switch(rng.choice([None, *names[:WANDERED]]))
    wandering = time.perf_counter() - began
    usage = bank.usage()
    bank_bytes = usage.packed
    bank.close()
    with nola_codec.TaskBank(model) as other:
        adding = median([times_of(partial(other.add, name, files[name])) for name in names[:50]], 0)
    peers = switch["PEFT load_adapter and set_adapter"]
    return {
        "threads": torch.get_num_threads(),
        "tasks": count,
        "packed bytes": bank_bytes,
        "bytes held for one task, mean": traced,
        "milliseconds to add one": adding,
        "switches": {
            name: {
                "milliseconds": median(times, 0),
                "milliseconds of the processor": median(times, 1),
                "times as fast as load_adapter": median(peers, 0) / median(times, 0),
                "in time of the processor": median(peers, 1) / median(times, 1),
            }
            for name, times in switch.items()
        },
        "forward passes": {
            name: {"milliseconds": median(times, 0), "milliseconds of the processor": median(times, 1)}
            for name, times in forward.items()
        },
        "bytes of one rebuilt task, mean": usage.rebuilt / max(1, sum(1 for t in usage.tasks.values() if t.rebuilt)),
        f"milliseconds to stack the factors of {STACKED} tasks": 1000 * stacking,
        "stacked factors equal single ones bit by bit": equal,
        "random switches": switches,
        "milliseconds of a random switch, mean": 1000 * wandering / max(1, switches),
        "the base has its bits after them": base_hash(model) == before,
    }


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--size", default="50KB")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--switches", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = measure(options.tasks, options.size, options.rounds, options.switches)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for part in ("switches", "forward passes"):
        rows = [(name, *(f"{value:.1f}" for value in each.values())) for name, each in found[part].items()]
        print(table(rows, (part, *next(iter(found[part].values())))), end="\n\n")
    plain = [(name, f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) and not isinstance(v, bool)
              else v) for name, v in found.items() if not isinstance(v, dict)]  # fmt: skip
    print(table(plain, ("what", "figure")))


if __name__ == "__main__":
    main()
