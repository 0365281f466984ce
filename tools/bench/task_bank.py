"""Measure a `TaskBank` beside PEFT: memory of a thousand tasks, switches, forward passes, and the base's bits.

    python tools/bench/task_bank.py [--tasks 1000] [--size 50KB] [--rounds 9] [--switches 1000] [--json]

The base model is SmolLM2-135M (tools/base_model.py) in float32. The tasks are the adapters of `examples/` and of
$NOLA_DATA that fit it, coded at the size. Each file after these has one of their contents with a seed of its own, and
a decoded SHA-256 that is computed anew: it decodes to other factors, at the cost of a file that was encoded. They are
kept in the cache of the tools, since making a thousand takes minutes.

PEFT loads the same task from a directory in fp16, as `nola-codec decode --dtype f16` writes it (rank 8), by
`load_adapter` and `set_adapter`, and removes it again outside of the time. A further row is its hot swap. All ways take
turns in one run, so that a busy machine slows them alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ROOT, table
from real_data import cache_dir, more_data
from transformers import AutoModelForCausalLM

import nola_codec
from nola_codec.arrays import NUMPY
from nola_codec.container.reader import open_container
from nola_codec.container.writer import assemble
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.hashing import DecodedHash

sys.path.insert(0, str(ROOT / "tools"))
from base_model import base_model

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


def task_files(count: int, size: str) -> Iterator[bytes]:
    """Yield distinct files of one size, made once."""
    sources = [ROOT / "examples" / "smollm2_e2e"]
    more = more_data()
    if more is not None:
        sources.append(more / "lora" / "smollm135m_medical")
    folder = cache_dir() / f"task_bank-{size}-{nola_codec.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    first: list[bytes] = []
    for number in range(count):
        path = folder / f"{number}-{len(sources)}.nola"
        if not path.is_file():
            if number < len(sources):
                nola_codec.encode(sources[number], path, size=size)
            else:
                part = path.with_suffix(f".{os.getpid()}")
                part.write_bytes(with_seed(first[number % len(sources)], number))
                part.replace(path)
        data = path.read_bytes()
        first += [data] if number < len(sources) else []
        yield data


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
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
    prompt, token = torch.arange(256)[None], torch.arange(1)[None]
    switch: dict[str, list[float]] = {}
    forward: dict[str, list[float]] = {}

    def note(kept: dict[str, list[float]], name: str, call: Callable[[], object]) -> None:
        kept.setdefault(name, []).append(seconds(call))

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
            for tokens, what in ((prompt, "256 tokens"), (token, "1 token")):
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
    return switch, forward


def measure(count: int, size: str, rounds: int, switches: int) -> dict[str, Any]:
    """Return all figures."""
    path = Path(base_model())
    files = {f"task-{number}": data for number, data in enumerate(task_files(count, size))}
    names = list(files)
    model = fresh(path)
    before = base_hash(model)
    bank = nola_codec.TaskBank(model, memory="64MB")
    bank.add("warm", files[names[0]])
    bank.switch("warm")
    bank.switch(None)
    bank.remove("warm")
    sizes = sum(map(len, files.values()))
    start, began = resident(), time.perf_counter()
    for name, data in files.items():
        bank.add(name, bytes(bytearray(data)))  # a copy, as a server would read it from a disk
    adding = (time.perf_counter() - began) / count
    grown = resident() - start
    with tempfile.TemporaryDirectory() as folder:
        switch, forward = measure_switches(path, bank, names, files, rounds, Path(folder))
    asked = names[:STACKED]
    bank.prefetch(asked).result()
    stacking = seconds(lambda: bank.factors(asked))
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
        bank.switch(rng.choice([None, *names]))
    wandering = time.perf_counter() - began
    usage = bank.usage()
    bank.close()
    peft = statistics.median(switch["PEFT load_adapter and set_adapter"])
    return {
        "threads": torch.get_num_threads(),
        "tasks": count,
        "packed bytes": sizes,
        "growth of the process in bytes": grown,
        "bytes in the cache of rebuilt tasks": usage.rebuilt,
        "milliseconds to add one": 1000 * adding,
        "milliseconds of a switch": {name: 1000 * statistics.median(times) for name, times in switch.items()},
        "times as fast as PEFT's load_adapter": {name: peft / statistics.median(t) for name, t in switch.items()},
        "milliseconds of a forward pass": {name: 1000 * statistics.median(times) for name, times in forward.items()},
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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--switches", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = measure(options.tasks, options.size, options.rounds, options.switches)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    faster = found["times as fast as PEFT's load_adapter"]
    rows = [(n, f"{ms:.1f}", f"{faster[n]:.1f}") for n, ms in found["milliseconds of a switch"].items()]
    print(table(rows, ("switch", "ms", "times as fast as load_adapter")), end="\n\n")
    rows2 = [(n, f"{ms:.1f}") for n, ms in found["milliseconds of a forward pass"].items()]
    print(table(rows2, ("forward pass", "ms")), end="\n\n")
    plain = [(name, f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) and not isinstance(v, bool)
              else v) for name, v in found.items() if not isinstance(v, dict)]  # fmt: skip
    print(table(plain, ("what", "figure")))


if __name__ == "__main__":
    main()
