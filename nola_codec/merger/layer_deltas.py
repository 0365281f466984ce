"""Make deltas of layers in memory: return one of them, or add all of them to a model.

This module is for deltas that are not one pair of factors each: those of VeRA, RandLoRA, LyCORIS and experts, and
changes of whole models, where a vector may be added to a pair. They are made row by row, as in a merge on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_codec.adapters import dialect_of
from nola_codec.adapters.base_changes import require_reference
from nola_codec.adapters.base_model import mismatch_message
from nola_codec.adapters.dialects.peft import PEFT
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.arithmetic.sum import merge_tensor
from nola_codec.merger.memory_model import MemoryModel
from nola_codec.merger.merge_files import decode_merge_file
from nola_codec.merger.places import WeightShapes
from nola_codec.merger.plan import plan_merge
from nola_codec.merger.terms import DeltaTerm, sum_terms
from nola_codec.stores.dtypes import to_float64

if TYPE_CHECKING:
    import torch


def layer_delta(
    decoder: Decoder, where: str, name: str, shape: tuple[int, ...] | None, place: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    """Return delta_W of a layer in float32, from all records that belong to it.

    Args:
        decoder: The open file.
        where: The file's name, for messages.
        name: The path of the module, with or without PEFT's prefix.
        shape: The shape of the layer's weight; None is the shape of the delta, if the file tells it.
        place: A function that makes a tensor of an array, on the right device.

    Raises:
        AdapterError: ``merge-projections``, ``unknown-name``, ``needs-shape``, ``bad-shape``.
        FormatError, ChecksumMismatch: The file is damaged.
    """
    file = decode_merge_file(decoder, where)
    dialect = dialect_of(file.adapter)
    dialect.require_complete(file.adapter, where)
    found = next((n for n in (name, PREFIX + name) if n in file.parts), None)
    if found is None:
        raise AdapterError(f"no delta named {name!r} in the file", code="unknown-name", where=where)
    if dialect.needs_layer_shape and shape is None:
        message = "the file does not say how many inputs the layer has: give the layer's shape, (out, in)"
        raise AdapterError(message, code="needs-shape", where=f"{where}: {found}")
    if not dialect.needs_layer_shape:
        parts = file.parts[found]
        own = parts[0].shape if len(parts) == 1 else (len(parts), *parts[0].shape)
        if shape is not None and tuple(shape) != own:
            raise AdapterError(mismatch("shape", own, tuple(shape)), code="bad-shape", where=f"{where}: {found}")
        shape = own
    whole = tuple(shape or ())
    rows = file.delta(found, whole, False).rows(0, whole[0] if whole else 1)
    return place(rows.astype(np.float32))


def merge_layer_deltas(decoder: Decoder, where: str, memory: MemoryModel) -> None:
    """Add every delta of a file to the weights of a model, in place, and put the tensors that it carries there.

    Args:
        decoder: The open file.
        where: The file's name, for messages.
        memory: The model to change.

    Raises:
        AdapterError: ``merge-projections``, ``merge-vectors``, ``tied-weights``, ``overflow``; ``vocabulary``: the
            embeddings of the model have another number of rows; and those of `require_reference` and `plan_merge`.
    """
    import torch

    from nola_codec.decoder.torch_raw import from_torch, to_torch

    file = decode_merge_file(decoder, where)
    dialect = dialect_of(file.adapter)
    strange = [vector.name for vector in file.adapter.vectors if vector.name not in file.adapter.references]
    if strange and dialect is PEFT:
        message = (
            f"the file has tensors coded as vectors ({strange[0]}, ...), which only its dialect knows how to merge"
        )
        raise AdapterError(message, code="merge-vectors", where=where)
    base = WeightShapes.of(memory)
    targets = dialect.merge_targets(file.adapter, file.parts, base, where)
    carried, stays_tied = dialect.model_tensors(file.adapter), dialect.changes_stored_weights
    config = dialect.merge_config(file.adapter)
    plan = plan_merge(memory, targets, carried, config, stays_tied=stays_tied, names=base.names)
    if plan.vocabulary is not None:
        message = f"its embeddings need {plan.vocabulary} rows: call resize_token_embeddings({plan.vocabulary}) first"
        raise AdapterError(message, code="vocabulary", where=str(memory.directory))
    lacking = [name for name in plan.replaced if name not in memory.parameters]
    if lacking:
        message = mismatch_message(
            [f"{name}: the adapter brings it, and the model has no such weight" for name in lacking]
        )
        raise AdapterError(message, code="base-mismatch", where=str(memory.directory))
    if not stays_tied:
        memory.require_untied((place.weight, place.module) for place in plan.places.values())
        memory.require_untied((name, name) for name in plan.replaced)
    for place in plan.places.values():
        reference = file.adapter.references.get(place.module)
        if reference is not None:
            stored = from_torch(memory.parameters[place.source].detach().cpu())
            require_reference(stored, reference.sha256, f"{memory.directory}: {place.source}")
    with torch.no_grad():
        # A delta belongs to the weight that the adapter brings, so these come first.
        for name, tensor in (*plan.reloaded.items(), *plan.replaced.items()):
            memory.parameters[name].copy_(to_torch(tensor))
        for name, place in plan.places.items():
            weight = memory.parameters[name]
            terms = [DeltaTerm(0, part.module, part.transposed, part.taken, part.put) for part in place.parts]
            shape = tuple(weight.shape)
            rows = sum_terms([file], terms, shape).rows(0, shape[0] if shape else 1)
            merge_tensor(weight, torch.from_numpy(rows).to(weight.device))
        for name, (term, scaling) in plan.bias_terms.items():
            bias = memory.parameters[name]
            merge_tensor(bias, torch.from_numpy(to_float64(term) * scaling).to(bias.device))
