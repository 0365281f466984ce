"""`load`: an open file whose tensors are decoded when asked for, on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nola_codec.adapters import dialect_of
from nola_codec.adapters.dialects import delta as delta_dialect
from nola_codec.adapters.dialects import parameters, peft_config, peft_diagonals
from nola_codec.adapters.dialects.peft import factor_keys
from nola_codec.adapters.dialects.peft_experts import is_expert
from nola_codec.arrays import NUMPY, Arrays, arrays_on
from nola_codec.container.limits import DEFAULT_LIMITS, Limits
from nola_codec.container.reader import Container, Source, open_container
from nola_codec.decoder.adapters import decoded_adapter
from nola_codec.decoder.decoder import Decoder
from nola_codec.decoder.factors import DecodedFactors
from nola_codec.errors import AdapterError, FormatError, require_torch
from nola_codec.merge.arithmetic.sum import delta_weight, merge_tensor
from nola_codec.merge.diagonal import diagonal_delta, merge_diagonals
from nola_codec.merge.in_memory import find_in_model
from nola_codec.merge.matching import merge_target, mismatch_message
from nola_codec.merge.operands import merge_file
from nola_codec.model.header import Header
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.dtypes import to_numpy

if TYPE_CHECKING:
    import torch

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


class NolaFile:
    """An open `.nola` file. Tensors are decoded when asked for; the same bits on every device.

    Attributes:
        header: Everything but coefficients.
    """

    def __init__(self, container: Container, device: object) -> None:
        self._container = container
        self._device = device
        self._xp: Arrays | None = None
        self.header: Header = container.header
        self._index = {record.name: i for i, record in enumerate(self.header.lowrank)}
        self._vectors = frozenset(record.name for record in self.header.vectors)
        self._decoder: Decoder | None = None

    def names(self) -> list[str]:
        """Module paths of the low-rank records."""
        return list(self._index)

    def vector_names(self) -> list[str]:
        """Keys of the vector records."""
        return [record.name for record in self.header.vectors]

    def vector(self, name: str) -> torch.Tensor:
        """A tensor coded as a vector, float32 in its shape; only its block is read.

        Raises:
            AdapterError: no such vector.
        """
        if name not in self._vectors:
            raise AdapterError(f"no vector named {name!r}; vector_names() lists them", code="unknown-name",
                               where=self._container.name)  # fmt: skip
        ((_, decoded),) = self._opened().vectors([name])
        return self._tensor(decoded.float32(self._arrays()))

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(lora_A (r, in), lora_B (out, r)), float32 on the device; only this record's block is read.

        `name` is a module path, with or without PEFT's ``base_model.model.``. Raises AdapterError for an unknown one.
        """
        index = self._find(name)
        ((_, decoded),) = self._decode([index])
        lora_B, lora_A = decoded.float32(self._arrays())
        return self._tensor(lora_A), self._tensor(lora_B)

    def delta_weight(self, name: str, shape: tuple[int, int] | None = None) -> torch.Tensor:
        """delta_W in float32, shaped like the weight of a PyTorch layer: (out, in), (out, in, kh, kw), (vocab, dim).

        The float64 value that merges use, rounded once.

        Args:
            name: Module path, with or without PEFT's ``base_model.model.``.
            shape: (out, in) of the layer: asked for by VeRA and RandLoRA, whose files do not say it, and by no other.

        Raises:
            AdapterError: ``unknown-name``; ``needs-shape``; ``bad-shape``, ``merge-projections`` of VeRA and RandLoRA.
        """
        if self._diagonal:
            return diagonal_delta(self._opened(), self._container.name, name, shape, self._tensor)
        index = self._find(name)
        ((_, decoded),) = self._decode([index])
        delta = delta_weight(decoded, self.header.lowrank[index].kind, self._arrays())
        return self._tensor(self._arrays().cast(delta, "float32"))

    def state_dict(self, dtype: str = "f32") -> dict[str, torch.Tensor]:
        """The adapter's state dict under its own keys, tensors carried as they came included.

        Args:
            dtype: Of the factors and vectors: f32 is exact; f16 and bf16 round once.
        """
        # PEFT's pairs stay on the device all the way; other dialects' tensors are put together in NumPy first.
        if (
            self._device == "numpy"
            or self.header.dialect != "peft"
            or any(is_expert(record.name) for record in self.header.lowrank)
        ):
            adapter = decoded_adapter(self._opened(), None)
            made = dialect_of(adapter.dialect, self._container.name).tensors(adapter, DTYPES[dtype])
            return {key: self._carried(tensor) for key, tensor in made.items()}
        self._require_torch()
        from nola_codec.decoder.torch_raw import torch_dtype

        wanted = torch_dtype(DTYPES[dtype])
        tensors: dict[str, torch.Tensor] = {}
        for index, decoded in self._decode(None):
            record = self.header.lowrank[index]
            a_key, b_key = factor_keys(record.name, record.kind.layout)
            lora_B, lora_A = decoded.float32(self._arrays())
            tensors[a_key] = self._tensor(lora_A).reshape(record.kind.a_shape).to(wanted)
            tensors[b_key] = self._tensor(lora_B).reshape(record.kind.b_shape).to(wanted)
        for name, vector in self._opened().vectors():
            tensors[name] = self._tensor(vector.float32(self._arrays())).to(wanted)
        for name, carried in self._opened().carried():
            tensors[name] = self._carried(carried)
        return tensors

    def merge_into(self, model: torch.nn.Module) -> None:
        """Add every delta to the weights of a model, in place, each with one rounding to its dtype.

        Raises:
            AdapterError: ``base-mismatch`` lists all deltas that do not find their weight (nothing is changed then);
                ``merge-vectors`` and ``merge-raw`` when the file carries tensors that are not deltas, ``merge-network``
                when none of it is; ``tied-weights`` when a weight that changes is shared with another module;
                ``overflow`` when a sum leaves the dtype, in which case the deltas before it are in the model.
            FormatError, ChecksumMismatch: the file is damaged; nothing is changed.
        """
        import torch

        if self.header.dialect == delta_dialect.name:
            self._merge_changes(model)
            return
        if self._diagonal:
            merge_diagonals(self._opened(), self._container.name, model)
            return
        if self.header.dialect == parameters.name:
            message = "the file holds a network's own weights: model.load_state_dict(file.state_dict())"
            raise AdapterError(message, code="merge-network", where=self._container.name)
        if self.header.vectors:
            raise AdapterError(
                f"the file has tensors coded as vectors ({self.header.vectors[0].name}, ...), which only its dialect "
                "knows how to merge", code="merge-vectors", where=self._container.name
            )  # fmt: skip
        if self.header.raw:
            raise AdapterError(
                f"the file carries tensors that are not deltas ({self.header.raw[0].name}, ...); "
                "load the decoded adapter with PEFT, or merge with `decode --base`", code="merge-raw"
            )  # fmt: skip
        targets = [merge_target(record) for record in self.header.lowrank]
        weights, matches = find_in_model(model, lambda shapes, config: targets)
        decoder = Decoder(self._container, self._arrays())
        with torch.no_grad():
            for record, decoded in zip(decoder.header.lowrank, decoder.checked()[0], strict=True):
                match = matches[record.name]
                delta = self._tensor(delta_weight(decoded, record.kind, self._arrays()))
                weight = weights[match.weight]
                merge_tensor(weight, (delta.T if match.transposed else delta).to(weight.device))

    @property
    def _diagonal(self) -> bool:
        return self.header.dialect == "peft" and peft_diagonals.method_of(self.header.config) is not None

    def _merge_changes(self, model: torch.nn.Module) -> None:
        """`merge_into` of a file of dense changes: names are those of the weights themselves."""
        import torch

        weights = dict(model.named_parameters(remove_duplicate=False))
        file = merge_file(Decoder(self._container, self._arrays()), self._container.name)
        found = {
            delta_dialect.weight_name(name): (name, math.prod(parts[0].shape)) for name, parts in file.parts.items()
        }
        problems = [
            f"{weight}: " + ("no such weight" if weight not in weights else f"shape {list(weights[weight].shape)}")
            for weight, (_, size) in found.items()
            if weight not in weights or weights[weight].numel() != size
        ]
        if problems:
            raise AdapterError(mismatch_message(problems), code="base-mismatch", where="the model")
        with torch.no_grad():
            for name, (delta, _) in found.items():
                weight = weights[name]
                change = file.delta(delta, tuple(weight.shape), transposed=False)
                rows = torch.from_numpy(change.rows(0, weight.shape[0] if weight.ndim else 1))
                merge_tensor(weight, rows.to(weight.device))

    def verify(self) -> None:
        """Check every checksum, decode everything and compare its SHA-256. Raises FormatError, ChecksumMismatch."""
        self._container.check_content()
        check_rungs(self._container)

    def close(self) -> None:
        """Close the underlying file."""
        self._container.close()

    def __enter__(self) -> NolaFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _arrays(self) -> Arrays:
        if self._xp is None:
            self._xp = arrays_on(self._device)
        return self._xp

    def _opened(self) -> Decoder:
        if self._decoder is None:
            self._decoder = Decoder(self._container, self._arrays())
        return self._decoder

    def _decode(self, indexes: list[int] | None) -> Iterator[tuple[int, DecodedFactors]]:
        return self._opened().factors(indexes)

    def _tensor(self, array: Any) -> torch.Tensor:
        """A NumPy or torch array as a tensor on the device; for the device "numpy" a NumPy array."""
        if self._device == "numpy":
            return self._arrays().numpy(array)  # type: ignore[return-value] # see `load`
        self._require_torch()
        import torch

        tensor: torch.Tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
        return tensor.to(torch.device(cast("Any", self._device)))

    def _require_torch(self) -> None:
        require_torch(f"load(..., device={str(self._device)!r})", instead="device='numpy' gives NumPy arrays")

    def _carried(self, tensor: RawTensor) -> torch.Tensor:
        if self._device == "numpy":
            return to_numpy(tensor)  # type: ignore[return-value] # see `load`
        self._require_torch()
        from nola_codec.decoder.torch_raw import to_torch

        return self._tensor(to_torch(tensor))

    def _find(self, name: str) -> int:
        for candidate in (name, peft_config.PREFIX + name):
            if candidate in self._index:
                return self._index[candidate]
        raise AdapterError(
            f"no record named {name!r}; names() lists them", code="unknown-name", where=self._container.name
        )


def check_rungs(container: Container) -> None:
    """Decode every rung up to the one that is open, and compare digests. Raises FormatError, ChecksumMismatch."""
    last = len(container.header.rungs) - 1
    for rung in range(last + 1):
        container.select(rung)
        Decoder(container, NUMPY).checked()


def load(
    source: Source,
    device: object = "cpu",
    *,
    verify: bool = False,
    rung: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> NolaFile:
    """Open a `.nola` file by path, bytes or seekable binary stream.

    Args:
        source: The file.
        device: Where tensors are decoded: anything `torch.device` takes; or "numpy", in which case all methods return
            NumPy arrays in place of tensors, and PyTorch is not needed.
        verify: Check every checksum and the digest of the decoded factors first.
        rung: Of a progressive file: as if it ended with this rung, counted from 0.
        limits: What a file may declare.

    Raises:
        FormatError, ChecksumMismatch: the file is not well-formed.
        AdapterError: ``unknown-rung``: the file has no such rung.
    """
    opened = NolaFile(open_container(source, limits, rung=rung), device)
    if verify:
        try:
            opened.verify()
        except FormatError:
            opened.close()
            raise
    return opened
