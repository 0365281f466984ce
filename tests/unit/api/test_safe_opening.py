"""`safe_open`, `nola_codec.torch` and `nola_codec.numpy`: the shape of safetensors, and the values of `state_dict`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from nola_forge import GOLDEN, golden_names

import nola_codec
import nola_codec.numpy
import nola_codec.torch
from nola_codec.api.opened import Decoder

GOLDEN_FILES = [GOLDEN / f"{name}.nola" for name in golden_names()]
A, B = ".lora_A.weight", ".lora_B.weight"
RATE: dict[str, Any] = {"num_basis": 8, "bits": 4}


def lora(names: tuple[str, ...] = ("x", "y"), prefix: str = "base_model.model.") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {A: (4, 12), B: (10, 4)}
    return {
        prefix + name + end: rng.standard_normal(shape).astype(np.float32)
        for name in names
        for end, shape in shapes.items()
    }


CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["x", "y"]}


@pytest.fixture(scope="module")
def file() -> bytes:
    return nola_codec.numpy.save(lora(), {"note": "mine"}, config=CONFIG, **RATE)


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_each_golden_file_gives_its_state_dict(path: Path) -> None:
    with nola_codec.load(path) as opened:
        wanted = opened.state_dict()
    with nola_codec.safe_open(path) as found:
        assert set(found.keys()) == set(found) == set(wanted)
        assert len(found) == len(wanted)
        for key in reversed(found.keys()):
            tensor = found.get_tensor(key)
            assert tensor.dtype == wanted[key].dtype
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), wanted[key].reshape(-1).view(torch.uint8)), key
            part = found.get_slice(key)
            assert part.get_shape() == list(tensor.shape)


def kohya() -> dict[str, np.ndarray]:
    made = {}
    for name, tensor in lora(("a_to_q", "b_to_k"), "lora_unet_").items():
        made[name.replace(A, ".lora_down.weight").replace(B, ".lora_up.weight")] = tensor
    return made | {f"lora_unet_{name}.alpha": np.float32(alpha) for name, alpha in (("a_to_q", 2), ("b_to_k", 3))}


def lokr() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5), "alpha": ()}
    return {f"lora_unet_mid.{part}": np.float32(rng.standard_normal(shape)) for part, shape in shapes.items()}


def mlx() -> dict[str, np.ndarray]:
    plain = lora(("model.layers.0.self_attn.q_proj",), "")
    return {
        key.replace(A, ".lora_a").replace(B, ".lora_b"): np.ascontiguousarray(tensor.T) for key, tensor in plain.items()
    }


def with_head() -> dict[str, np.ndarray]:
    head = np.random.default_rng(2).standard_normal((6, 8)).astype(np.float32)
    return lora() | {"base_model.model.lm_head.weight": head}


SAVED = {**CONFIG, "modules_to_save": ["lm_head"]}
SOURCES: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "kohya": (kohya(), RATE),
    "lokr": (kohya() | lokr(), {"nmse": 0.01}),
    "mlx": (mlx(), {"scale": 2.0, **RATE}),
    "diffusers": (lora(("unet.a.to_q", "unet.b.to_k"), ""), {"scale": 1.0, **RATE}),
    "head-int8": (with_head(), {"config": SAVED, "carried": "int8", **RATE}),
    "head-coded": (with_head(), {"config": SAVED, "carried": "coded", "nmse": 0.01}),
    "head-exact": (with_head(), {"config": SAVED, **RATE}),
    "progressive": (lora(), {"config": CONFIG, "size": 900, "progressive": True}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_each_dialect_and_form_gives_its_state_dict(kind: str) -> None:
    tensors, options = SOURCES[kind]
    data = nola_codec.numpy.save(tensors, **options)
    for rung in (0, None) if kind == "progressive" else (None,):
        with nola_codec.load(data, rung=rung) as opened, nola_codec.safe_open(data, rung=rung) as found:
            wanted = opened.state_dict()
            assert set(found.keys()) == set(tensors) == set(wanted)
            for key in found:
                assert found.get_slice(key).get_shape() == list(tensors[key].shape)
                assert torch.equal(found.get_tensor(key), wanted[key])
    assert found.digest == opened.digest


def test_the_shape_of_safetensors(file: bytes, tmp_path: Path) -> None:
    """Every method that `safetensors.safe_open` has for reading is here, with results of the same types."""
    safetensors.numpy.save_file(lora(), tmp_path / "a.safetensors", {"note": "mine"})
    (tmp_path / "a.nola").write_bytes(file)
    opened: list[Any] = [
        safetensors.safe_open(tmp_path / "a.safetensors", framework="np"),
        nola_codec.safe_open(tmp_path / "a.nola", framework="np"),
    ]
    peer, own = opened
    missing = {name for name in dir(peer) if not name.startswith("_")} - set(dir(own))
    assert missing <= {"keys_and_shapes", "prefetch", "iter_tensors", "tensor_iter"}, missing
    for each in opened:
        with each as found:
            key = next(key for key in found.keys() if key.endswith(A))  # noqa: SIM118 - safetensors has no iteration
            assert found.metadata()["note"] == "mine"
            part = found.get_slice(key)
            assert (part.get_shape(), part.get_dtype()) == ([4, 12], "F32")
            assert part[1:3, ::2].shape == (2, 6)
            assert np.array_equal(part[:, 2], found.get_tensor(key)[:, 2])
            assert found.get_tensor(key).flags.writeable
            assert set(found.offset_keys()) == set(found.keys())
    assert key in own
    assert "nothing" not in own
    assert repr(own).startswith(
        f"safe_open('{tmp_path / 'a.nola'}', peft, 2 modules, {len(file)} bytes, content SHA-256 "
    )
    assert repr(own.get_slice(key)) == f"TensorSlice({key!r}, dtype=F32, shape=[4, 12])"


def test_only_what_is_asked_for_is_decoded(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = Decoder.decode

    def spy(self: Decoder, indexes: Any = None) -> Any:
        decoded.extend(range(len(self.header.coded)) if indexes is None else indexes)
        return decode(self, indexes)

    monkeypatch.setattr(Decoder, "decode", spy)
    with nola_codec.safe_open(file, framework="np") as found:
        assert len(found.keys()) == 4
        part = found.get_slice("base_model.model.y" + B)
        assert part.get_shape() == [10, 4]
        assert decoded == []
        found.get_tensor("base_model.model.y" + A)
        assert part[0].shape == (4,)
        assert decoded == [1]  # both factors are of one record, which was decoded once
        found.get_tensor("base_model.model.x" + A)
        assert decoded == [1, 0]


def test_dtypes_and_devices(file: bytes) -> None:
    exact = nola_codec.torch.load(file)
    with nola_codec.safe_open(file, dtype="bf16") as found:
        key = found.keys()[0]
        assert found.get_slice(key).get_dtype() == "BF16"
        assert torch.equal(found.get_tensor(key), exact[key].bfloat16())
    with nola_codec.safe_open(file, "torch", torch.device("cpu")) as found:
        assert torch.equal(found.get_tensor(key), exact[key])
    for options, words in (
        ({"framework": "tf"}, 'framework: expected "pt" or "np"'),
        ({"framework": "np", "device": "cuda"}, "leave out device"),
        ({"dtype": "f8"}, "dtype"),
    ):
        with pytest.raises(nola_codec.NolaError, match=words) as caught:
            nola_codec.safe_open(file, **options)  # type: ignore[call-overload]
        assert caught.value.code == "option"
    for call in (found.get_tensor, found.get_slice):
        with pytest.raises(nola_codec.AdapterError, match="nothing: no such tensor") as refused:
            call("nothing")
        assert refused.value.code == "no-such-tensor"


def test_a_damaged_block_is_noticed_by_the_tensor(file: bytes) -> None:
    bad = bytearray(file)
    bad[-3] ^= 1
    with pytest.raises(nola_codec.ChecksumMismatch):
        nola_codec.safe_open(bytes(bad))
    with nola_codec.safe_open(bytes(bad), verify=False) as found:
        with pytest.raises(nola_codec.ChecksumMismatch) as caught:
            found.get_tensors()
        assert caught.value.code == "section-checksum"


def test_files_are_saved_and_loaded_as_with_safetensors(tmp_path: Path) -> None:
    for module, convert in ((nola_codec.torch, torch.from_numpy), (nola_codec.numpy, lambda array: array)):
        tensors = {key: convert(tensor) for key, tensor in lora().items()}
        path = tmp_path / f"{module.__name__}.nola"
        report = module.save_file(tensors, path, config=CONFIG, size="1KB")  # type: ignore[attr-defined]
        assert path.stat().st_size == report.bytes <= 1000
        with pytest.raises(nola_codec.OutputExists):
            module.save_file(tensors, path, config=CONFIG)  # type: ignore[attr-defined]
        one, two = module.load_file(path), module.load(path.read_bytes())  # type: ignore[attr-defined]
        with nola_codec.load(path, "numpy") as opened:
            for key, tensor in opened.state_dict().items():
                assert type(one[key]) is type(tensors[key])
                assert np.array_equal(one[key], tensor)
                assert np.array_equal(two[key], tensor)
            assert opened.config == json.loads(json.dumps(CONFIG))


def test_no_scaling_is_assumed(tmp_path: Path) -> None:
    for save in (nola_codec.torch.save_file, nola_codec.numpy.save_file):
        with pytest.raises(nola_codec.AdapterError, match=r"give config=.*, or scale=1 if") as caught:
            save(lora(), tmp_path / "a.nola", **RATE)  # type: ignore[operator]
        assert caught.value.code == "scale-unknown"
        assert not (tmp_path / "a.nola").exists()
    nola_codec.numpy.save_file(lora(), tmp_path / "a.nola", scale=3.0, **RATE)
    assert {m.scaling for m in nola_codec.read_adapter(tmp_path / "a.nola").modules} == {3.0}
    nola_codec.numpy.save(kohya(), **RATE)  # alphas say it


def test_the_digests_of_a_file(file: bytes) -> None:
    wanted = nola_codec.verify(file)
    with nola_codec.load(file, "numpy") as opened, nola_codec.safe_open(file) as found:
        for each in (opened, found):
            assert each.digest == each.content_sha256 == wanted["content_sha256"]
            assert each.decoded_sha256 == wanted["decoded_sha256"]
            assert each.config == CONFIG
        short = wanted["content_sha256"][:12]
        assert repr(opened) == f"NolaFile('bytes', peft, 2 modules, {len(file)} bytes, content SHA-256 {short})"


def test_numpy_needs_no_torch(file: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nola").write_bytes(file)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import nola_codec, nola_codec.numpy, nola_codec.torch\n"
        "print(len(nola_codec.numpy.load_file('a.nola')))\n"
        "with nola_codec.safe_open('a.nola', framework='np') as f: print(f.get_tensor(f.keys()[0]).shape)\n"
        "try:\n    nola_codec.safe_open('a.nola')\n"
        "except nola_codec.MissingPackage as error:\n    print(error.code)\n"
    )
    root = Path(nola_codec.__file__).parents[1]
    command = [sys.executable, "-c", code]
    env = {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("4\n(4, 12)\nneeds-torch\n", "")
