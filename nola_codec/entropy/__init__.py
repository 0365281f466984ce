"""The entropy codecs by id. A codec codes a stream of symbols that is made of runs, each with a known model.

Example:
        >>> import numpy as np
        >>> models = [SymbolModel(size=4)]                            # symbols 0 to 3, without frequencies
        >>> runs = Runs(models=np.array([0]), lengths=np.array([5]))  # five symbols
        >>> stored = CODECS[0].encode(np.array([3, 0, 1, 2, 1], np.uint16), runs, models)
        >>> CODECS[0].decode(stored, runs, models).tolist()
        [3, 0, 1, 2, 1]

`smallest` tries all codecs that can code the models, and keeps the shortest code.

    raw.py, mixed.py       codecs 0 and 2: packed bits; rANS, with packed bits where rANS gains nothing
    rans.py                interleaved rANS, for codec 2
    adaptive.py            codec 3: integers with adaptive probabilities, for units sections alone
    streams.py             sorts symbols by model, for codec 0
    blobs.py, frames.py    plain bytes in a section; frames of zstd with a checked size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from nola_codec.entropy import mixed, raw
from nola_codec.errors import FormatError, mismatch
from nola_codec.lazy import numpy as np
from nola_codec.model.quantizers import Runs, SymbolModel

if TYPE_CHECKING:
    import numpy.typing as npt

Streams: TypeAlias = "Sequence[npt.NDArray[Any]]"


class Codec(Protocol):
    """The operations of a codec; a codec is a module of this package.

    Attributes:
        id: The number of the codec in a file.
        name: The name of the codec in options.
    """

    id: int
    name: str

    def pays(self, runs: Runs, models: Sequence[SymbolModel]) -> bool: ...
    def least_size(self, runs: Runs, models: Sequence[SymbolModel]) -> int: ...
    def encode(self, symbols: npt.NDArray[Any], runs: Runs, models: Sequence[SymbolModel]) -> bytes: ...
    def encode_many(self, streams: Streams, all_runs: Sequence[Runs], models: Sequence[SymbolModel]) -> list[bytes]: ...
    def decode(self, data: bytes, runs: Runs, models: Sequence[SymbolModel]) -> npt.NDArray[Any]: ...
    def decode_many(
        self, datas: Sequence[bytes | memoryview], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
    ) -> list[npt.NDArray[Any]]: ...


CODECS: dict[int, Codec] = {c.id: c for c in (raw, mixed)}
NAMES = {c.name: c.id for c in CODECS.values()}


def lane_steps(codec: int, data: bytes, runs: Runs, models: Sequence[SymbolModel]) -> int:
    """Return the steps that the rANS lanes of a section take, 0 for other codecs; see `mixed.lane_steps`."""
    return mixed.lane_steps(data, runs, models) if codec == mixed.id else 0


def smallest(
    streams: Streams,
    all_runs: Sequence[Runs],
    models: Sequence[SymbolModel],
    allowed: Sequence[int] = (raw.id, mixed.id),
) -> list[tuple[int, bytes]]:
    """Find the shortest code of each section among the allowed codecs; the lowest id wins a tie.

    Args:
        streams: The symbols of each section.
        all_runs: The runs of each section.
        models: The models that the runs refer to.
        allowed: The ids of the codecs to try.

    Returns:
        (codec id, bytes) of each section.

    Raises:
        ValueError: No allowed codec can code some section.
    """
    # The highest id comes first: rANS nearly always wins if it can code a section, and the others need not be tried.
    codecs = [CODECS[number] for number in sorted(set(allowed), reverse=True)]
    best: list[tuple[int, int, bytes] | None] = [None] * len(all_runs)  # (length, codec id, bytes)
    for codec in codecs:
        wanted = []
        for index, (runs, found) in enumerate(zip(all_runs, best, strict=True)):
            may_win = found is None or codec.least_size(runs, models) <= found[0]
            if codec.pays(runs, models) and may_win:
                wanted.append(index)
        coded = codec.encode_many([streams[i] for i in wanted], [all_runs[i] for i in wanted], models)
        for index, data in zip(wanted, coded, strict=True):
            own, found = (len(data), codec.id, data), best[index]
            best[index] = own if found is None or own[:2] < found[:2] else found
    chosen = [(found[1], found[2]) for found in best if found is not None]
    if len(chosen) < len(all_runs):
        raise ValueError("no allowed codec can code these models")
    return chosen


def decode_many(
    coded: Sequence[tuple[int, bytes | memoryview]], all_runs: Sequence[Runs], models: Sequence[SymbolModel]
) -> list[npt.NDArray[Any]]:
    """Return the symbols of several sections, each given as (codec id, bytes).

    Raises:
        FormatError: ``codec``: An id is unknown; another code: The data are damaged.
    """
    results: list[npt.NDArray[Any]] = [np.empty(0, np.uint16)] * len(coded)
    for number in sorted({number for number, _ in coded}):
        if number not in CODECS:
            raise FormatError(mismatch("entropy codec id", sorted(CODECS), number), code="codec")
        own = [index for index, (other, _) in enumerate(coded) if other == number]
        decoded = CODECS[number].decode_many([coded[i][1] for i in own], [all_runs[i] for i in own], models)
        for index, symbols in zip(own, decoded, strict=True):
            results[index] = symbols
    return results
