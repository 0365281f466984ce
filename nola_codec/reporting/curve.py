"""Find the curve of size against error of the original adapter, around the size of a file."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

from nola_codec.api.decoding import is_nola, read_adapter
from nola_codec.api.inspecting import FileFacts
from nola_codec.api.live_sources import AdapterInput
from nola_codec.api.sweeping import SweepPoint, sweep
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Adapter
from nola_codec.progress import Progress
from nola_codec.reporting.peers import PeerPoint, measure_peers

_STEPS = (-3, -2, -1, 1, 2, 3)
"""Powers of two that the size of the file is multiplied by."""


@dataclass(frozen=True)
class Curve:
    """Size against error for one adapter.

    Attributes:
        error: The error of the curve: the one that the encoder of the file kept small.
        points: The files of the sweep, from small to large. The file of the report is not among them.
        peers: What other ways to store the adapter cost and lose.
        advice: The sentence of `SweepReport.advice` about the files of the sweep.
        notes: Sentences that say how the curve differs from the file, or why something is missing.
    """

    error: Literal["effective_error", "nmse"]
    points: tuple[SweepPoint, ...]
    peers: tuple[PeerPoint, ...]
    advice: str
    notes: tuple[str, ...]


def curve_sizes(own: int, fp16: int) -> list[int]:
    """Return the sizes of a curve: an eighth to eight times of a file's own, and no more than half of fp16.

    >>> curve_sizes(10_000, 70_000)
    [1250, 2500, 5000, 20000]
    """
    sizes = [int(own * 2.0**step) for step in _STEPS]
    return [size for size in sizes if size > 0 and (size < own or size <= fp16 // 2)]


def require_sweepable(original: AdapterInput | None) -> AdapterInput:
    """Return the original as something that can be read again. A stream can be read only once, and becomes bytes.

    Raises:
        EncodeError: ``option``: there is no original, or it is a `.nola` file, which no sweep can encode.
    """
    if original is None:
        raise EncodeError("a sweep encodes the original adapter; give that, too", code="option")
    source = cast("BinaryIO", original).read() if isinstance(original, io.IOBase) else original
    if isinstance(source, str | os.PathLike | bytes) and is_nola(source):
        raise EncodeError("a sweep encodes the original adapter, and this is a .nola file", code="option")
    return source


def measure_curve(
    original: AdapterInput, facts: FileFacts, *, scale: float | None = None, progress: Progress | None = None
) -> Curve:
    """Encode the original adapter at other sizes, and measure the peers.

    Args:
        original: Anything that `encode` reads.
        facts: What `inspect` says of the file. Its objective and its seed are those of the sweep.
        scale: The scaling of the original, if it does not say it.
        progress: Called as (stage, done, total).

    Raises:
        AdapterError: The original cannot be read.
    """
    is_effective = "effective_error" in facts.measured
    sizes = curve_sizes(facts.bytes, 2 * facts.parameters)
    points: tuple[SweepPoint, ...] = ()
    advice = ""
    if sizes:
        found = sweep(
            original, sizes=sizes, objective="effective" if is_effective else "nmse", seed=facts.seed, scale=scale,
            progress=progress,
        )  # fmt: skip
        points, advice = found.points, found.advice
    adapter = read_adapter(original, scale=scale, progress=progress)
    peers = measure_peers(adapter, progress)
    error: Literal["effective_error", "nmse"] = "effective_error" if is_effective else "nmse"
    return Curve(error, points, peers, advice, tuple(_notes(facts, adapter, peers)))


def _notes(facts: FileFacts, adapter: Adapter, peers: tuple[PeerPoint, ...]) -> list[str]:
    notes = []
    if facts.is_trained:
        notes.append("This file was trained. The files of the curve are made from the weights alone.")
    if facts.reference is not None:
        notes.append("This file needs an earlier version. The files of the curve stand alone.")
    if "factor" in facts.form:
        notes.append("This file has the factor form. The files of the curve have the component form.")
    if not peers:
        notes.append(
            "No other ways to store the adapter are shown, since not all of its deltas are products of two factors."
            if adapter.modules
            else "No other ways to store the adapter are shown, since it has no products of two factors."
        )
    return notes
