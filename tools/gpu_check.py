"""Check bits and measure times on one GPU, in one command of under 8 minutes.

    python tools/gpu_check.py [--device cuda] [--json FILE]

It decodes every file of the conformance kit and a 7B-shaped adapter on the device and compares the decoded SHA-256,
merges on the device and compares every bit with the merge of NumPy and float64, and measures decoding, merging and
TaskBank beside `torch.load` and PEFT's `load_adapter`. Rooflines are those of tools/triton_report.py. The last line
says whether all bits were right, and so does the exit status (0, or 1 if a bit was wrong).

`--device cpu` runs the same checks small, through PyTorch on the CPU; its times say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from triton_report import DEVICES, Work

import nola_codec
from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.container.reader import open_container
from nola_codec.decoder.device.decoding import DeviceBlocks, decode_on_device, tensor_of
from nola_codec.decoder.device.packed import pack_blocks
from nola_codec.decoder.device.plan import make_plan
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import NolaError
from nola_codec.kernels.triton.availability import uses_triton
from nola_codec.merger.arithmetic.sum import delta_weight, merge_factors, merge_tensor
from nola_codec.model.records import CodedKind, coded_sides
from nola_codec.references.finding import open_decoder

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "spec" / "conformance" / "valid"
RANK = 16


@dataclass(frozen=True)
class Shape:
    """A model of the Llama family.

    Attributes:
        layers: The number of layers.
        hidden: The width.
        intermediate: The width inside the MLP.
    """

    layers: int
    hidden: int
    intermediate: int

    def modules(self) -> Iterator[tuple[str, int, int]]:
        """Yield (path, out, in) of each linear layer."""
        h, i = self.hidden, self.intermediate
        for layer in range(self.layers):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"model.layers.{layer}.self_attn.{name}", h, h
            for name, out, columns in (("gate_proj", i, h), ("up_proj", i, h), ("down_proj", h, i)):
                yield f"model.layers.{layer}.mlp.{name}", out, columns


LARGE, SMALL = Shape(32, 4096, 11008), Shape(2, 64, 192)


@dataclass
class Report:
    """What was found.

    Attributes:
        device: The device, as PyTorch names it.
        triton: True if the Triton kernels ran.
        bits: For each comparison, whether all bits were right.
        rows: (what, seconds, least seconds of the roofline or None).
    """

    device: str
    triton: bool
    bits: dict[str, bool] = field(default_factory=dict)
    rows: list[tuple[str, float, float | None]] = field(default_factory=list)

    def compare(self, what: str, *, right: bool) -> None:
        """Note a comparison, and print it."""
        self.bits[what] = right
        print(f"{'right' if right else 'WRONG'}  {what}", flush=True)

    def table(self) -> str:
        """Return the times in Markdown."""
        lines = ["| what | time | roofline, computed |", "|---|---:|---:|"]
        for what, seconds, least in self.rows:
            lines.append(f"| {what} | {_shown(seconds)} | {_shown(least) if least is not None else ''} |")
        return "\n".join(lines)


def _shown(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def measure(work: Callable[[], object], device: torch.device, *, least: float = 0.5, most: int = 50) -> float:
    """Return the median seconds of calls, each to the end of its work on the device; the first call does not count."""
    work()
    times: list[float] = []
    begin = time.perf_counter()
    while not times or (time.perf_counter() - begin < least and len(times) < most):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def without_triton() -> Iterator[None]:
    """Turn the Triton kernels off for a while."""
    before = os.environ.get("NOLA_TRITON")
    os.environ["NOLA_TRITON"] = "off"
    yield
    if before is None:
        del os.environ["NOLA_TRITON"]
    else:
        os.environ["NOLA_TRITON"] = before


def check_kit(report: Report, device: torch.device) -> None:
    """Decode every valid file of the conformance kit on the device; the decoder compares the decoded SHA-256."""
    for path in sorted(GOLDEN.glob("*.nola")):
        report.compare(f"kit {path.name}", right=_decodes(path, device))


def _decodes(path: Path, device: torch.device) -> bool:
    try:
        with open_container(path) as container:
            open_decoder(container, TorchArrays(device), GOLDEN).decode_all()
    except NolaError as error:
        print(error)
        return False
    return True


def write_adapter(folder: Path, shape: Shape) -> int:
    """Write a seeded adapter of PEFT in float16 with a decaying spectrum, and return its number of parameters."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(7)
    tensors: dict[str, Any] = {}
    for path, out, columns in shape.modules():
        root = np.sqrt(np.exp(-0.2 * np.arange(RANK)) * np.exp(0.4 * rng.standard_normal())).astype(np.float32) * 0.1
        b, a = (rng.standard_normal((n, RANK), np.float32) * (root / n**0.5) for n in (out, columns))
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.astype(np.float16)
        tensors[f"base_model.model.{path}.lora_A.weight"] = np.ascontiguousarray(a.T.astype(np.float16))
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    names = sorted({path.rsplit(".", 1)[1] for path, _, _ in shape.modules()})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none", "target_modules": names,
              "task_type": "CAUSAL_LM", "base_model_name_or_path": None}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, folder / "adapter.pt")
    return sum(value.size for value in tensors.values())


def check_adapter(report: Report, device: torch.device, file: Path, parameters: int) -> None:
    """Decode the adapter on the device: bits, and times of each part with and without Triton."""
    report.compare("adapter, decoded SHA-256", right=_decodes(file, device))
    with open_container(file) as container:
        header = container.read_units()
        packed = pack_blocks(container, header, range(len(header.blocks)))
        made = DeviceBlocks(container, header, range(len(header.blocks)), device).decode()
    data, plan = tensor_of(packed.data, device), make_plan(header, packed.blocks, packed)
    with without_triton():
        plain = decode_on_device(data, plan, header)
        report.compare("adapter, PyTorch without Triton", right=_equal(plain.records, made))
        seconds = measure(lambda: decode_on_device(data, plan, header), device)
        report.rows.append(("packed bytes to factors, PyTorch", seconds, None))
        report.rows.append(("file to factors, symbols by the processor", measure(_fresh(file, device), device), None))
    size = file.stat().st_size
    seconds = measure(lambda: make_plan(header, packed.blocks, packed), device)
    report.rows.append((f"plan of {len(header.coded)} records, on the processor", seconds, None))
    seconds = measure(lambda: tensor_of(packed.data, device), device)
    report.rows.append((f"copy of {size:,} packed bytes to the device", seconds, None))
    if report.triton:
        work = [Work("", "", size + parameters, parameters * 25), Work("", "", parameters * 3, parameters * 30)]
        least = sum(each.seconds(DEVICES[0])[0] for each in work)
        seconds = measure(lambda: decode_on_device(data, plan, header), device)
        report.rows.append(("packed bytes to factors, Triton", seconds, least))
        report.rows.append(("file to factors, Triton", measure(_fresh(file, device), device), None))


def _fresh(file: Path, device: torch.device) -> Callable[[], object]:
    """Return a function that opens a file and decodes it on a device, as `Decoder` does."""

    def decode() -> None:
        with open_container(file) as container:
            for _ in open_decoder(container, TorchArrays(device)).decode():
                pass

    return decode


def _equal(left: Any, right: Any) -> bool:
    return list(left) == list(right) and all(
        left[n].exponents == right[n].exponents
        and all(torch.equal(a, b) for a, b in zip(left[n].sides, right[n].sides, strict=True))
        for n in left
    )


def check_merge(report: Report, device: torch.device, shape: Shape) -> None:
    """Merge one wide weight in every dtype; the bits are those of float64 on the CPU."""
    rng = np.random.default_rng(3)
    rows, columns, exponents = shape.intermediate, shape.hidden, (-22, -18)
    sides = [rng.integers(-32768, 32768, size).astype(np.int16) for size in ((rows, RANK), (RANK, columns))]
    kind = CodedKind("w", "F16", 1, coded_sides([(rows, RANK), (RANK, columns)]), scaling=1.7)
    delta = torch.as_tensor(delta_weight(DecodedRecord(tuple(sides), exponents), kind, NUMPY))
    factors = DecodedRecord(tuple(torch.from_numpy(side).to(device) for side in sides), exponents)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        known = torch.randn((rows, columns), generator=torch.Generator().manual_seed(1)).to(dtype)
        weight, first = known.to(device, copy=True), known.to(device, copy=True)
        merge_tensor(known, delta)
        merge_factors(weight, factors, kind, TorchArrays(device), transposed=False)
        right = torch.equal(weight.cpu().view(torch.uint8), known.view(torch.uint8))
        report.compare(f"merge of {rows} x {columns}, {str(dtype).removeprefix('torch.')}", right=right)
        if dtype != torch.bfloat16:
            continue
        work = Work("", "", rows * columns * 4, rows * columns * 24, rows * columns * 3, rows * columns * RANK * 8)

        def merge(weight: torch.Tensor = first) -> None:
            merge_factors(weight, factors, kind, TorchArrays(device), transposed=False)

        with without_triton():
            report.rows.append((f"merge of {rows} x {columns} in bfloat16, PyTorch", measure(merge, device), None))
        if report.triton:
            least = work.seconds(DEVICES[0])[0]
            report.rows.append((f"merge of {rows} x {columns} in bfloat16, Triton", measure(merge, device), least))


def check_peers(report: Report, device: torch.device, folder: Path, file: Path, shape: Shape) -> None:
    """Measure `torch.load`, PEFT's `load_adapter` and TaskBank on one model."""
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    pickled = folder / "adapter.pt"
    seconds = measure(lambda: torch.load(pickled, map_location=device, weights_only=True), device)
    report.rows.append(("torch.load of the fp16 adapter", seconds, None))
    heads = shape.hidden // 16
    config = LlamaConfig(
        vocab_size=1024, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=heads, num_key_value_heads=heads,
    )  # fmt: skip
    with torch.device(device):
        model: Any = LlamaForCausalLM(config).bfloat16()
    before = {name: weight.detach().clone() for name, weight in list(model.named_parameters())[:12]}
    with nola_codec.TaskBank(model, device=device, memory=0) as bank:
        bank.add("task", file)

        def switch() -> None:
            bank.switch("task")
            bank.switch(None)

        report.rows.append(("TaskBank, switch to a packed task and back", measure(switch, device), None))
    now = dict(model.named_parameters())
    report.compare("TaskBank, bits of the base model", right=all(torch.equal(now[n], w) for n, w in before.items()))
    tuned = PeftModel.from_pretrained(model, folder, adapter_name="first")

    def load() -> None:
        tuned.load_adapter(folder, adapter_name="second")
        tuned.delete_adapter("second")

    report.rows.append(("PEFT, load_adapter from safetensors", measure(load, device, most=5), None))


def main() -> int:
    """Run all checks. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="a device of PyTorch; cpu runs everything small")
    parser.add_argument("--json", type=Path, help="write the report to this file as well")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu_check: PyTorch finds no GPU here; --device cpu runs the checks small", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, not a GPU"
    report = Report(name, uses_triton(device.type))
    print(f"{name}; PyTorch {torch.__version__}; Triton kernels {'on' if report.triton else 'off'}\n")
    shape = SMALL if device.type == "cpu" else LARGE
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = Path(scratch) / "adapter", Path(scratch) / "adapter.nola"
        parameters = write_adapter(folder, shape)
        nola_codec.encode(folder, file)
        check_kit(report, device)
        check_adapter(report, device, file, parameters)
        check_merge(report, device, shape)
        check_peers(report, device, folder, file, shape)
    print(f"\n{report.table()}\n")
    right = all(report.bits.values())
    print(f"{sum(report.bits.values())} of {len(report.bits)} comparisons right, {time.perf_counter() - begin:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
