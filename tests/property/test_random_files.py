"""Random legal files decode to the same bits on every path, with any number of threads, and in the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_paths import PATHS
from nola_forge import reference, verify
from random_files import random_file

from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.container.reader import open_container
from nola_codec.decoder import decoder as decoder_module
from nola_codec.decoder.decoder import Decoder


@pytest.mark.parametrize(
    "numbers",
    [
        *(pytest.param(range(n, n + 10), id=f"from {n}") for n in range(0, 100, 10)),
        *(pytest.param(range(n, n + 100), id=f"from {n}", marks=pytest.mark.slow) for n in range(100, 1000, 100)),
    ],
)
def test_every_path_gives_the_same_bits(numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file holds the SHA-256 of what it decodes to on the path that made it, and each path makes the same file."""
    for number in numbers:
        made = set()
        for threads, path in enumerate(PATHS, start=1):
            monkeypatch.setenv("NOLA_KERNELS", path)
            monkeypatch.setenv("NOLA_THREADS", str(threads))
            data = random_file(number)
            made.add(data)
            verify(data)
        assert len(made) == 1, number


@pytest.mark.parametrize("number", range(0, 100, 4))
def test_the_reference_decoder_and_pytorch_give_the_same_bits(number: int) -> None:
    data = random_file(number)
    reference().decode(data)  # compares the decoded SHA-256
    verify(data, xp=TorchArrays())


def test_the_files_hold_what_decoders_must_know() -> None:
    seen = set()
    for number in range(100):
        with open_container(random_file(number)) as container:
            header = container.read_units()
            seen |= {type(q.codebook).__name__ + " frequencies" * bool(q.frequencies) for q in header.quantizers}
            seen |= {f"codec {section.codec}" for section in header.sections}
            seen |= {f"basis {r.kind.basis} {r.kind.split} {len(r.kind.sides)}" for r in header.coded}
            seen |= {f"generator {header.generator}", f"rungs {len(header.rungs)}", f"blocks {len(header.blocks)}"}
            seen |= {"units that start later" for r in header.coded if r.entry.any()}
    wanted = {"Codebook", "Codebook frequencies", "Trellis", "Dependent", "Dependent frequencies"}
    wanted |= {f"codec {number}" for number in (0, 1, 2, 3)}
    wanted |= {f"basis {basis} {split} 2" for basis in (1, 2, 3) for split in ("component", "factor")}
    wanted |= {f"basis {basis} component 1" for basis in (1, 2, 3)}
    wanted |= {"generator 1", "generator 2", *(f"{what} {n}" for what in ("rungs", "blocks") for n in (1, 2, 3))}
    assert wanted | {"units that start later"} <= seen


@pytest.mark.parametrize("path", PATHS)
def test_single_records_are_those_of_the_whole_file(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where NumPy decodes a block or a record at a time."""
    monkeypatch.setenv("NOLA_KERNELS", path)
    monkeypatch.setattr(decoder_module, "_BATCH_SYMBOLS", 1)
    monkeypatch.setattr(decoder_module, "_PORTION_SYMBOLS", 1)
    for number in range(20):
        with open_container(random_file(number)) as container:
            together = Decoder(container, NUMPY).decode_all()
            alone = Decoder(container, NUMPY)
            for index, wanted in enumerate(together):
                ((found, record),) = alone.decode([index], floats=True)
                assert (found, record.exponents) == (index, wanted.exponents)
                assert record.floats is not None
                for side, other, made, exponent in zip(
                    record.sides, wanted.sides, record.floats, record.exponents, strict=True
                ):
                    assert np.array_equal(side, other)
                    assert made.dtype == np.float32
                    assert np.array_equal(made, side.astype(np.float64) * 2.0**exponent)
