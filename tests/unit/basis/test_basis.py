"""Bases: each pair is adjoint, the Hadamard basis is orthogonal, and nothing depends on how the work is cut."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_codec.arrays import NUMPY, TorchArrays
from nola_codec.basis import BASES, NAMES, BasisKey, Hadamard, Rademacher, Uniform, basis_by_id
from nola_codec.basis.dense import DenseBasis
from nola_codec.basis.hadamard import block_and_passes
from nola_codec.errors import FormatError
from nola_codec.prng import PHILOX

TORCH = TorchArrays()
KEY = BasisKey(PHILOX, 11, 3)
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 12, 15, 16, 17, 36, 48, 63, 64, 65, 96, 97, 128, 200, 576)


def matrix(basis: Any, n: int, k: int, key: BasisKey = KEY) -> npt.NDArray[np.float64]:
    """Return the basis as a matrix (k, n)."""
    made: npt.NDArray[np.float64] = basis.synthesize(np.eye(k, dtype=np.int8)[None], n, (key,), 1, NUMPY)[0]
    return made.astype(np.float64)


@pytest.mark.parametrize("n", LENGTHS)
def test_hadamard_rows_are_orthogonal_integers_of_one_norm(n: int) -> None:
    rows = matrix(Hadamard(), n, n)
    assert (rows == np.rint(rows)).all()
    assert (rows @ rows.T == Hadamard().norm2(n) * np.eye(n)).all()


@pytest.mark.parametrize("n", [576, 4096, 11008, 50257])
def test_hadamard_inverts_exactly_at_real_lengths(n: int) -> None:
    q = np.random.default_rng(n).integers(-20, 21, (1, 2, n))
    y = Hadamard().synthesize(q, n, (KEY,), 20, NUMPY)
    back = Hadamard().project(y.astype(np.float64), n, (KEY,), NUMPY)
    assert (back == q * Hadamard().norm2(n)).all()


@pytest.mark.parametrize("n", LENGTHS)
def test_hadamard_is_what_the_specification_says(n: int) -> None:
    """The basis agrees with its definition by sums, without any transform."""
    block, passes = block_and_passes(n)
    assert n % block == 0 or passes == 2
    rows = matrix(Hadamard(), n, n)
    if passes == 1:
        for j in range(0, n, max(1, n // 7)):
            support = np.flatnonzero(rows[j])
            assert support.tolist() == [i * (n // block) + j // block for i in range(block)]
            assert set(np.abs(rows[j][support])) == {1.0}


@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 2), (7, 7), (36, 10), (97, 40), (256, 256), (300, 7)])
def test_project_is_the_adjoint_of_synthesize(basis: Any, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.integers(-9, 10, (2, 3, k))
    x = rng.integers(-9, 10, (2, 3, n)).astype(np.float64)
    keys = (KEY, BasisKey(PHILOX, 1, 2))
    left = (basis.synthesize(q, n, keys, 9, NUMPY).astype(np.float64) * x).sum(-1)
    right = (q * basis.project(x, k, keys, NUMPY)).sum(-1)
    assert (left == right).all()


@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
@given(n=st.integers(1, 150), share=st.floats(0, 1), peak=st.sampled_from([1, 7, 127, 32768]), data=st.data())
def test_torch_is_numpy(basis: Any, n: int, share: float, peak: int, data: st.DataObject) -> None:
    k = max(1, round(share * n))
    seed = data.draw(st.integers(0, 1 << 30))
    q = np.random.default_rng(seed).integers(-peak, peak + 1, (2, 2, k)).astype(np.int32)
    keys = (BasisKey(PHILOX, seed, 1), BasisKey(PHILOX, seed, 2))
    wanted = basis.synthesize(q, n, keys, peak, NUMPY)
    made = TORCH.numpy(basis.synthesize(TORCH.asarray(q), n, keys, peak, TORCH))
    assert made.astype(np.int64).tolist() == wanted.astype(np.int64).tolist()
    assert np.abs(wanted).max() <= basis.bound(n, k, peak)


@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
def test_batches_and_groups_are_the_same_as_one_at_a_time(basis: Any) -> None:
    q = np.random.default_rng(1).integers(-3, 4, (3, 4, 30)).astype(np.int16)
    keys = (KEY, BasisKey(PHILOX, 12, 0), KEY)
    together = basis.synthesize(q, 60, keys, 3, NUMPY)
    for group in range(3):
        for row in range(4):
            alone = basis.synthesize(q[group : group + 1, row : row + 1], 60, keys[group : group + 1], 3, NUMPY)
            assert together[group, row].tolist() == alone[0, 0].tolist()


@pytest.mark.parametrize("kind", [Rademacher, Uniform])
@pytest.mark.parametrize("chunk_entries", [1, 61, 200, 1 << 22])
def test_chunks_change_nothing(kind: type[DenseBasis], chunk_entries: int) -> None:
    q = np.random.default_rng(2).integers(-8, 9, (1, 2, 17))
    x = np.random.default_rng(3).integers(-8, 9, (1, 2, 61)).astype(np.float64)
    chunked, whole = kind(chunk_entries), kind()
    assert (chunked.synthesize(q, 61, (KEY,), 8, NUMPY) == whole.synthesize(q, 61, (KEY,), 8, NUMPY)).all()
    assert (chunked.project(x, 17, (KEY,), NUMPY) == whole.project(x, 17, (KEY,), NUMPY)).all()


@pytest.mark.parametrize("kind", [Rademacher, Uniform])
def test_rows_of_a_dense_basis_do_not_depend_on_their_number(kind: type[DenseBasis]) -> None:
    assert (matrix(kind(), 45, 9)[:4] == matrix(kind(), 45, 4)).all()


def test_entries_of_dense_bases() -> None:
    rows = matrix(Rademacher(), 200, 100)
    assert set(np.unique(rows)) == {-1.0, 1.0}
    assert abs(rows.mean()) < 5 / np.sqrt(rows.size)
    rows = matrix(Uniform(), 200, 100)
    assert rows.min() >= -32768
    assert rows.max() <= 32767
    assert abs((rows**2).sum(1).mean() / Uniform().norm2(200) - 1) < 0.03


@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
def test_equal_keys_make_equal_bases_and_others_do_not(basis: Any) -> None:
    rows = matrix(basis, 64, 8)
    assert (rows == matrix(basis, 64, 8, BasisKey(PHILOX, 11, 3))).all()
    for other in (BasisKey(PHILOX, 11, 4), BasisKey(PHILOX, 12, 3)):
        assert (rows != matrix(basis, 64, 8, other)).any()


def test_registry() -> None:
    assert NAMES == {"hadamard": 1, "rademacher": 2, "uniform": 3}
    with pytest.raises(FormatError) as caught:
        basis_by_id(9)
    assert caught.value.code == "basis"


@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
@pytest.mark.parametrize("xp", [NUMPY, TORCH], ids=["numpy", "torch"])
@pytest.mark.parametrize(("n", "k"), [(36, 10), (97, 97), (256, 256)])
def test_a_kept_transform_is_the_basis(basis: Any, xp: Any, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    keys = (KEY, BasisKey(PHILOX, 1, 2))
    kept = basis.transform(n, k, keys, xp, "float32")
    for _ in range(2):
        q, x = rng.integers(-9, 10, (2, 3, k)), rng.integers(-9, 10, (2, 3, n))
        made = xp.numpy(kept.synthesize(xp.asarray(q.astype(np.float64))))
        assert made.dtype == np.float64
        assert (made == basis.synthesize(q, n, keys, 9, NUMPY)).all()
        back = xp.numpy(kept.project(xp.asarray(x.astype(np.float64))))
        assert (back == basis.project(x.astype(np.float64), k, keys, NUMPY)).all()


@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
@pytest.mark.parametrize(("n", "k"), [(36, 36), (192, 192), (192, 100), (4096, 4096)])
def test_pieces_are_the_whole(basis: Any, n: int, k: int) -> None:
    pieces = basis.pieces(n, k)
    assert (pieces is not None) == (basis.is_fast and k == n and block_and_passes(n)[1] == 1)
    if pieces is None:
        return
    q = np.random.default_rng(0).integers(-9, 10, n)
    whole = basis.synthesize(q[None, None], n, (KEY,), 9, NUMPY)[0, 0].reshape(pieces.rows, -1)
    for piece in (1, 3 * pieces.rows, n):
        parts = list(pieces.synthesize(q, KEY, 9, NUMPY, piece))
        assert [start for start, _, _ in parts] == [0, *(stop for _, stop, _ in parts[:-1])]
        assert (np.concatenate([values for _, _, values in parts], 1) == whole).all()


@pytest.mark.parametrize("basis", BASES.values(), ids=lambda b: b.name)
def test_what_a_basis_says_of_itself_holds(basis: Any) -> None:
    rows = matrix(basis, 36, 20)
    gram = rows @ rows.T
    assert basis.is_orthogonal == (gram == basis.norm2(36) * np.eye(20)).all()
    most = basis.max_num_basis(36)
    assert most == (36 if basis.is_orthogonal else None)
    assert matrix(basis, 36, most or 100).shape == (most or 100, 36)


@pytest.mark.parametrize("kind", [Rademacher, Uniform])
def test_short_vectors_take_no_more_memory_than_long_ones(
    kind: type[DenseBasis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of one element takes a whole word of the generator, which counts."""
    monkeypatch.setenv("NOLA_KERNELS", "off")
    coefficients = np.ones((1, 1, 1 << 18), np.int32)
    tracemalloc.start()
    try:
        kind(chunk_entries=1 << 16).synthesize(coefficients, 1, (BasisKey(PHILOX, 7, 3),), 1, NUMPY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
