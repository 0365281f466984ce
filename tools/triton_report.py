"""Compile the Triton kernels for GPUs that need not be here, and compute how long they would take.

    python tools/triton_report.py [--json FILE]

Each kernel is compiled ahead of time for NVIDIA sm_80 (A100), sm_90 (H100, H200), sm_120 (RTX 50) and AMD gfx942
(MI300). The registers, spills and shared memory are what NVIDIA's and AMD's assemblers report. Exchanges are the
conversions of layouts that Triton put into a kernel, which go through shared memory.

The second table is a roofline: the bytes and operations of a 7B-shaped adapter (tools/bench/speed_7b.py), and the least
time that they take on an H100 and an H200. It is computed. Nothing here runs on hardware; tools/gpu_check.py does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TARGETS = (("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 120, 32), ("hip", "gfx942", 64))


@dataclass(frozen=True)
class Compiled:
    """What an assembler says of one kernel on one target.

    Attributes:
        kernel: The kernel, with the sizes that it was compiled for.
        target: The architecture.
        registers: Registers of a thread (NVIDIA), vector registers of a lane (AMD).
        spilled: Registers that did not fit (AMD), or bytes of them (NVIDIA).
        shared: Bytes of shared memory of a program.
        exchanges: Conversions of layouts through shared memory.
        warps: Warps, or waves, of a program.
    """

    kernel: str
    target: str
    registers: int
    spilled: int
    shared: int
    exchanges: int
    warps: int


@dataclass(frozen=True)
class Device:
    """The published peaks of a device, per second.

    Attributes:
        name: Its name.
        memory: Bytes of device memory.
        integer: Operations of int32 outside of matrix units.
        double: Operations of float64 outside of matrix units.
        matrix8: Operations of int8 in matrix units.
    """

    name: str
    memory: float
    integer: float
    double: float
    matrix8: float


DEVICES = (
    Device("H100 SXM", 3.35e12, 16.7e12, 33.5e12, 1979e12),
    Device("H200", 4.8e12, 16.7e12, 33.5e12, 1979e12),
)


@dataclass(frozen=True)
class Work:
    """What one kernel does for one job.

    Attributes:
        job: The job.
        kernel: The kernel.
        bytes: Bytes that go to and from device memory.
        integer, double, matrix8: Operations, as in `Device`.
    """

    job: str
    kernel: str
    bytes: float
    integer: float
    double: float = 0
    matrix8: float = 0

    def seconds(self, device: Device) -> tuple[float, str]:
        """Return the least time on a device, and what bounds it."""
        times = {
            "memory": self.bytes / device.memory,
            "int32": self.integer / device.integer,
            "float64": self.double / device.double,
            "int8 matrices": self.matrix8 / device.matrix8,
        }
        bound = max(times, key=lambda name: times[name])
        return times[bound], bound


PARAMETERS = 39_976_960  # rank 16 on the seven projections of each of 32 layers of width 4096 and 11008
WEIGHTS = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
RANK = 16


def workloads() -> list[Work]:
    """Return the jobs of the roofline."""
    signs = 4096 * 4 * 2048  # one factor (4096, 4) of the paper's form with 2,048 coefficients
    return [
        # A symbol takes about 3 bits, and 25 operations, with its share of the prefix sum of the lanes.
        Work("rANS of all symbols", "rans", PARAMETERS * (3 / 8 + 1), PARAMETERS * 25),
        # A byte is read and two are written; 12 butterflies of one operation, 6 of points, 12 of signs and scale.
        Work("symbols to int16 elements", "hadamard", PARAMETERS * 3, PARAMETERS * 30),
        # A counter gives 128 signs for 100 operations; a sign is taken out of its word, selected and added.
        Work("a dense factor, 4096 x 4 elements, 2,048 rows", "rademacher", 4096 * 4 * 4, signs * (100 / 128 + 4)),
        Work("merge into bfloat16 weights", "merge", WEIGHTS * 4, WEIGHTS * 24, WEIGHTS * 3, WEIGHTS * RANK * 8),
    ]


def cases() -> dict[str, tuple[Any, list[str], dict[str, Any], dict[str, Any]]]:
    """Return (kernel, types of its arguments, constants, options) by name."""
    from nola_codec.kernels.triton import hadamard, merge, philox, rademacher, rans

    blocks = ["*u8", "*i64", "*i64", "*i32", "*i32", "*i16", "i32"]
    return {
        "rans, 64 lanes": (
            rans.rans_kernel,
            ["*u8", "*i64", "*i64", "*i64", "*i64", "*i64", "*i32", "*i64", "*i32", "*u8", "*i32"],
            {"LANES": 64}, {"num_warps": 1},
        ),
        "rans, 4096 lanes": (
            rans.rans_kernel,
            ["*u8", "*i64", "*i64", "*i64", "*i64", "*i64", "*i32", "*i64", "*i32", "*u8", "*i32"],
            {"LANES": 4096}, {"num_warps": 8},
        ),
        "sign words": (
            philox.sign_words_kernel, ["*i32", "*i64", "i32", "i32", "i32", "i32"], {"COUNTERS": 256}, {"num_warps": 4},
        ),
        "hadamard, block 4096": (
            hadamard.hadamard_kernel, blocks, {"LOG2": 12, "TILE_BLOCKS": 1}, {"num_warps": 16},
        ),
        "hadamard, 16 blocks of 256": (
            hadamard.hadamard_kernel, blocks, {"LOG2": 8, "TILE_BLOCKS": 16}, {"num_warps": 16},
        ),
        "rademacher": (
            rademacher.rademacher_kernel, ["*i32", "*i32", "*i64", "i32", "i32", "i32", "i32", "i32", "i32"],
            {"COUNTERS": 8, "ALIGNED": True}, {"num_warps": 4},
        ),
        "merge, bfloat16": (
            merge.merge_kernel, ["*bf16", "*i16", "*i16", "*i16", "*i32", "i32", "i32", "i32", "*fp64", "*fp64"],
            {"ROWS": 64, "COLUMNS": 64, "RANKS": 32, "DTYPE": merge.BFLOAT16},
            {"num_warps": 8, "enable_fp_fusion": False},
        ),
    }  # fmt: skip


def compile_case(name: str, backend: str, arch: int | str, width: int) -> Compiled:
    """Compile one kernel for one target, and read what its assembler says."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants, options = cases()[name]
    given = iter(types)
    signature = {n: "constexpr" if n in constants else next(given) for n in kernel.arg_names}
    aligned = [number for number, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(
        kernel, signature, constexprs=constants, attrs={(number,): [["tt.divisibility", 16]] for number in aligned}
    )
    made = triton.compile(source, target=GPUTarget(backend, arch, width), options=options)
    if any(name in made.asm.get("ptx", made.asm.get("amdgcn")) for name in ("fma.rn.f64", "v_fma_f64")):
        raise RuntimeError(f"{name}: product and sum are fused into one rounding, which changes bits")
    exchanges = made.asm["ttgir"].count("ttg.convert_layout")
    if backend == "hip":
        registers, spilled = (
            int(found[1]) if (found := re.search(rf"\.{field}:\s+(\d+)", made.asm["amdgcn"])) else 0
            for field in ("vgpr_count", "vgpr_spill_count")
        )
    else:
        registers, spilled = _resource_usage(made.asm["cubin"])
    target = arch if isinstance(arch, str) else f"sm_{arch}"
    return Compiled(name, target, registers, spilled, made.metadata.shared, exchanges, made.metadata.num_warps)


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of local memory of a kernel, as NVIDIA's cuobjdump prints them."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown.stdout + shown.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no registers: {shown.stdout}")
    return int(found[1]), int(found[2])


def main() -> int:
    """Print both tables. Returns the exit status: 2 if Triton is not installed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write both tables to this file as well")
    arguments = parser.parse_args()
    try:
        import triton
    except ModuleNotFoundError:
        print("triton_report: Triton is not installed: pip install -c constraints.txt triton", file=sys.stderr)
        return 2
    compiled = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        print(f"Triton {triton.__version__}, compiled ahead of time; not run on hardware\n")
        print("| kernel | target | registers | spilled | shared memory, bytes | exchanges | warps |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for name in cases():
            for target in TARGETS:
                made = compile_case(name, *target)
                compiled.append(made)
                print(f"| {' | '.join(str(value) for value in asdict(made).values())} |", flush=True)
    print("\nRoofline of a 7B-shaped adapter, computed; not run on hardware\n")
    print("| job | bytes | int32 | float64 | int8 | " + " | ".join(device.name for device in DEVICES) + " |")
    print("|---|---:|---:|---:|---:|" + "---:|" * len(DEVICES))
    for work in workloads():
        times = [work.seconds(device) for device in DEVICES]
        figures = [f"{value:.2e}" if value else "" for value in (work.bytes, work.integer, work.double, work.matrix8)]
        shown = [f"{1e6 * seconds:,.0f} us ({bound})" for seconds, bound in times]
        print(f"| {' | '.join([work.job, *figures, *shown])} |")
    if arguments.json is not None:
        roofline = [asdict(work) | {device.name: work.seconds(device)[0] for device in DEVICES} for work in workloads()]
        text = json.dumps({"triton": triton.__version__, "compiled": [asdict(c) for c in compiled],
                           "roofline": roofline}, indent=1)  # fmt: skip
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
