"""Rebuild a packed file: decode it, and give each of its deltas its weight of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nola_codec.decoder.decoder import Decoder
from nola_codec.integrations.task_bank.pairs import WeightPair, trim_records
from nola_codec.merger.memory_change import MemoryChange, plan_change
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.merger.merge_files import decode_merge_file
from nola_codec.merger.places import WeightShapes
from nola_codec.merger.weight_places import Place


@dataclass(frozen=True)
class RebuiltTask:
    """A decoded file, each delta with its weight.

    Attributes:
        pairs: The pairs of factors, by the name of the weight.
        rest: The deltas that are no pair of factors, and the tensors that the file brings; None if there are none.
    """

    pairs: Mapping[str, WeightPair]
    rest: MemoryChange | None = None

    @cached_property
    def nbytes(self) -> int:
        """The memory that the task takes, in bytes."""
        total = sum(pair.nbytes for pair in self.pairs.values())
        if self.rest is not None:
            adapter = self.rest.file.adapter
            total += 4 * sum(module.lora_A.size + module.lora_B.size for module in adapter.modules)
            total += 4 * sum(vector.values.size for vector in adapter.vectors)
            total += sum(len(tensor.data) for tensor in adapter.raw.values())
            records = self.rest.file.decoded.values()
            total += sum(2 * math.prod(side.shape) for record in records for side in record.sides)
        return total


def rebuild_pairs(decoder: Decoder, places: Mapping[str, Place], *, verify: bool) -> RebuiltTask:
    """Decode a file that has pairs of factors alone.

    Args:
        decoder: The file.
        places: The place of each pair, by weight.
        verify: True compares the decoded SHA-256.

    Raises:
        FormatError, ChecksumMismatch: The file is damaged.
    """
    records = decoder.decode_all() if verify else [record for _, record in decoder.decode()]
    trimmed = trim_records(records, decoder.xp)
    found = {record.name: (record.kind, made) for record, made in zip(decoder.header.pairs, trimmed, strict=True)}
    return RebuiltTask(
        {weight: WeightPair(*found[place.module], place.transposed, decoder.xp) for weight, place in places.items()}
    )


def rebuild_any(decoder: Decoder, name: str, memory: MemoryModel, base: WeightShapes) -> RebuiltTask:
    """Decode a file of any kind, and find the place of everything in it. The decoded SHA-256 is compared.

    Args:
        decoder: The file.
        name: The file's name, for messages.
        memory: The model.
        base: The weights of the model by name.

    Raises:
        AdapterError: Those of `plan_change`.
        FormatError, ChecksumMismatch: The file is damaged.
    """
    file = decode_merge_file(decoder, name)
    change = plan_change(file, memory, base)
    trimmed = trim_records([file.decoded[place.module] for place in change.pairs.values()], file.xp)
    pairs = {
        weight: WeightPair(file.kinds[place.module], made, place.transposed, file.xp)
        for (weight, place), made in zip(change.pairs.items(), trimmed, strict=True)
    }
    rest = change.without(pairs)
    return RebuiltTask(pairs, rest if rest.weights else None)
