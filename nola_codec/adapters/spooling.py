"""Put the factors of a large adapter on disk, so that an encode holds them in memory only while it uses them."""

from __future__ import annotations

from dataclasses import replace

from nola_codec import spool
from nola_codec.array_types import Float32Array
from nola_codec.model.adapter import Adapter


def spool_adapter(adapter: Adapter) -> Adapter:
    """Return an adapter whose modules and vectors lie in temporary files; as it is if it is small or there is no room.

    Who has used an array calls `spool.release_pages`. An encode reads the factors twice, to make the canonical form of
    an adapter and to measure what the file decodes to; in between its memory holds the canonical form.
    """
    nbytes = sum(module.lora_A.nbytes + module.lora_B.nbytes for module in adapter.modules)
    nbytes += sum(vector.values.nbytes for vector in adapter.vectors)
    if nbytes < spool.THRESHOLD:
        return adapter
    arena = spool.Arena("float32")
    try:
        return _move(adapter, arena)
    except OSError:  # an encode needs no files, only less memory with them
        return adapter


def _move(adapter: Adapter, arena: spool.Arena) -> Adapter:
    def move(array: Float32Array) -> Float32Array:
        copy = arena.copy(array)
        spool.release_pages(copy)
        return copy

    return replace(
        adapter,
        modules=tuple(replace(m, lora_A=move(m.lora_A), lora_B=move(m.lora_B)) for m in adapter.modules),
        vectors=tuple(replace(vector, values=move(vector.values)) for vector in adapter.vectors),
    )
