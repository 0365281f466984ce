"""Time each compiled kernel of the bases against NumPy: a table, or JSON with --json.

    python tools/bench/kernels.py [--json] [--quick]

Both paths run one after the other on one thread, and their results are compared. A figure is the best of several runs,
in millions of results a second: words, signs or positions, elements of vectors, entries of dense bases.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is imported

import numpy as np
import numpy.typing as npt
from common import table

from nola_codec.arrays import NUMPY
from nola_codec.basis import BasisKey, basis_by_id
from nola_codec.errors import NolaError
from nola_codec.kernels import using
from nola_codec.kernels.compiling import VARIANTS
from nola_codec.kernels.loading import load
from nola_codec.prng import PHILOX, SIGNS, signs, subset, words
from nola_codec.quant.scales import scale_to_int16

Work = Callable[[], npt.NDArray[Any]]


def synthesis(basis: int, n: int, num_basis: int, batch: int) -> Work:
    """Return the work of a synthesis with its scaling: int16 (batch, n)."""
    rng = np.random.default_rng(0)
    q = rng.integers(-7, 8, (1, batch, num_basis)).astype(np.int32)
    keys = (BasisKey(PHILOX, 7, 3),)
    chosen, scales = basis_by_id(basis), (np.full(batch, 40_000), np.full(batch, 20))

    def work() -> npt.NDArray[Any]:
        made = chosen.synthesize_compiled(list(q), n, keys, 7, scales, NUMPY)
        if made is not None:
            return np.asarray(made[0])
        whole = chosen.synthesize(q, n, keys, 7, NUMPY)
        return np.asarray(scale_to_int16(whole[0], scales[0][:, None], scales[1][:, None], NUMPY))

    return work


def works(size: int) -> dict[str, tuple[int, Work]]:
    """Return the number of results and the work of each row; `size` is about that number."""
    key: dict[str, int] = {"seed": 7, "stream": 3}
    rows: dict[str, tuple[int, Work]] = {}
    rows["philox4x32-10 words"] = (
        size,
        partial(words, PHILOX, **key, purpose=SIGNS, start=0, count=size, xp=NUMPY),
    )
    rows["philox4x32-10 signs"] = (
        size,
        partial(signs, PHILOX, **key, purpose=SIGNS, start=0, count=size, xp=NUMPY),
    )
    third = size // 3
    rows["a third of the positions"] = third, partial(subset, PHILOX, **key, population=size, size=third, xp=NUMPY)
    for n in (576, 1536, 4096, 11008, 14336, 50257):
        batch = max(1, min(16, size // n))
        rows[f"hadamard, n = {n}"] = batch * n, synthesis(1, n, n, batch)
    rows["hadamard, a third of n = 4096"] = 16 * 4096, synthesis(1, 4096, 4096 // 3, 16)
    k = max(4, size // 65536)
    rows[f"rademacher, {k} rows of 65536"] = 65536 * k, synthesis(2, 65536, k, 1)
    rows[f"uniform, {k} rows of 65536"] = 65536 * k, synthesis(3, 65536, k, 1)
    return rows


def measure(work: Work, seconds: float) -> tuple[float, npt.NDArray[Any]]:
    """Return the best time of several runs, at least two, and the result."""
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 2 or spent < seconds:
        start = time.perf_counter()
        result = work()
        took = time.perf_counter() - start
        best, spent, runs = min(best, took), spent + took, runs + 1
    return best, result


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Time the compiled kernels against NumPy.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    options = parser.parse_args()
    size, seconds = (1 << 14, 0.0) if options.quick else (1 << 21, 0.25)
    paths = ["off"]
    for variant in VARIANTS:
        try:
            load(variant)
        except NolaError:  # not compiled, or not for this processor
            continue
        paths.append(variant)
    rows = []
    for name, (count, work) in works(size).items():
        row: dict[str, Any] = {"kernel": name}
        wanted = None
        for path in paths:
            with using(path):
                took, made = measure(work, seconds)
            if wanted is not None and not np.array_equal(made, wanted):
                raise SystemExit(f"{name}: {path} gives other bits than NumPy")
            wanted = made
            row["numpy" if path == "off" else path] = round(count / took / 1e6, 1)
        rows.append(row)
    if options.json:
        print(json.dumps({"processor": platform.processor() or platform.machine(), "unit": "million a second",
                          "rows": rows}, indent=1))  # fmt: skip
        return
    names = list(rows[0])
    print(table([[row[name] for name in names] for row in rows], names))


if __name__ == "__main__":
    main()
