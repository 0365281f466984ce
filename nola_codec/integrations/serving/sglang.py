"""Hand an adapter to SGLang from memory: no directory is written, and nothing has to be on the server's disk.

SGLang takes tensors as a pickle, which it unpickles with a short list of allowed names. Here a pickle is only written,
never read. It holds the bytes of the tensors themselves and no handles of shared memory, so it may be sent to another
machine. SGLang compares the SHA-256 of each tensor when it has received them.

SGLang (0.5.23) reads ``r`` and ``lora_alpha`` alone, so it gets the ``uniform`` layout.
"""

from __future__ import annotations

import base64
import hashlib
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nola_codec.adapters.registry import dialect_of
from nola_codec.api.checking import check_content
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Source, open_container
from nola_codec.errors import NolaError, require_torch
from nola_codec.integrations.serving.adapter_cache import MAX_ADAPTER_BYTES
from nola_codec.integrations.serving.layouts import read_for_server
from nola_codec.references.finding import References

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter in memory, as SGLang reads it.

    Attributes:
        tensors: The factors in bfloat16 by PEFT's keys, lora_A (r, in) and lora_B (out, r), with one r for all modules.
        config: PEFT's configuration.
    """

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]


def read_tensors(source: Source, *, references: References = None, limits: Limits | None = None) -> AdapterTensors:
    """Decode a `.nola` file for SGLang.

    Args:
        source: The file: a path, bytes or a seekable binary stream.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in
            `nola_codec.decode`.
        limits: What the file may declare; as in `nola_codec.load`.

    Raises:
        AdapterError: ``not-expressible``: PEFT's dialect has no place for a part of it; ``limit``; ``not-nola``.
        FormatError, ChecksumMismatch: The file is damaged.
        MissingPackage: ``needs-torch``.
    """
    require_torch("an adapter for SGLang")
    from nola_codec.decoder.torch_raw import to_torch

    with open_container(source, limits) as container:
        check_content(container)
        adapter = read_for_server(container, "uniform", MAX_ADAPTER_BYTES, references)
    made = dialect_of(adapter).tensors(adapter, "BF16")
    return AdapterTensors({key: to_torch(tensor) for key, tensor in made.items()}, dict(adapter.config or {}))


def load_request(
    source: Source,
    lora_name: str,
    *,
    tp_size: int = 1,
    pinned: bool = False,
    references: References = None,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Return the JSON body of ``POST /load_lora_adapter_from_tensors`` of a server of SGLang.

    Args:
        source: The `.nola` file.
        lora_name: The name that clients will ask for.
        tp_size: The server's ``--tp-size``; each of its ranks wants a copy.
        pinned: Keep the adapter on the device.
        references: As in `read_tensors`.
        limits: As in `read_tensors`.

    Raises:
        NolaError: As `read_tensors`.
    """
    adapter = read_tensors(source, references=references, limits=limits)
    payload = base64.b64encode(pickle.dumps(adapter.tensors, protocol=4)).decode("ascii")
    return {
        "lora_name": lora_name,
        "config_dict": adapter.config,
        "serialized_named_tensors": [payload] * tp_size,
        "pinned": pinned,
        "expected_checksums": {name: _sha256(tensor) for name, tensor in adapter.tensors.items()},
    }


def load_into(
    engine: Any, source: Source, lora_name: str, *, references: References = None, limits: Limits | None = None
) -> None:
    """Load an adapter into a `sglang.Engine` of this process, which must have been made with ``enable_lora=True``.

    Args:
        engine: The engine.
        source: The `.nola` file.
        lora_name: The name to generate with.
        references: As in `read_tensors`.
        limits: As in `read_tensors`.

    Raises:
        NolaError: ``sglang``: the engine refused it, with its reason; and as `read_tensors`.
    """
    adapter = read_tensors(source, references=references, limits=limits)
    answer = engine.load_lora_adapter_from_tensors(lora_name, adapter.tensors, adapter.config)
    if not answer.success:
        raise NolaError(f"SGLang refused the adapter: {answer.error_message}", code="sglang", where=lora_name)


def _sha256(tensor: torch.Tensor) -> str:
    import torch

    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
