"""The keyword options of `encode_many`, `decode_many` and `verify_many`: their types, and what they mean."""

from __future__ import annotations

import os
from typing import Literal, TypedDict

from nola_codec.api.keywords import BasisName, EncodeKeywords, RateKeywords, keyword_names
from nola_codec.decoder.carried_forms import CarriedForm
from nola_codec.fleet.watcher import Watcher

EngineName = Literal["local", "ray"]
ManifestFormat = Literal["parquet", "jsonl"]


class RunKeywords(TypedDict, total=False):
    """Options of a run over many sources, whatever it does with them.

    Attributes:
        engine: ``local``, processes of this machine; or ``ray``, tasks of a Ray cluster.
        workers: How many sources are worked on at the same time; as many as there are processors if not given. Ray
            decides this itself for a cluster that is there.
        memory: The bytes that all workers may take together, as a number or as ``"16GB"``; 80% of what is free if
            not given. A source that needs more runs alone.
        retries: How often a source is tried again after its worker died.
        ray_address: The address of a Ray cluster; if not given, $RAY_ADDRESS, or a new one on this machine.
        manifest_format: ``parquet`` or ``jsonl``.
        watch: An object that is told of each source: a `Watcher`.
    """

    engine: EngineName
    workers: int | None
    memory: int | str | None
    retries: int
    ray_address: str | None
    manifest_format: ManifestFormat | None
    watch: Watcher | None


class ManyEncodeKeywords(RateKeywords, total=False):
    """Options of `encode_many` that go to `encode`, for every source that has none of its own in a manifest."""

    size: int | str | None
    num_basis: int | None
    bits: int | None
    rank: int | None
    block_size: int | str | None
    thorough: bool
    basis: BasisName
    seed: int
    shared_basis: bool
    carried: CarriedForm
    carry_unknown: bool
    scale: float | None
    base: str | os.PathLike[str] | None


ENCODE_NAMES = (*keyword_names(EncodeKeywords), "size", "carry_unknown", "scale", "base")
_NOT_FOR_MANY = ("fit", "tuner", "importance", "progress", "entropy")
MANY_ENCODE_NAMES = tuple(name for name in ENCODE_NAMES if name not in _NOT_FOR_MANY)
"""The options of `encode` that `encode_many` and a manifest of sources take."""
MANY_DECODE_NAMES = ("format", "dtype", "trim", "rung", "base")
"""The options of `decode` that `decode_many` and a manifest of sources take."""
RATE_NAMES = ("size", "ratio", "nmse", "error", "num_basis", "bits")
"""The options that say how large a file gets: if a row of a manifest has one, none of the run's counts for it."""
