"""`load`: an open file whose tensors are decoded when asked for, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from nola_codec.adapters import dialect_of
from nola_codec.adapters.adapter_delta import CHANGE_SUFFIX
from nola_codec.adapters.base_changes import restore_from_base
from nola_codec.adapters.dialects.peft_config import PREFIX
from nola_codec.api.arguments import require_source
from nola_codec.api.checking import check_content, check_rungs
from nola_codec.arrays import Arrays, arrays_on
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Container, Source, open_container
from nola_codec.decoder.adapters import decode_adapter, decode_records
from nola_codec.decoder.carried_forms import is_reduced
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedRecord
from nola_codec.errors import AdapterError, FormatError, NolaError, mismatch, require_torch
from nola_codec.model.header import Header
from nola_codec.model.tensors import RawTensor
from nola_codec.references.finding import References, open_decoder
from nola_codec.remote import is_url
from nola_codec.stores.dtypes import to_numpy

if TYPE_CHECKING:
    import torch

Tensor = TypeVar("Tensor")
"""What the methods of a file return: tensors of PyTorch, or NumPy arrays for the device "numpy"."""

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def stored_dtype(option: str) -> str:
    """The dtype of an adapter's tensors, as in `RawTensor`, that an option means: f32, f16 or bf16.

    Raises:
        NolaError: ``option``: there is no such choice.
    """
    if str(option) not in _DTYPES:
        raise NolaError(mismatch("dtype", "one of " + ", ".join(_DTYPES), repr(option)), code="option")
    return _DTYPES[option]


class NolaFile(Generic[Tensor]):
    """An open `.nola` file. Tensors are decoded when asked for; the same bits on every device.

    The CRC-32 of every section is compared when it is read. `load` has compared the content SHA-256, unless it was told
    not to. What decodes the whole file compares the decoded SHA-256 too (`docs/checksums.md`). Of a file with a
    reference the first tensor decodes the whole reference once, to compare its decoded SHA-256.

    Threads may use one open file at once. So may forked processes, unless the source is a stream or a URL: these have
    one position, or one connection, and each process must open its own.

    Attributes:
        header: Everything but coefficients.
        name: The name of the file in messages.
        content_sha256: The first 16 bytes of the SHA-256 of the content, in hexadecimal, as the file states it.
        digest: The same. It identifies the file, so it is the key for caches; with the rung, if one was chosen.
        decoded_sha256: The SHA-256 of what the file decodes to at its rung, in hexadecimal, as the file states it.
    """

    def __init__(
        self, container: Container, device: object, *, verify: bool = True, references: References = None
    ) -> None:
        """Take an open container, and close it in the end; `verify` is for `state_dict`, `references` as in `load`."""
        self._container = container
        self._device = device
        self._verify, self._references = verify, references
        self._xp: Arrays | None = None
        self._decoder: Decoder | None = None
        self.header: Header = container.header
        self.name = container.name
        self.content_sha256 = container.prelude.content_sha256.hex()
        self.digest = self.content_sha256
        self.decoded_sha256 = self.header.decoded_sha256.hex()
        self._index = {record.name: i for i, record in enumerate(self.header.pairs)}
        self._vectors = frozenset(record.name for record in self.header.vectors)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The configuration of the adapter, such as what ``adapter_config.json`` held; None if there was none."""
        return self.header.config

    def names(self) -> list[str]:
        """Return the module paths of the low-rank records."""
        return list(self._index)

    def vector_names(self) -> list[str]:
        """Return the keys of the vector records."""
        return [record.name for record in self.header.vectors]

    def vector(self, name: str) -> Tensor:
        """Decode one tensor that is coded as a vector: float32, in its shape, on the device.

        Only the units and the block that holds its record are read (a small file is one block) and checked by their
        CRC-32. The decoded SHA-256 is of the whole file, and is not compared; `verify` does it.

        Raises:
            AdapterError: ``unknown-name``.
            FormatError, ChecksumMismatch: The file is damaged.
        """
        if name not in self._vectors:
            raise AdapterError(f"no vector named {name!r}; vector_names() lists them", code="unknown-name",
                               where=self._container.name)  # fmt: skip
        ((_, decoded),) = self.open_decoder().decode_vectors([name])
        tensor: Tensor = self._tensor(decoded.float32(self._arrays())[0])
        return tensor

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """Decode one module: (lora_A (r, in), lora_B (out, r)), float32, on the device.

        Only the units and the block that holds its record are read (a small file is one block) and checked by their
        CRC-32. The decoded SHA-256 is of the whole file, and is not compared; `verify` does it.

        Args:
            name: Module path, with or without PEFT's ``base_model.model.``.

        Raises:
            AdapterError: ``unknown-name``.
            FormatError, ChecksumMismatch: The file is damaged.
        """
        lora_B, lora_A = self._decode_record(self._find(name)).float32(self._arrays())
        return self._tensor(lora_A), self._tensor(lora_B)

    def delta_weight(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return delta_W in float32, in the shape of a PyTorch weight: (out, in), (out, in, kh, kw), (vocab, dim).

        It is the float64 value that merges use, rounded once. If one pair of factors makes the delta, this reads and
        checks one block, like `factors`. If several records make it (VeRA and RandLoRA, LyCORIS, experts, a residue),
        it decodes the whole file and compares the decoded SHA-256.

        Args:
            name: Module path, with or without PEFT's ``base_model.model.``.
            shape: The shape of the weight. VeRA and RandLoRA need it, (out, in), since their files do not say it; for
                others it is compared with that of the delta.

        Raises:
            AdapterError: ``unknown-name``, ``bad-shape``; for VeRA and RandLoRA ``needs-shape``, ``merge-projections``;
                ``overflow``: a number of the delta leaves float32.
            FormatError, ChecksumMismatch: The file is damaged.
        """
        spellings = _spellings(name)
        if not spellings:
            self._find(name)
        index = next((self._index[n] for n in spellings if n in self._index), None)
        alone = index is not None and self.header.pairs[index].name + CHANGE_SUFFIX not in self._vectors
        if index is None or not alone:
            from nola_codec.merger.layer_deltas import layer_delta

            whole: Any = layer_delta(self.open_decoder(), self._container.name, name, shape, self._tensor)
            return cast("Tensor", whole)
        from nola_codec.merger.arithmetic.sum import delta_weight

        delta = delta_weight(self._decode_record(index), self.header.pairs[index].kind, self._arrays())
        if shape is not None and tuple(shape) != tuple(delta.shape):
            where = f"{self._container.name}: {name}"
            raise AdapterError(mismatch("shape", tuple(delta.shape), tuple(shape)), code="bad-shape", where=where)
        largest = float(abs(delta).max()) if math.prod(delta.shape) else 0.0
        if largest > _LARGEST_FLOAT32:
            message = mismatch("numbers of the delta", f"at most {_LARGEST_FLOAT32:.3g}", f"{largest:.3g}")
            raise AdapterError(message, code="overflow", where=f"{self._container.name}: {name}")
        return cast("Tensor", self._tensor(self._arrays().cast(delta, "float32")))

    def state_dict(self, dtype: str = "f32") -> dict[str, Tensor]:
        """Decode the adapter to a state dict under its own keys, carried tensors included, on the device.

        The decoded SHA-256 is compared, unless the file was loaded with ``verify=False``.

        Args:
            dtype: The dtype of factors and vectors: f32 is exact; f16 and bf16 round once.

        Raises:
            NolaError: ``option``: no such dtype.
            AdapterError: ``needs-base``: the file holds a change of a tensor of the base model; `nola_codec.decode`
                takes the model.
            FormatError, ChecksumMismatch: The file is damaged.
        """
        stored = stored_dtype(dtype)
        decoder = self.open_decoder()
        # PEFT's pairs are used as they are decoded; the tensors of other dialects are put together in NumPy first.
        dialect = dialect_of(self.header, self._container.name)
        keys = dialect.direct_keys((record.name, record.kind.layout) for record in self.header.pairs)
        names = (*(record.name for record in self.header.raw), *self._vectors)
        reduced = any(is_reduced(name) for name in names)
        is_numpy = self._device == "numpy"
        if keys is None or reduced or (is_numpy and stored != "F32"):
            adapter = restore_from_base(decode_adapter(decoder, verify=self._verify), None)
            made = dialect.tensors(adapter, stored)
            return {key: self._carried_tensor(tensor) for key, tensor in made.items()}
        finish = self._tensor if is_numpy else self._rounded_to(stored)
        tensors: dict[str, Any] = {}
        records = decode_records(decoder, verify=self._verify)
        pairs = len(decoder.header.pairs)
        for number, (record, decoded) in enumerate(zip(decoder.header.coded, records, strict=True)):
            sides = decoded.float32(decoder.xp)
            if number >= pairs:  # a vector
                tensors[record.name] = finish(sides[0])
                continue
            a_key, b_key = keys[record.name]
            lora_B, lora_A = sides
            tensors[a_key] = finish(lora_A.reshape(record.kind.stored_shapes[1]))
            tensors[b_key] = finish(lora_B.reshape(record.kind.stored_shapes[0]))
        for name, carried in decoder.carried_tensors():
            tensors[name] = self._carried_tensor(carried)
        return tensors

    def merge_into(self, model: torch.nn.Module) -> None:
        """Add every delta to the weights of a model, in place, each with one rounding to its dtype.

        Weights that the file carries (``modules_to_save``, biases) take the place of the model's own. The decoded
        SHA-256 is compared before anything changes, however the file was loaded.

        Raises:
            AdapterError: ``base-mismatch`` lists all deltas that have no place in the model (nothing is changed then);
                ``merge-vectors``: the file has vectors whose meaning only a dialect knows; ``vocabulary``: the
                embeddings of the model must be resized first; ``merge-unknown`` and ``merge-dora`` for tensors that
                cannot be merged; ``merge-network``: it
                has no deltas; ``tied-weights``: a weight that changes is shared with another module; ``overflow``: a
                sum leaves the dtype, and other deltas may be in the model.
            MissingPackage: ``needs-torch``.
            FormatError, ChecksumMismatch: The file is damaged; nothing is changed.
        """
        require_torch("merge_into()")
        from nola_codec.merger.in_memory import merge_into_model

        merge_into_model(self.open_decoder(), self._container.name, model)

    def verify(self) -> None:
        """Check the file through and through: the content SHA-256, and the decoded SHA-256 of every rung.

        Raises:
            FormatError, ChecksumMismatch: The file is damaged, or this decoder is not exact.
        """
        check_content(self._container)
        check_rungs(self._container, references=self._references)

    def close(self) -> None:
        """Close the underlying file."""
        self._container.close()

    def describe(self) -> str:
        """Return what identifies the file in a line: its name, dialect, number of records, size and content SHA-256."""
        pairs, vectors = len(self._index), len(self._vectors)
        parts = f"{pairs} modules" + (f", {vectors} vectors" if vectors else "")
        size = self._container.file_length
        return (
            f"{self.name!r}, {self.header.dialect}, {parts}, {size} bytes, content SHA-256 {self.content_sha256[:12]}"
        )

    def __repr__(self) -> str:
        return f"NolaFile({self.describe()})"

    def __enter__(self) -> NolaFile[Tensor]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.__exit__(kind, error, trace)

    def _arrays(self) -> Arrays:
        if self._xp is None:
            self._xp = arrays_on(self._device)
        return self._xp

    def open_decoder(self) -> Decoder:
        """Return the decoder of the file, which reads the precisions of all records."""
        if self._decoder is None:
            decoder = open_decoder(self._container, self._arrays(), self._references)
            decoder.checks_reference = self._verify
            self._decoder = decoder
        return self._decoder

    def _decode_record(self, index: int) -> DecodedRecord:
        ((_, decoded),) = self.open_decoder().decode_pairs([index])
        return decoded

    def _tensor(self, array: Any) -> Any:
        """Return a NumPy or torch array as a tensor on the device; for the device "numpy" as a NumPy array."""
        if self._device == "numpy":
            return self._arrays().numpy(array)
        self._require_torch()
        import torch

        tensor: torch.Tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
        return tensor.to(torch.device(cast("Any", self._device)))

    def _rounded_to(self, dtype: str) -> Callable[[Any], Any]:
        """Return a function that makes an array a tensor of PyTorch on the device, rounded to a dtype."""
        self._require_torch()
        from nola_codec.decoder.torch_raw import torch_dtype

        wanted = torch_dtype(dtype)
        return lambda array: self._tensor(array).to(wanted)

    def _require_torch(self) -> None:
        require_torch(f"load(..., device={str(self._device)!r})", instead="device='numpy' gives NumPy arrays")

    def _carried_tensor(self, tensor: RawTensor) -> Any:
        if self._device == "numpy":
            return to_numpy(tensor)
        self._require_torch()
        from nola_codec.decoder.torch_raw import to_torch

        return self._tensor(to_torch(tensor))

    def _find(self, name: str) -> int:
        for candidate in _spellings(name):
            if candidate in self._index:
                return self._index[candidate]
        raise AdapterError(
            f"no record named {name!r}; names() lists them", code="unknown-name", where=self._container.name
        )


def _spellings(name: object) -> tuple[str, ...]:
    """Return the names that a module may have in the file; none for what is no text."""
    return (name, PREFIX + name) if isinstance(name, str) else ()


@overload
def load(  # type: ignore[overload-overlap] # any other text is a device of PyTorch
    source: Source,
    device: Literal["numpy"],
    *,
    verify: bool | None = None,
    rung: int | None = None,
    limits: Limits | None = None,
    references: References = None,
) -> NolaFile[npt.NDArray[Any]]: ...
@overload
def load(
    source: Source,
    device: object = "cpu",
    *,
    verify: bool | None = None,
    rung: int | None = None,
    limits: Limits | None = None,
    references: References = None,
) -> NolaFile[torch.Tensor]: ...


def load(
    source: Source,
    device: object = "cpu",
    *,
    verify: bool | None = None,
    rung: int | None = None,
    limits: Limits | None = None,
    references: References = None,
) -> NolaFile[Any]:
    """Open a `.nola` file by path, URL, bytes or seekable binary stream.

    The whole file is read once to compare its content SHA-256, which takes some milliseconds a megabyte; nothing is
    decoded. Of a URL only the header is read here, and later the parts that are asked for: ``verify=True`` reads all of
    it. The CRC-32 of everything that is read is compared in any case.

    Args:
        source: The file.
        device: The device that tensors are decoded on: anything that `torch.device` takes; or "numpy", in which case
            all methods return NumPy arrays instead of tensors, and PyTorch is not needed.
        verify: True compares the content SHA-256 here, and False does not; None does it unless the source is a URL.
            False also skips the decoded SHA-256 in `NolaFile.state_dict`, and that of a reference.
        rung: The rung of a progressive file, counted from 0: the file is seen as if it ended there. None is the last.
        limits: What a file may declare; None stands for the limits of the specification, with the changes of the
            environment variable NOLA_LIMITS.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in `decode`. It
            is looked for when the first tensor is decoded.

    Raises:
        FormatError, ChecksumMismatch: The file is not well-formed, or damaged.
        AdapterError: ``unknown-rung``: the file has no such rung; ``not-nola``: it is an adapter;
            ``source-type``: the source is no path, bytes or stream.
        NolaError: ``option``: PyTorch knows no such device, or this machine has none.
        MissingPackage: ``needs-torch``: a device other than the processor was asked for, and PyTorch is not installed.
        RemoteError: The URL cannot be read.
    """
    require_source(source)
    if str(device) not in ("cpu", "numpy"):
        arrays_on(device)  # a device that is not there is refused here, and not at the first tensor
    container = open_container(source, limits, rung=rung)
    if verify or (verify is None and not is_url(source)):
        try:
            check_content(container)
        except FormatError:
            container.close()
            raise
    return NolaFile(container, device, verify=verify is not False, references=references)
