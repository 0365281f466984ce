"""Read and write PyTorch's pickles: ``adapter_model.bin``, ``.pt``, ``.pth``, of any age.

A pickle is a program. Only ``torch.load(weights_only=True)`` runs it, and only after `pickle_scan` has looked through
it. From a stranger's zip archive, torch gets a new archive that holds only the members that were checked.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

from nola_codec.errors import AdapterError, mismatch, require_torch
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import TORCH_NAMES
from nola_codec.stores.files import AnySource, display_name, open_from_start
from nola_codec.stores.pickle_scan import require_plain
from nola_codec.stores.tensor_store import MemoryStore
from nola_codec.stores.zip_io import Archive

__all__ = ["dump_pickle", "open_pickle"]

_MAX_PROGRAM_BYTES = 64_000_000
_MAX_REUSE = 4  # the bytes of all tensors over those of the file: tied weights share their storage
_MAX_TENSORS = 500_000
_ZIP_PROGRAM = "data.pkl"
_LEGACY_PROGRAMS = 5  # magic number, protocol, system, the object, names of the storages

# A state dict may lie in another dict, under one of these keys, beside facts about the training.
_WRAPPERS = (
    "state_dict", "model_state_dict", "lora_state_dict", "adapter_state_dict", "model", "module", "lora", "adapter",
    "weights", "params",
)  # fmt: skip


def open_pickle(source: AnySource | Archive, *, name: str | None = None) -> MemoryStore:
    """Load a whole pickled state dict: a flat dict of tensors, or a dict that holds one under a usual name.

    Args:
        source: A path, bytes, a binary stream, or an `Archive`, which stays open.
        name: The file's name in messages.

    Raises:
        AdapterError: ``pickle`` for anything but plain tensors, and for a file that torch refuses; ``truncated``,
            ``limit``, ``unknown-dtype``, and those of `Archive`.
    """
    own_name = source.name if isinstance(source, Archive) else display_name(source)
    where = name if name is not None else own_name
    state, stored_bytes = _load(source, where)
    return MemoryStore(_plain_tensors(_find_tensors(state, where), stored_bytes, where), name=where, file_type="pickle")


def dump_pickle(tensors: Mapping[str, RawTensor]) -> bytes:
    """Return the bytes that ``torch.save`` writes for a dict of tensors, in the order of the names.

    Equal input gives equal bytes with one version of torch; another version may pack the archive differently.

    Raises:
        AdapterError: ``not-expressible`` for a dtype that torch does not have.
        MissingPackage: ``needs-torch``.
    """
    require_torch("writing .bin and .pt")
    import torch

    state: dict[str, Any] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = getattr(torch, TORCH_NAMES.get(tensor.dtype, ""), None)
        if dtype is None:
            raise AdapterError(f"torch has no dtype {tensor.dtype}", code="not-expressible", where=name)
        if tensor.data:
            state[name] = torch.frombuffer(bytearray(tensor.data), dtype=dtype).reshape(tensor.shape)
        else:
            state[name] = torch.empty(tensor.shape, dtype=dtype)
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def _load(source: AnySource | Archive, where: str) -> tuple[Any, int]:
    """Load the object in a file. Return it, and the size in bytes of its storages in the file."""
    if isinstance(source, Archive):
        return _load_archive(source, where)
    stream, owned = open_from_start(source, where)
    try:
        data = stream.read()
    except OSError as e:
        raise AdapterError(f"cannot be read: {e}", code="unreadable", where=where) from e
    finally:
        if owned:
            stream.close()
    if data.startswith(b"PK"):
        archive = Archive(data, name=where)
        try:
            return _load_archive(archive, where)
        finally:
            archive.close()
    return _load_legacy(data, where)


def _load_archive(archive: Archive, where: str) -> tuple[Any, int]:
    programs = [member for member in archive.members if member.rpartition("/")[2] == _ZIP_PROGRAM]
    if len(programs) != 1:
        raise AdapterError(mismatch(_ZIP_PROGRAM, "one in the archive", len(programs)), code="pickle", where=where)
    root = programs[0].removesuffix(_ZIP_PROGRAM)
    if f"{root}constants.pkl" in archive.members:
        raise AdapterError("a TorchScript program, not a state dict", code="pickle", where=where)
    if archive.members[programs[0]] > _MAX_PROGRAM_BYTES:
        message = f"a pickle of {archive.members[programs[0]]} bytes, over {_MAX_PROGRAM_BYTES}"
        raise AdapterError(message, code="limit", where=where)
    program = archive.read(programs[0])
    require_plain(io.BytesIO(program), 1, where)
    repacked = io.BytesIO()
    stored = 0
    with zipfile.ZipFile(repacked, "w", zipfile.ZIP_STORED) as out:
        out.writestr("archive/data.pkl", program)
        for member in archive.members:
            inner = member.removeprefix(root)
            if member.startswith(root) and (inner in ("version", "byteorder") or re.fullmatch(r"data/\w+", inner)):
                out.writestr(f"archive/{inner}", archive.read(member))
                stored += archive.members[member] if inner.startswith("data/") else 0
    repacked.seek(0)
    return _torch_load(repacked, where), stored


def _load_legacy(data: bytes, where: str) -> tuple[Any, int]:
    """Load the format before PyTorch 1.6: five pickles, then the storages."""
    stream = io.BytesIO(data)
    require_plain(stream, _LEGACY_PROGRAMS, where)
    stored = len(data) - stream.tell()
    # From a real file, torch would also accept a tar archive, and it unpacks those with less care.
    return _torch_load(io.BytesIO(data), where), stored


def _torch_load(stream: io.BytesIO, where: str) -> Any:
    require_torch(f"{where}: reading .bin and .pt")
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
    except Exception as e:  # torch may raise any exception for a damaged file
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise AdapterError(f"torch cannot load it: {reason}", code="pickle", where=where) from e


def _find_tensors(state: Any, where: str) -> Mapping[str, Any]:
    """Return the dict of tensors that a loaded object is, or that it holds under a usual name."""
    import torch

    def is_state_dict(value: Any) -> bool:
        # An OrderedDict from a pickle may have attributes that hide its methods, so dict's own ones are called.
        return isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in dict.values(value))

    if not isinstance(state, dict):
        raise AdapterError(mismatch("pickle", "a dict of tensors", _describe(state)), code="pickle", where=where)
    if not is_state_dict(state):
        wrapped = [key for key in _WRAPPERS if is_state_dict(dict.get(state, key))]
        if len(wrapped) > 1:
            message = f"several dicts of tensors: {', '.join(wrapped)}; save only the one of the adapter"
            raise AdapterError(message, code="pickle", where=where)
        if not wrapped and dict.__len__(state):
            found = ", ".join(f"{str(key)[:40]!r}: {_describe(value)}" for key, value in [*dict.items(state)][:5])
            raise AdapterError(mismatch("pickle", "a dict of tensors", f"{{{found}}}"), code="pickle", where=where)
        state = dict.__getitem__(state, wrapped[0]) if wrapped else state
    for key, value in dict.items(state):
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            message = mismatch(f"{str(key)[:80]!r}", "a name and a tensor", _describe(value))
            raise AdapterError(message, code="pickle", where=where)
    if dict.__len__(state) > _MAX_TENSORS:
        raise AdapterError(f"{dict.__len__(state)} tensors, over {_MAX_TENSORS}", code="limit", where=where)
    return dict(dict.items(state))


def _plain_tensors(state: Mapping[str, Any], stored_bytes: int, where: str) -> dict[str, RawTensor]:
    """Return tensors as bytes, after checking that they are plain and no larger than the file allows."""
    import torch

    names = {getattr(torch, name): dtype for dtype, name in TORCH_NAMES.items() if hasattr(torch, name)}
    storages: dict[int, int] = {}
    total = 0
    for key, tensor in state.items():
        place = f"{where}: {key}"
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = f"{tensor.layout}, quantized {tensor.is_quantized}, on {tensor.device.type}"
            raise AdapterError(mismatch("tensor", "a plain one", kind), code="pickle", where=place)
        if tensor.dtype not in names:
            raise AdapterError(f"unknown dtype {tensor.dtype}", code="unknown-dtype", where=place)
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes > stored_bytes:
            message = f"{list(tensor.shape)} takes {nbytes} bytes, and the file holds {stored_bytes}"
            raise AdapterError(message, code="pickle", where=place)
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        total += nbytes
    # If a tensor claims more bytes than its storage has, torch enlarges the storage without initialising it.
    if sum(storages.values()) > stored_bytes:
        message = mismatch("storages", f"at most {stored_bytes} bytes", sum(storages.values()))
        raise AdapterError(message, code="truncated", where=where)
    if total > _MAX_REUSE * stored_bytes:
        message = f"tensors of {total} bytes share {stored_bytes}, over {_MAX_REUSE} times as many"
        raise AdapterError(message, code="pickle", where=where)
    result = {}
    for key, tensor in state.items():
        flat = tensor.detach().resolve_neg().contiguous().reshape(-1)
        result[key] = RawTensor(names[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes())
    return result


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"{kind} of {dict.__len__(value)}" if isinstance(value, dict) else kind
