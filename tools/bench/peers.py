"""Every rival codec on one adapter, each at its best setting for an error: `peers(pairs)`, then `peer.best_at(nmse)`.

    python tools/bench/peers.py     # checks the rivals against dense products and the theory

Bytes are those of a file as a rival could write it, in a container kinder than theirs (svd_codecs.file).
Rivals choose components by the best rule for each error: one rank for all, each module by its own spectrum as
resize_lora can, or one threshold over the whole file, which none of them has; the setting says which. SVD in fp16 has
a row for what resize_lora does and a row for the threshold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from common import Pair, nmse, singular_components
from elements import Lossless, Vectors, dare_peer, nola, nola_peer, plain_zstd, plane_zstd, prune_peer, zipnn_coder
from quantizers import Eden, Half, Integers, Nf4, Signs
from svd_codecs.columns import Bank, Columns, Component, Mix, Point, scores
from svd_codecs.svd import EVERY_RULE, rounded, svd_peers


class Peer(Protocol):
    """A codec that can be asked for its smallest file at an error."""

    name: str

    def best_at(self, nmse: float, /) -> Point | None: ...


def _delta_come(components: Sequence[Component]) -> Columns:
    """Leading columns in 8 bits, the next in 3, the next in 2, the rest dropped."""
    bank = Bank(components, [Integers(8, 128), Integers(3, 128), Integers(2, 128)])
    grid: list[dict[int, float]] = [
        {0: 1}, {1: 1}, {2: 1}, {1: 1, 0: 8}, {1: 1, 0: 64}, {1: 1, 0: 1024}, {2: 1, 1: 2}, {2: 1, 1: 2, 0: 8},
        {2: 1, 1: 4}, {2: 1, 1: 4, 0: 64}, {2: 1, 1: 4, 0: 1024}, {2: 1, 1: 16}, {2: 1, 1: 16, 0: 256},
    ]  # fmt: skip
    return Columns("Delta-CoMe 8/3/2", [(bank, [Mix(rule, m) for rule in EVERY_RULE for m in grid])], compress=True)


def _loraquant(components: Sequence[Component]) -> Columns:
    """Leading columns in 2 (or 3, 4, 8) bits, the rest by their signs."""
    mixes = [Mix(rule, {0: 1.0}, rest=1) for rule in EVERY_RULE]
    banks = [(Bank(components, [Integers(bits, 128), Signs(128)]), mixes) for bits in (2, 3, 4, 8)]
    return Columns("LoRAQuant top/1-bit", banks, compress=True)


def peers(pairs: Sequence[Pair], itemsize: int = 4) -> dict[str, Callable[[], Peer | None]]:
    """Makers of all peers by key, so that only those asked for do their work.

    Args:
        pairs: The adapter.
        itemsize: Bytes of a number in the adapter's own file, which "lossless" must give back.
    """
    components = [singular_components(pair) for pair in pairs]
    own = "fp32" if itemsize == 4 else "fp16"
    shown = svd_peers(components)

    def integers(bits: int) -> Columns:
        return rounded(f"SVD int{bits}/64 + zstd", components, [Integers(bits)])

    def zipnn(form: str) -> Peer | None:
        coder = zipnn_coder()
        return Lossless(f"ZipNN {form}", pairs, form, coder) if coder else None

    return {
        "svd-fp16": shown["SVD fp16, resize_lora"],
        "svd-fp16-global": shown["SVD fp16, one threshold"],
        "svd-int8": shown["SVD int8/64 + zstd"],
        "svd-int6": lambda: integers(6),
        "svd-int4": shown["SVD int4/64 + zstd"],
        "svd-int3": lambda: integers(3),
        "svd-int2": lambda: integers(2),
        "svd-nf4": lambda: rounded("SVD NF4/64 + zstd", components, [Nf4(True), Nf4(False)]),
        "eden": lambda: rounded("SVD EDEN 1-6 bit", components, [Eden(bits) for bits in range(1, 7)], compress=False),
        "delta-come": lambda: _delta_come(components),
        "loraquant": lambda: _loraquant(components),
        "dare": lambda: dare_peer(pairs),
        "prune": lambda: prune_peer(pairs, components),
        "nola": lambda: nola_peer(pairs, components),
        "zstd": lambda: Lossless(f"lossless zstd {own}", pairs, own, plain_zstd),
        "planes": lambda: Lossless(f"lossless planes+zstd {own}", pairs, own, plane_zstd),
        "zipnn": lambda: zipnn(own),
        "bf16": lambda: Lossless("bf16 planes+zstd", pairs, "bf16", plane_zstd),
        "zipnn-bf16": lambda: zipnn("bf16"),
    }


def self_check() -> Mapping[str, float]:
    """Figures that must agree: Gram errors against dense ones, and the energy a random subspace keeps against k / N.

    Raises:
        AssertionError: Where they do not.
    """
    rng = np.random.default_rng(5)
    decay = 2.0 ** -np.arange(8)
    pairs = [
        Pair(f"m{i}", (rng.standard_normal((n, 8)) * decay).astype(np.float32),
             rng.standard_normal((8, m)).astype(np.float32), 2.0)
        for i, (n, m) in enumerate([(192, 576), (320, 320), (77, 130)])
    ]  # fmt: skip
    components = [singular_components(pair) for pair in pairs]
    bank = Bank(components, [Integers(3), Eden(2)])
    labels = Mix("global", {0: 4.0, 1: 1.0}).labels(scores(components, "global"), 0.02)
    dense = energy = 0.0
    for pair, (b, a) in zip(pairs, bank.decoded(labels), strict=True):
        exact = pair.scaling * pair.B.astype(np.float64) @ pair.A
        dense += ((exact - b @ a) ** 2).sum()
        energy += (exact**2).sum()
    out = {
        "dense": dense / energy,
        "factors": nmse(pairs, bank.decoded(labels)),
        "gram": bank.nmse(labels),
    }
    assert max(out.values()) - min(out.values()) < 1e-7, out  # the components are in float32
    vectors = Vectors.canonical(pairs, components)
    kept = nola(vectors, 0.3, Half())[0]
    out["NOLA energy kept at k/N = 0.3"] = float((kept @ vectors.flat) / (vectors.flat @ vectors.flat))
    assert abs(out["NOLA energy kept at k/N = 0.3"] - 0.3) < 0.02, out
    return out


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, value in self_check().items():
        print(f"{name:32} {value:.6f}")
