"""The same bits whatever the library, threads, batch, chunks and the process's settings; and nothing CUDA lacks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import Indexing, Watch
from nola_forge import GOLDEN, ROOT, golden, manifest, reference
from torch._subclasses.fake_tensor import FakeTensorMode

from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.basis import BASES, BasisKey
from nola_codec.container.reader import Container, open_container
from nola_codec.decoder.coefficients import Coefficients
from nola_codec.decoder.device.decoding import DeviceRecords, decode_on_device, tensor_of
from nola_codec.decoder.device.packed import pack_blocks
from nola_codec.decoder.device.plan import make_plan
from nola_codec.decoder.factors import synthesize_records
from nola_codec.decoder.hashing import DecodedHash
from nola_codec.merger.arithmetic.sum import delta_weight
from nola_codec.model.records import CodedKind, CodedRecord, Split, coded_sides
from nola_codec.prng import PHILOX
from nola_codec.references.finding import open_decoder

FILES = [name for name, entry in manifest().items() if entry["tensors"]]


EXPONENTS = ((-13, -11), (-13, -11), (-10, -10), (-15, -15))


def wide_records() -> tuple[list[CodedRecord], list[Coefficients]]:
    """Records of real lengths: GEMMs wide enough for a library to reorder, round down or split over threads."""
    rng = np.random.default_rng(0)
    records, coefficients = [], []
    for index, (out, columns, split) in enumerate(
        [(576, 1536, "component"), (576, 1536, "component"), (4096, 97, "component"), (192, 36, "factor")]
    ):
        component = split == "component"
        split: Split = "component" if component else "factor"
        sides = coded_sides([(out, 4), (4, columns)], split, None if component else (300, 200))
        kind = CodedKind(f"w{index // 2}", "F32", 1 if component else 3, sides, split, scaling=2.0)
        vectors = 4 if component else 1
        precision = np.zeros(4 if component else 2, np.int64)
        amplitude = rng.integers(-400, -300, len(precision)) - (0 if component else 500)
        records.append(CodedRecord(f"w{index}", kind, index, EXPONENTS[index], precision * 0, precision, amplitude))
        b, a = (rng.integers(-127, 128, (vectors, n)).astype(np.int32) for n in kind.num_basis)
        coefficients.append(Coefficients((b, a), 127))
    return records, coefficients


def wide_digest(xp: Arrays, **options: Any) -> str:
    """Digest of the wide records' factors."""
    records, coefficients = wide_records()
    digest = DecodedHash()
    for factors in synthesize_records(records, coefficients, generator=PHILOX, seed=9, xp=xp, **options):
        for factor in factors.sides:
            assert 3000 < np.abs(xp.numpy(factor).astype(int)).max() < 32767  # neither coarse nor saturated
        digest.update(factors, xp)
    return digest.digest().hex()


WIDE = "31d055dd25679ec9"  # first digits; a change of them is a change of the format


def file_digest(name: str, xp: Arrays, indexes: Callable[[int], list[list[int] | None]], **options: Any) -> str:
    """Digest of a file's factors, decoded in the given portions."""
    with open_container(golden(name.removesuffix(".nola"))) as container:
        decoder = open_decoder(container, xp, GOLDEN, **options)
        digest = DecodedHash()
        for portion in indexes(len(container.header.coded)):
            for _, factors in decoder.decode(portion):
                digest.update(factors, xp)
        for _, tensor in decoder.carried_tensors():
            digest.update_raw(tensor)
    return digest.digest().hex()


def whole(count: int) -> list[list[int] | None]:
    return [None]


def one_by_one(count: int) -> list[list[int] | None]:
    return [[i] for i in range(count)]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("portions", [whole, one_by_one])
@pytest.mark.parametrize("chunk_elements", [1, 1 << 20])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", FILES)
def test_files(name: str, library: str, chunk_elements: int, portions: Callable[[int], list[list[int] | None]]) -> None:
    xp = NUMPY if library == "numpy" else TorchArrays()
    made = file_digest(name, xp, portions, chunk_elements=chunk_elements)
    assert made == manifest()[name]["factors_sha256"]


def test_wide_records_in_the_reference_decoder() -> None:
    ref = reference()
    sha = hashlib.sha256()
    for record, item in zip(*wide_records(), strict=True):
        kind = record.kind
        factor = kind.split == "factor"
        codes = record.amplitude.tolist()
        rows = {(side, i): row.astype(np.int64) for side, part in enumerate(item.sides) for i, row in enumerate(part)}
        made = {
            "type": 0, "basis": kind.basis, "form": int(factor), "most_units": 2 if factor else 4,
            "sides": {"lora_B": list(kind.sides[0].shape), "lora_A": list(kind.sides[1].shape)},
            "lengths": kind.vector_lengths, "num_basis": kind.num_basis, "stream": record.stream,
            "exponents": [record.exponents], "unit_counts": [record.units], "amplitudes": codes, "coefficients": rows,
            "peaks": dict.fromkeys(rows, 127),
        }  # fmt: skip
        ref.decode_record({"generator": PHILOX, "seed": 9}, made, 0)
        sha.update(bytes(e % 256 for e in record.exponents))
        sha.update(made["lora_B"].astype("<i2").tobytes() + made["lora_A"].astype("<i2").tobytes())
    assert sha.hexdigest().startswith(WIDE)


@pytest.mark.parametrize("length", [1 << 18, 192 * 1536, 100_003])
def test_a_long_vector(length: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy, torch with one thread and two, in pieces or whole, and the reference give the same 16-bit values."""
    ref = reference()
    rng = np.random.default_rng(1)
    points = rng.integers(-31, 32, (1, length)).astype(np.int32)
    code, zero = np.array([-330]), np.zeros(1, np.int64)
    record = CodedRecord("v", CodedKind("v", "F32", 1, coded_sides([(length,)])), 3, (-19,), zero, zero, code)
    made = []
    for xp, count, long in ((NUMPY, 1, 1 << 30), (NUMPY, 1, 9), (TorchArrays(), 1, 9), (TorchArrays(), 2, 1 << 30)):
        threads(count)
        monkeypatch.setattr("nola_codec.decoder.factors._LONG", long)
        monkeypatch.setattr("nola_codec.decoder.factors._PIECE", 70_000)
        monkeypatch.setattr("nola_codec.basis.hadamard._SIGN_PIECE", 1 << 14)
        (vector,) = synthesize_records([record], [Coefficients((points,), 31)], generator=PHILOX, seed=9, xp=xp)
        made.append(xp.numpy(vector.sides[0]))
    y = ref.synthesize(1, points[0].astype(np.int64), length, 9, 6)
    shift = 15 - (2 * int(code[0]) >> 5) - 19
    expected = np.clip((y * ref.MANTISSAS[2 * int(code[0]) & 31] + (1 << shift - 1)) >> shift, -32768, 32767)
    assert 1000 < np.abs(expected).max() < 32767
    for values in made:
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("chunk_elements", [1, 5000, 1 << 20])
def test_wide_records_in_numpy(chunk_elements: int) -> None:
    assert wide_digest(NUMPY, chunk_elements=chunk_elements).startswith(WIDE)


@pytest.mark.parametrize("chunk_elements", [1, 1 << 20])
@pytest.mark.parametrize("count", [1, 2])
def test_wide_records_in_torch(count: int, chunk_elements: int, threads: Callable[[int], None]) -> None:
    threads(count)
    assert torch.get_num_threads() == count
    assert wide_digest(TorchArrays(), chunk_elements=chunk_elements).startswith(WIDE)


def test_a_record_alone_is_as_in_a_batch() -> None:
    records, coefficients = wide_records()
    for xp in (NUMPY, TorchArrays()):
        together = synthesize_records(records, coefficients, generator=PHILOX, seed=9, xp=xp)
        for record, item, wanted in zip(records, coefficients, together, strict=True):
            (alone,) = synthesize_records([record], [item], generator=PHILOX, seed=9, xp=xp)
            assert (xp.numpy(alone.sides[0]) == xp.numpy(wanted.sides[0])).all()
            assert (xp.numpy(alone.sides[1]) == xp.numpy(wanted.sides[1])).all()


def on_device(container: Container, device: str) -> DeviceRecords:
    """The records of a file, decoded from its packed bytes on a device."""
    header = container.read_units()
    packed = pack_blocks(container, header, range(len(header.blocks)))
    return decode_on_device(tensor_of(packed.data, device), make_plan(header, packed.blocks, packed), header)


def packed_digest(name: str) -> str:
    """Digest of what a file itself decodes to from its packed bytes in PyTorch, at its last rung."""
    with open_container(golden(name.removesuffix(".nola"))) as container:
        made = on_device(container, "cpu")
        made.check(name)
        digest = DecodedHash()
        for record in made.records.values():
            digest.update(record, TorchArrays())
        for _, tensor in open_decoder(container, NUMPY, GOLDEN).carried_tensors():
            digest.update_raw(tensor)
    return digest.digest().hex()


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("reference")])
def test_files_from_packed_bytes(name: str) -> None:
    assert packed_digest(name) == manifest()[name]["factors_sha256"]


HOSTILE = {
    "matmul precision": "torch.set_float32_matmul_precision('medium')",
    "high precision": "torch.set_float32_matmul_precision('high')",
    "tf32": "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = True",
    "fp32_precision": "torch.backends.fp32_precision = 'tf32'",
    "mkldnn": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "old and new settings": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'; "
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "autocast": "torch.autocast('cpu', torch.bfloat16).__enter__()",
    "default dtype": "torch.set_default_dtype(torch.bfloat16)",
    "default device": "torch.set_default_device('meta')",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "inference": "torch.inference_mode().__enter__()",
    "flush denormal": "torch.set_flush_denormal(True)",
}


HOSTILE_FILES = ["trellis.nola", "rungs.nola", "codec-raw.nola"]


@pytest.fixture(scope="module")
def hostile_answers() -> dict[str, list[str]]:
    """Digest and work type under each setting, each in a fork of a process of its own."""
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "support")!r}, {str(ROOT / "tests" / "unit" / "decoder")!r}]
import torch
torch.set_num_threads(1)
import test_decoder as t
for name, setting in t.HOSTILE.items():
    if os.fork() == 0:
        exec(setting)
        xp = t.TorchArrays()
        files = [t.packed_digest(f) for f in t.HOSTILE_FILES]
        print(name, t.wide_digest(xp), xp.integer_work_dtype(1000), *files, sep='|', flush=True)
        os._exit(0)
    os.wait()
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    return {line.split("|")[0]: line.split("|")[1:] for line in made.stdout.splitlines()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("setting", HOSTILE)
def test_no_setting_of_the_process_changes_a_bit(setting: str, hostile_answers: dict[str, list[str]]) -> None:
    digest, work, *files = hostile_answers[setting]
    assert digest.startswith(WIDE)
    assert files == [manifest()[name]["factors_sha256"] for name in HOSTILE_FILES]
    if setting not in ("default dtype", "default device", "deterministic", "inference", "flush denormal"):
        assert work == "float64"  # float32 would do for sums of 1000, were it not rounded down


def test_work_types() -> None:
    for xp in (NUMPY, TorchArrays()):
        assert xp.integer_work_dtype((1 << 24) - 1) == "float32"
        assert xp.integer_work_dtype(1 << 24) == "float64"
        assert xp.integer_work_dtype((1 << 53) - 1) == "float64"
        with pytest.raises(ValueError, match="exact in no float type"):
            xp.integer_work_dtype(1 << 53)


def test_scaling_is_the_integer_formula() -> None:
    """Against Python's own integers, saturation and both roundings of negative halves included."""
    kind = CodedKind("x", "F32", 1, coded_sides([(1, 1), (1, 1)]))
    for q, code, exponent in [(3, 0, 1), (-3, 0, 1), (5, -64, 0), (127, 300, 0), (-127, 300, 0), (100, 17, -2)]:
        zero = np.array([0])
        record = CodedRecord("x", kind, 0, (exponent, exponent), zero, zero, np.array([code]))
        item = Coefficients((np.array([[q]], np.int32), np.array([[q]], np.int32)), abs(q))
        (made,) = synthesize_records([record], [item], generator=PHILOX, seed=0, xp=NUMPY)
        sign = int(BASES[1].synthesize(np.array([[[1]]]), 1, (BasisKey(PHILOX, 0, 0),), 1, NUMPY)[0, 0, 0])
        mantissa = round(2**15 * 2 ** (code % 32 / 32))
        shift = 15 - code // 32 + exponent
        wanted = (sign * q * mantissa + (1 << (shift - 1))) >> shift
        assert int(made.sides[0][0, 0]) == min(32767, max(-32768, wanted))
        exact = made.float32(NUMPY)[0]
        assert exact.dtype == np.float32
        assert float(exact[0, 0]) == int(made.sides[0][0, 0]) * 2.0**exponent


# ---- CUDA, shown with fake tensors ----


@pytest.fixture
def fake_cuda() -> Iterator[tuple[Watch, TorchArrays]]:
    """Everything on a CUDA device that is not there."""
    with Indexing(), FakeTensorMode(), Watch() as watch:
        yield watch, TorchArrays("cuda:0")


# Every step of rANS takes the same operations, and fake ones are slow, so `dependent` stands for these files.
SLOW_FAKES = {"codec-rans.nola", "rungs.nola", "vectors.nola", "vectors-rungs.nola"}


@pytest.mark.parametrize("name", [name for name in FILES if name not in SLOW_FAKES])
def test_files_decode_on_cuda(name: str, fake_cuda: tuple[Watch, TorchArrays]) -> None:
    watch, xp = fake_cuda
    with open_container(golden(name.removesuffix(".nola"))) as container:
        header = container.read_units()
        made = on_device(container, "cuda:0").records
        assert list(made) == list(range(len(header.coded)))
        for index, record in enumerate(header.pairs):
            kind, factors = record.kind, made[index]
            (rows, columns), rank = kind.product_shape, kind.rank
            for factor, shape in zip(factors.sides, ((rows, rank), (rank, columns)), strict=True):
                assert (factor.device.type, factor.dtype, tuple(factor.shape)) == ("cuda", torch.int16, shape)
            delta = delta_weight(factors, kind, xp)
            assert (delta.device.type, delta.dtype) == ("cuda", torch.float64)
            assert watch.products > 0


@pytest.mark.parametrize("n", [1, 3, 64, 97, 576, 4096, 11008])
@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
def test_bases_run_on_cuda(basis: Any, n: int, fake_cuda: tuple[Watch, TorchArrays]) -> None:
    _, xp = fake_cuda
    k = max(1, n // 2) if basis.name == "hadamard" else max(1, min(n, 600) // 2)
    keys = (BasisKey(1, 3, 4), BasisKey(1, 3, 5))
    made = basis.synthesize(xp.asarray(np.zeros((2, 3, k), np.int32)), n, keys, 7, xp)
    assert (made.device.type, tuple(made.shape)) == ("cuda", (2, 3, n))
    assert made.dtype == torch.float64  # float32 products may be rounded on an accelerator
    back = basis.project(xp.cast(made, "float64"), k, keys, xp)
    assert (back.device.type, tuple(back.shape)) == ("cuda", (2, 3, k))


def test_the_watch_notices() -> None:
    with FakeTensorMode(), Watch():
        cuda = torch.zeros((4, 4), dtype=torch.int64, device="cuda:0")
        with pytest.raises(AssertionError, match=r"aten\.mm"):
            torch.mm(cuda, cuda)
        with pytest.raises(AssertionError, match="transfer back"):
            cuda.to("cpu")
        with pytest.raises((AssertionError, RuntimeError), match=r"cuda:0.*cpu|cpu.*cuda"):
            torch.add(cuda, torch.zeros((4, 4), dtype=torch.int64))
