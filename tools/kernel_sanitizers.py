"""Run tests over kernels that are compiled with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tools/kernel_sanitizers.py [--variant generic|avx2|avx512] [ARGUMENT OF PYTEST ...]

Without arguments it runs the tests of kernels, generators and bases, the golden files and the damaged files, once for
each variant of the kernels that this processor runs. The package is copied and compiled in a temporary directory, so
the library of the checkout stays as it is. It needs gcc with its sanitizers, or clang on Linux. Exit status: 0 all
clean, 1 a test or a sanitizer reports something, 3 the sanitizers are not there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nola_codec.kernels.compiling import CannotCompile, compile_library, variants

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/unit/kernels", "tests/unit/prng", "tests/unit/basis", "tests/unit/quant", "tests/unit/entropy",
         "tests/unit/merger", "tests/kat", "tests/golden", "tests/reject")  # fmt: skip
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")

# The checkout is the working directory of the tests; its own package must not be found there before the copy.
RUN_PYTEST = "import sys; sys.path[:] = [p for p in sys.path if p]; import pytest; sys.exit(pytest.main(sys.argv[1:]))"

# A kernel reads 100 words where there is one. A run in which this goes unnoticed proves nothing.
OVERRUN = """
import numpy as np
from nola_codec.kernels import library
library().call("nola_signs", np.zeros(1, np.uint32), 3200, np.zeros(3200, np.int8))
"""


def main(arguments: list[str]) -> int:
    """Compile, see that a fault is noticed, and run the tests for each variant."""
    parser = argparse.ArgumentParser(description="Run tests over kernels that are compiled with sanitizers.")
    parser.add_argument("--variant", choices=variants(), help="this one only")
    options, further = parser.parse_known_args(arguments)
    runtime = find_runtime()
    if runtime is None:
        print("the compiler has no AddressSanitizer", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as name:
        copied = Path(name) / "nola_codec"
        shutil.copytree(ROOT / "nola_codec", copied, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        try:
            compile_library(copied / "kernels", FLAGS)
        except CannotCompile as e:
            print(e, file=sys.stderr)
            return 3
        for variant in [options.variant] if options.variant else variants():
            environment = {
                **os.environ,
                "PYTHONPATH": name,
                "NOLA_KERNELS": variant,
                "LD_PRELOAD": str(runtime),
                "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves memory at its end
            }
            ask = "from nola_codec.kernels import library; library()"
            if subprocess.run([sys.executable, "-c", ask], env=environment, cwd=name, capture_output=True).returncode:
                print(f"{variant}: this processor does not run it")
                continue
            seen = subprocess.run([sys.executable, "-c", OVERRUN], env=environment, cwd=name, capture_output=True)
            if b"AddressSanitizer: heap-buffer-overflow" not in seen.stderr:
                print(f"{variant}: a read beyond the end was not noticed, so the sanitizers do not work here")
                return 3
            command = [sys.executable, "-c", RUN_PYTEST, "-q", "-p", "no:cacheprovider", *(further or TESTS)]
            done = subprocess.run(command, env=environment, cwd=ROOT)
            print(f"{variant}: {'clean' if done.returncode == 0 else 'NOT CLEAN'}")
            if done.returncode:
                return 1
    return 0


def find_runtime() -> Path | None:
    """Return the library of AddressSanitizer, which must be loaded before Python's own allocations."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    for name in ("libasan.so", "libclang_rt.asan-x86_64.so", "libclang_rt.asan-aarch64.so"):
        try:
            found = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        except OSError:
            return None
        path = Path(found.stdout.strip())
        if found.returncode == 0 and path.is_absolute() and path.is_file():
            return path
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
