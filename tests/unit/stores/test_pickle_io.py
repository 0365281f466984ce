"""PyTorch's pickles: what torch.save writes is read, and what does more than name tensors is refused unrun."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from container_forge import pickled, tensor_program, torch_zip

from nola_codec.errors import AdapterError
from nola_codec.model.tensors import DTYPES, RawTensor
from nola_codec.stores.pickle_io import dump_pickle, open_pickle

TENSORS = {
    "base_model.model.q.lora_A.weight": RawTensor("F32", (2, 3), struct.pack("<6f", *range(6))),
    "brain": RawTensor("BF16", (1, 2), b"\x80\x3f\x00\xc0"),
    "scalar": RawTensor("F64", (), struct.pack("<d", 2.5)),
    "empty": RawTensor("F16", (0, 4), b""),
    "long": RawTensor("I64", (1,), bytes(8)),
}


def saved(state: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out, **options)
    return out.getvalue()


def load(source: Any) -> dict[str, RawTensor]:
    with open_pickle(source, name="t.bin") as store:
        return {name: store.read(name) for name in store.tensors}


def refused(data: bytes) -> AdapterError:
    with pytest.raises(AdapterError) as e:
        load(data)
    assert "\n" not in str(e.value)
    return e.value


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest) -> Callable[[Any], bytes]:
    return lambda state: saved(state, _use_new_zipfile_serialization=request.param)


def test_what_is_written_is_read_back_by_us_and_by_torch() -> None:
    data = dump_pickle(TENSORS)
    assert load(data) == TENSORS
    state = torch.load(io.BytesIO(data), weights_only=True)
    assert type(state) is dict
    assert torch.equal(state["base_model.model.q.lora_A.weight"], torch.arange(6.0).reshape(2, 3))


def test_same_bytes_whatever_the_order() -> None:
    assert dump_pickle(dict(reversed(TENSORS.items()))) == dump_pickle(TENSORS)


def test_every_dtype_goes_through() -> None:
    tensors = {name: RawTensor(name, (2,), bytes(16)[: 2 * torch_size(name)]) for name in DTYPES}
    assert load(dump_pickle(tensors)) == tensors
    with pytest.raises(AdapterError) as e:
        dump_pickle({"w": RawTensor("F4", (2,), b"\0")})
    assert e.value.code == "not-expressible"


def torch_size(name: str) -> int:
    from nola_codec.model.tensors import DTYPE_BYTES

    return DTYPE_BYTES[name]


def test_views_parameters_and_shared_storages(save: Callable[[Any], bytes]) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = collections.OrderedDict(
        transposed=base.t(),
        part=base[1:, 1:3],
        parameter=torch.nn.Parameter(base.clone()),
        tied=base,
        expanded=torch.ones(1, 4).expand(3, 4),
    )
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined] # as modules' have
    found = load(save(state))
    for name, tensor in state.items():
        assert found[name] == RawTensor("F32", tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes())


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "lora"])
def test_one_wrapper_is_taken_off(wrapper: str, save: Callable[[Any], bytes]) -> None:
    state = {wrapper: {"w": torch.ones(1)}, "epoch": 3, "args": {"lr": 0.1, "betas": [0.9, 0.99]}}
    assert load(save(state)) == {"w": RawTensor("F32", (1,), struct.pack("<f", 1))}


def test_an_empty_dict_has_no_tensors(save: Callable[[Any], bytes]) -> None:
    assert load(save({})) == {}


def test_the_real_file_with_cuda_tensors(shared_data: Path) -> None:
    path = shared_data / "lora" / "roberta_base_lora_mnli.bin"
    found = load(path)
    assert len(found) == 52
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, tensor in found.items():
        assert (tensor.shape, tensor.data) == (tuple(state[name].shape), state[name].numpy().tobytes())


class Run:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_in_a_pickle_is_named_and_not_run(
    protocol: int, save: Callable[[Any], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = {"w": torch.ones(1), "x": Run(os.system, "touch owned")}
    for data in (save(evil), pickle.dumps(Run(os.system, "touch owned"), protocol=protocol)):
        error = refused(data)
        assert error.code == "pickle"
        assert "'posix.system'" in str(error)
    assert list(tmp_path.iterdir()) == []
    pickle.loads(pickle.dumps(Run(os.system, "touch owned"), protocol=protocol))
    assert [path.name for path in tmp_path.iterdir()] == ["owned"]  # so it would have been noticed


OBJECTS: dict[str, tuple[Any, str]] = {
    "a tensor": (torch.ones(1), "expected a dict of tensors, found Tensor"),
    "a list": ([torch.ones(1)], "found list"),
    "a module": (torch.nn.Linear(1, 1), "'torch.nn.modules.linear.Linear'"),
    "an optimizer": (
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).state_dict(),
        "found {'state': dict of 0, 'param_groups': list}",
    ),
    "nested twice": ({"a": {"b": {"w": torch.ones(1)}}}, "found {'a': dict of 1}"),
    "a dict beside a tensor": ({"w": torch.ones(1), "x": {"y": torch.ones(1)}}, "'x': expected a name and a tensor"),
    "a number beside a tensor": ({"w": torch.ones(1), "alpha": 4.0}, "'alpha': expected a name and a tensor"),
    "a key that is no name": ({1: torch.ones(1)}, "'1': expected a name"),
    "two wrappers": ({"model": {"w": torch.ones(1)}, "lora": {"w": torch.ones(1)}}, "several dicts of tensors"),
    "sparse": ({"w": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor"),
    "complex": ({"w": torch.ones(1, dtype=torch.complex64)}, "torch.complex64"),
    "meta": ({"w": torch.ones(1, device="meta")}, "_rebuild_meta_tensor_no_storage"),
    "set": ({"w": {1, 2}}, "__builtin__.set"),
    "bytes": ({"w": b"abc"}, "_codecs.encode"),
    "numpy": ({"w": torch.ones(1).numpy()}, "numpy"),
    "the same dict twice": ({"state_dict": (d := {"w": torch.ones(1)}), "b": d}, "uses a dict or list twice"),
    "a large tuple": ({"w": tuple(range(300))}, "a tuple of more than"),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_other_objects_are_refused(case: str, save: Callable[[Any], bytes]) -> None:
    state, words = OBJECTS[case]
    error = refused(save(state))
    assert words in str(error)
    assert error.code in ("pickle", "unknown-dtype")


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_are_refused(save: Callable[[Any], bytes]) -> None:
    error = refused(save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}))
    assert "_rebuild_qtensor" in str(error)


def test_the_crafted_program_is_read_when_it_is_right() -> None:
    data = struct.pack("<4f", *range(4))
    assert load(torch_zip(tensor_program([2, 2], [2, 1], 4), {"0": data})) == {"w": RawTensor("F32", (2, 2), data)}


CRAFTED = {
    "tensor over its storage": torch_zip(tensor_program([8], [1], 4), {"0": bytes(16)}),
    "offset over its storage": torch_zip(tensor_program([4], [1], 4, offset=4), {"0": bytes(16)}),
    "expanded to more than the file": torch_zip(tensor_program([1 << 20], [0], 4), {"0": bytes(16)}),
    "expanded to 2^60": torch_zip(tensor_program([1 << 60], [0], 4), {"0": bytes(16)}),
    "product overflow": torch_zip(tensor_program([1 << 40, 1 << 40], [0, 0], 4), {"0": bytes(16)}),
    "storage of 2^60": torch_zip(tensor_program([4], [1], 1 << 60), {"0": bytes(16)}),
    "shape of 2^60": torch_zip(tensor_program([1 << 60], [1], 4), {"0": bytes(16)}),
    "number of 2^70": torch_zip(tensor_program([1 << 70], [1], 4), {"0": bytes(16)}),
    "negative": torch_zip(tensor_program([-4], [1], 4), {"0": bytes(16)}),
    "storage too short": torch_zip(tensor_program([4], [1], 4), {"0": bytes(8)}),
    "no such storage": torch_zip(tensor_program([4], [1], 4)),
    "no program": torch_zip(b""),
    "no end": torch_zip(b"\x80\x02}"),
    "empty stack": torch_zip(b"\x80\x02."),
    "two programs": torch_zip(b"\x80\x02}.", {"data.pkl": b"\x80\x02}."}),
    "a call of a storage": torch_zip(b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R."),
    "a call of a tensor class": torch_zip(b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R."),
    "bytes of any length": torch_zip(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
    # Each holds the one before it twice; a key or a message made of the last one would never be done.
    "tuples doubled": torch_zip(b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns."),
    "lists doubled": torch_zip(b"\x80\x02]" + b"q\0]q\1h\0ah\0a" * 60 + b")R."),
    "storage named by a list": torch_zip(b"\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\n]X\3\0\0\0cpuK\1tQ."),
    "a mark too few": torch_zip(b"\x80\x02t."),
    "an unknown memo": torch_zip(b"\x80\x02h\x07."),
    "legacy of one pickle": pickle.dumps({"w": 1}, protocol=2),
    "legacy of five pickles": pickle.dumps({"w": 1}, protocol=2) * 5,
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_programs_are_refused(case: str) -> None:
    assert refused(CRAFTED[case]).code in ("pickle", "truncated")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripts_are_refused() -> None:
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), out)
    assert "TorchScript" in str(refused(out.getvalue()))


def test_members_that_unpack_to_more_than_they_could_hold() -> None:
    data = torch_zip(tensor_program([5_000_000], [1], 5_000_000), {"0": bytes(20_000_000)}, zipfile.ZIP_DEFLATED)
    assert refused(data).code == "zip-bomb"
    honest = torch_zip(tensor_program([1000], [1], 1000), {"0": bytes(4000)}, zipfile.ZIP_DEFLATED)
    assert load(honest) == {"w": RawTensor("F32", (1000,), bytes(4000))}


def test_storages_handed_out_many_times() -> None:
    base = torch.ones(100_000)
    assert len(load(saved({str(i): base for i in range(3)}))) == 3
    assert "share" in str(refused(saved({str(i): base for i in range(5)})))


def test_programs_with_too_many_opcodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nola_codec.stores.pickle_scan._MAX_OPCODES", 1000)
    assert "more than 1000 opcodes" in str(refused(torch_zip(b"\x80\x02" + b"}" * 1001 + b".")))


def test_a_dict_whose_methods_were_replaced() -> None:
    """Attributes of an OrderedDict come out of the pickle; none of them is taken for a method."""
    attributes = b"".join(pickled(name) + b"K\1s" for name in ("items", "get", "values", "keys"))
    program = tensor_program([1], [1], 1, start=b"ccollections\nOrderedDict\n)R}" + attributes + b"b")
    data = struct.pack("<f", 1)
    assert load(torch_zip(program, {"0": data})) == {"w": RawTensor("F32", (1,), data)}


def test_the_environment_cannot_turn_the_check_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    refused(saved({"x": Run(os.system, "touch owned")}))
    assert list(tmp_path.iterdir()) == []
