"""Words, signs, subsets and dense bases of the compiled kernels are those of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_paths import COMPILED

from nola_codec.arrays import NUMPY
from nola_codec.basis import NAMES, BasisKey, basis_by_id
from nola_codec.kernels import using
from nola_codec.kernels.generators import random_words, smallest_positions, synthesize_dense, unpack_signs
from nola_codec.kernels.loading import load
from nola_codec.prng import PHILOX, packed_signs, signs, words

pytestmark = pytest.mark.skipif(not COMPILED, reason="no kernels are compiled here")


@pytest.mark.parametrize("variant", COMPILED)
@given(
    seed=st.integers(0, (1 << 64) - 1),
    stream=st.integers(0, (1 << 32) - 1),
    purpose=st.integers(0, 4),
    start=st.one_of(st.integers(0, 600), st.integers(0, 1 << 40), st.integers((1 << 34) - 600, (1 << 34) + 4)),
    count=st.integers(0, 700),
)
def test_words(variant: str, seed: int, stream: int, purpose: int, start: int, count: int) -> None:
    lib = load(variant).library
    assert lib is not None
    key = {"seed": seed, "stream": stream, "purpose": purpose}
    made = random_words(lib, **key, start=start, count=count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOLA_KERNELS", "off")
        assert made.tolist() == words(PHILOX, **key, start=start, count=count, xp=NUMPY).tolist()
        wanted = signs(PHILOX, **key, start=start // 32 * 32, count=count, xp=NUMPY).tolist()
    packed = random_words(lib, **key, start=start // 32, count=count // 32 + 1)
    assert unpack_signs(lib, packed, count).tolist() == wanted


@pytest.mark.parametrize("path", ["off", *COMPILED])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000])
def test_packed_signs_are_the_bits_of_the_signs(path: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_KERNELS", path)
    packed = packed_signs(PHILOX, seed=5, stream=6, purpose=1, count=count)
    assert packed.dtype == np.uint32
    assert len(packed) == count // 32 + 2
    bits = np.unpackbits(packed.view(np.uint8), bitorder="little")[:count]
    assert (1 - 2 * bits.astype(int)).tolist() == signs(
        PHILOX, seed=5, stream=6, purpose=1, start=0, count=count, xp=NUMPY
    ).tolist()


@pytest.mark.parametrize("change", [{"stream": 1 << 32}, {"purpose": -1}, {"start": -1}, {"count": -1}])
def test_wrong_arguments_are_refused(change: dict[str, int]) -> None:
    lib = load(COMPILED[-1]).library
    assert lib is not None
    right = {"seed": 1, "stream": 2, "purpose": 3, "start": 0, "count": 4}
    with pytest.raises(ValueError, match="a kernel was given"):
        random_words(lib, **{**right, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a kernel was given"):
        unpack_signs(lib, np.zeros(2, np.uint32), 65)
    with pytest.raises(ValueError, match="a kernel was given"):
        unpack_signs(lib, np.zeros(2, np.int64), 64)


@pytest.mark.parametrize("variant", COMPILED)
@given(
    words=st.lists(st.one_of(st.integers(0, 3), st.integers(0, (1 << 32) - 1)), max_size=80),
    spread=st.sampled_from([1, 1 << 8, 1 << 20]),
    share=st.floats(0, 1),
)
def test_subsets_take_the_smallest_words_by_position(variant: str, words: list[int], spread: int, share: float) -> None:
    lib = load(variant).library
    assert lib is not None
    draws = [word * spread % (1 << 32) for word in words]  # equal words, and words that differ in one digit only
    size = round(share * len(draws))
    made = smallest_positions(lib, np.array(draws, np.uint32), size)
    assert made.tolist() == sorted(sorted(range(len(draws)), key=lambda i: (draws[i], i))[:size])


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("name", ["rademacher", "uniform"])
def test_dense_bases_are_those_of_numpy(variant: str, name: str) -> None:
    lib = load(variant).library
    assert lib is not None
    basis, rng = basis_by_id(NAMES[name]), np.random.default_rng(5)
    for n, k, vectors in [(1, 1, 1), (31, 3, 2), (32, 4, 1), (33, 9, 3), (8191, 5, 1), (8192, 2, 2), (20_001, 7, 2)]:
        key = BasisKey(PHILOX, int(rng.integers(1 << 62)), int(rng.integers(1 << 31)))
        q = rng.integers(-100_000, 100_001, (vectors, k)).astype(np.int32)
        own = {"seed": key.seed, "stream": key.stream}
        made = synthesize_dense(lib, name, **own, coefficients=q, n=n)
        with using("off"):
            assert np.array_equal(made, basis.synthesize(q[None], n, (key,), 100_000, NUMPY)[0])
