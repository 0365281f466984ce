"""`TensorIndex`: the tensors of an adapter by the keys of its dialect, each decoded alone when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nola_codec.adapters.base_changes import changed_key
from nola_codec.adapters.contract import Dialect
from nola_codec.decoder.adapters import decode_adapter
from nola_codec.decoder.carried_forms import BASE_SHA256, CODED, INT8, INT8_SCALE, is_reduced, restore_carried
from nola_codec.decoder.decoder import Decoder
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule, VectorTensor
from nola_codec.model.records import CodedRecord
from nola_codec.model.tensors import RawTensor
from nola_codec.prng.draws import draw_tensor
from nola_codec.stores.tensor_store import TensorInfo, no_such_tensor


@dataclass(frozen=True)
class _Entry:
    """A tensor: what it is, and the records that make it.

    Attributes:
        info: The dtype and the shape.
        coded: The numbers of coded records, in `Header.coded`.
        carried: The numbers of carried records, in `Header.raw`.
        drawn: The number of the drawn record, or None.
        is_change: True for a tensor that is held as a change of the base model's.
    """

    info: TensorInfo
    coded: tuple[int, ...] = ()
    carried: tuple[int, ...] = ()
    drawn: int | None = None
    is_change: bool = False


@dataclass
class _Last:
    """The tensors of the records that were decoded last: the two factors of a module are often asked for in turn."""

    coded: tuple[int, ...] = ()
    tensors: Mapping[str, RawTensor] = field(default_factory=dict)


class TensorIndex:
    """The tensors of an open file under the keys that its adapter had, as `NolaFile.state_dict` gives them.

    Making the index decodes nothing. A tensor is made of the records that belong to it alone. Where a dialect makes
    tensors of all records together, the first tensor decodes the whole file.
    """

    def __init__(self, decoder: Decoder, dialect: Dialect, name: str, dtype: str = "F32") -> None:
        """Make the index.

        Args:
            decoder: The open file.
            dialect: The dialect of the file.
            name: The file's name, for messages.
            dtype: The dtype of factors and vectors.
        """
        self._decoder, self._dialect, self._name, self._dtype = decoder, dialect, name, dtype
        self._last = _Last()
        self._whole: Mapping[str, RawTensor] | None = None
        self._entries = {**self._coded_entries(), **self._carried_entries()}

    def infos(self) -> dict[str, TensorInfo]:
        """Return the dtype and the shape of each tensor by its key: coded ones first, in the order of the file."""
        return {key: entry.info for key, entry in self._entries.items()}

    def read(self, key: str) -> RawTensor:
        """Decode one tensor.

        Raises:
            AdapterError: ``no-such-tensor``; ``needs-base``: the file holds only how it differs from the base model's;
                ``bad-carried``, ``overflow``.
            FormatError, ChecksumMismatch: The file is damaged.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise no_such_tensor(self._name, key)
        if entry.is_change:
            message = "is held as a change of the base model's tensor; nola_codec.decode takes the base model"
            raise AdapterError(message, code="needs-base", where=f"{self._name}: {key}")
        if entry.drawn is not None:
            return draw_tensor(self._decoder.header.drawn[entry.drawn].kind.draw)
        if entry.carried and not is_reduced(self._decoder.header.raw[entry.carried[0]].name):
            return self._decoder.container.raw_tensor(entry.carried[0])
        return self._made(entry)[key]

    def _made(self, entry: _Entry) -> Mapping[str, RawTensor]:
        """Return the tensors that the records of an entry make."""
        header = self._decoder.header
        if entry.carried:
            raw = {header.raw[i].name: self._decoder.container.raw_tensor(i) for i in entry.carried}
            return restore_carried(raw, ())[0]
        whole = self._whole
        if whole is not None or not entry.coded:
            whole = self._whole = whole or self._dialect.tensors(decode_adapter(self._decoder), self._dtype)
            return whole
        last = self._last  # another thread may replace it
        if last.coded != entry.coded:
            modules, vectors = [], []
            for number, decoded in self._decoder.decode(entry.coded):
                record, sides = header.coded[number], decoded.float32(self._decoder.xp)
                arrays = [self._decoder.xp.numpy(side) for side in sides]
                if record.kind.is_pair:
                    modules.append(_module(record, arrays[1], arrays[0]))
                else:
                    vectors.append(VectorTensor(record.name, arrays[0], record.kind.dtype))
            raw, left = restore_carried({}, vectors)
            made = self._dialect.tensors(self._part(modules, left), self._dtype) if modules or left else {}
            last = self._last = _Last(entry.coded, {**made, **raw})
        return last.tensors

    def _coded_entries(self) -> dict[str, _Entry]:
        """Return the entries of coded records."""
        header = self._decoder.header
        pairs = {number: record for number, record in enumerate(header.coded) if record.kind.is_pair}
        keys = self._dialect.direct_keys((record.name, record.kind.layout) for record in pairs.values())
        changed = {record.name.removesuffix(BASE_SHA256) for record in header.raw if record.name.endswith(BASE_SHA256)}
        entries: dict[str, _Entry] = {}
        groups: dict[str, list[int]] = {}
        for number, record in enumerate(header.coded):
            shapes = record.kind.stored_shapes
            if record.kind.is_pair and keys is not None:
                for key, shape in zip(keys[record.name], reversed(shapes), strict=True):
                    entries[key] = _Entry(TensorInfo(self._dtype, shape), (number,))
            elif record.name in changed:
                info = TensorInfo(record.kind.dtype, shapes[0])
                entries[changed_key(record.name)] = _Entry(info, (number,), is_change=True)
            elif record.name.endswith(CODED):
                info = TensorInfo(record.kind.dtype, shapes[0])
                entries[record.name.removesuffix(CODED)] = _Entry(info, (number,))
            else:
                weight = self._dialect.weight_of_record(record.name)
                groups.setdefault(self._dialect.slice_of(weight)[0], []).append(number)
        try:
            for numbers in groups.values():
                for key, info in self._shapes_of(numbers).items():
                    entries.setdefault(key, _Entry(info, tuple(numbers)))
        except AdapterError:  # a dialect that needs all records at once, as experts whose numbers are checked
            self._whole = self._dialect.tensors(decode_adapter(self._decoder), self._dtype)
            return {key: _Entry(TensorInfo(made.dtype, made.shape)) for key, made in self._whole.items()}
        return entries

    def _shapes_of(self, numbers: Sequence[int]) -> dict[str, TensorInfo]:
        """Return the tensors that some records make, from the shapes of the records alone."""
        modules, vectors = [], []
        for number in numbers:
            record = self._decoder.header.coded[number]
            zeros = [np.broadcast_to(np.float32(0), side.shape) for side in record.kind.sides]
            if record.kind.is_pair:
                modules.append(_module(record, zeros[1], zeros[0]))
            else:
                values = zeros[0].reshape(record.kind.stored_shapes[0])
                vectors.append(VectorTensor(record.name, values, record.kind.dtype))
        made = self._dialect.tensors(self._part(modules, vectors), self._dtype)
        return {key: TensorInfo(tensor.dtype, tensor.shape) for key, tensor in made.items()}

    def _part(self, modules: Sequence[LoraModule], vectors: Sequence[VectorTensor]) -> Adapter:
        header = self._decoder.header
        return Adapter(header.dialect, tuple(modules), {}, header.config, header.metadata, tuple(vectors))

    def _carried_entries(self) -> dict[str, _Entry]:
        """Return the entries of carried and drawn records."""
        header = self._decoder.header
        numbers = {record.name: number for number, record in enumerate(header.raw)}
        entries: dict[str, _Entry] = {}
        for name, number in numbers.items():
            kind = header.raw[number].kind
            if name.endswith(INT8):
                stem = name.removesuffix(INT8)
                scale = numbers.get(stem + INT8_SCALE)
                parts = (number,) if scale is None else (number, scale)
                dtype = kind.dtype if scale is None else header.raw[scale].kind.dtype
                entries[stem] = _Entry(TensorInfo(dtype, kind.shape), carried=parts)
            elif not is_reduced(name):
                entries[name] = _Entry(TensorInfo(kind.dtype, kind.shape), carried=(number,))
        for number, drawn in enumerate(header.drawn):
            entries[drawn.name] = _Entry(TensorInfo(drawn.kind.draw.dtype, drawn.kind.draw.shape), drawn=number)
        return entries


def _module(record: CodedRecord, lora_A: np.ndarray, lora_B: np.ndarray) -> LoraModule:
    kind = record.kind
    b_shape, a_shape = kind.stored_shapes
    return LoraModule(
        record.name, lora_A, lora_B, a_shape, b_shape, kind.scaling, kind.layout, kind.fan_in_fan_out, kind.dtype
    )
