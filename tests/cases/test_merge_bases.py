"""Base models as people have them: variants, pickles, files side by side, and quantized ones, refused by name.

The right value of each weight is W + alpha / r * B @ A, rounded once, with the factors of the decoded adapter.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.errors import AdapterError

Tensors = dict[str, torch.Tensor]
N, RANK, ALPHA = 8, 2, 4
WEIGHTS = [f"layers.{n}.q_proj.weight" for n in range(2)]
LLAMA = {"model_type": "llama", "architectures": ["LlamaModel"]}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    """An adapter of two layers, encoded; and the delta of each weight."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("adapter")
    names = [f"base_model.model.{name.removesuffix('.weight')}" for name in WEIGHTS]
    factors = {f"{name}.lora_{side}.weight": torch.randn((RANK, N) if side == "A" else (N, RANK))
               for name in names for side in "AB"}  # fmt: skip
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    nola_codec.encode(folder, folder / "a.nola", nmse=0.01)
    again = load_file(nola_codec.decode(folder / "a.nola", folder / "again") / "adapter_model.safetensors")
    product = {
        name: again[f"{name}.lora_B.weight"].double() @ again[f"{name}.lora_A.weight"].double() for name in names
    }
    return folder / "a.nola", {w: ALPHA / RANK * product[n] for w, n in zip(WEIGHTS, names, strict=True)}


def weights(dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(N, N, generator=generator).to(dtype) for name in WEIGHTS}


def index(folder: Path, name: str, files: Mapping[str, str]) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict(files)}))


def fp16_alone(folder: Path) -> Tensors:
    save_file(weights(torch.float16), folder / "diffusion_pytorch_model.fp16.safetensors")
    return weights(torch.float16)


def fp16_beside_plain(folder: Path) -> Tensors:
    fp16_alone(folder)
    save_file(weights(), folder / "diffusion_pytorch_model.safetensors")
    return weights()


def fp16_shards(folder: Path) -> Tensors:
    files = {}
    for n, (name, tensor) in enumerate(weights(torch.float16).items()):
        files[name] = f"model.fp16-0000{n + 1}-of-00002.safetensors"
        save_file({name: tensor}, folder / files[name])
    index(folder, "model.safetensors.index.fp16.json", files)
    return weights(torch.float16)


def consolidated(folder: Path) -> Tensors:
    save_file(weights(), folder / "model.safetensors")
    save_file({name.replace("q_proj", "wq"): t for name, t in weights().items()}, folder / "consolidated.safetensors")
    return weights()


def pickle(folder: Path, name: str = "pytorch_model.bin") -> Tensors:
    torch.save(weights(), folder / name)
    return weights()


def pickle_of_diffusers(folder: Path) -> Tensors:
    return pickle(folder, "diffusion_pytorch_model.bin")


def pickled_shards(folder: Path) -> Tensors:
    files = {}
    for n, (name, tensor) in enumerate(weights(torch.bfloat16).items()):
        files[name] = f"pytorch_model-0000{n + 1}-of-00002.bin"
        torch.save({name: tensor}, folder / files[name])
    index(folder, "pytorch_model.bin.index.json", files)
    return weights(torch.bfloat16)


BASES: dict[Callable[[Path], Tensors], list[str]] = {
    fp16_alone: ["diffusion_pytorch_model.fp16.safetensors"],
    fp16_beside_plain: ["diffusion_pytorch_model.safetensors"],
    fp16_shards: ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
    consolidated: ["model.safetensors"],
    pickle: ["model.safetensors"],
    pickle_of_diffusers: ["diffusion_pytorch_model.safetensors"],
    pickled_shards: ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
}


def check(found: Tensors, base: Tensors, changes: Tensors) -> None:
    assert found.keys() == base.keys()
    for name, value in base.items():
        wanted = (value.double() + changes[name]).to(value.dtype)
        torch.testing.assert_close(found[name], wanted, rtol=2e-6 if value.dtype == torch.float32 else 0, atol=2e-6)


@pytest.mark.parametrize("make", BASES, ids=lambda make: make.__name__)
def test_merged(make: Callable[[Path], Tensors], coded: tuple[Path, Tensors], tmp_path: Path) -> None:
    """Case 41 a to d and f: the plain file goes before a variant, and pickles of plain tensors are read."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(LLAMA))
    (base / "generation_config.json").write_text("{}")
    stored = make(base)
    nola_codec.decode(coded[0], tmp_path / "out", base=base)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in files] == BASES[make]
    check({name: tensor for path in files for name, tensor in load_file(path).items()}, stored, coded[1])
    assert (tmp_path / "out" / "generation_config.json").exists()
    if len(files) > 1:
        (name,) = [path.name for path in (tmp_path / "out").glob("*.index*.json")]
        listed = json.loads((tmp_path / "out" / name).read_text())["weight_map"]
        assert sorted(set(listed.values())) == BASES[make]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_lone_pickle(wrapped: bool, coded: tuple[Path, Tensors], tmp_path: Path) -> None:
    torch.save({"state_dict": weights()} if wrapped else weights(), tmp_path / "model.ckpt")
    nola_codec.decode(coded[0], tmp_path / "out.safetensors", base=tmp_path / "model.ckpt")
    check(load_file(tmp_path / "out.safetensors"), weights(), coded[1])


def several_variants(folder: Path) -> None:
    for variant in ("fp16", "bf16"):
        save_file(weights(), folder / f"diffusion_pytorch_model.{variant}.safetensors")


def gguf(folder: Path) -> None:
    (folder / "model-q4.gguf").write_bytes(b"GGUF" + bytes(60))


def flax(folder: Path) -> None:
    (folder / "flax_model.msgpack").write_bytes(b"\x80")


def loose_shards(folder: Path) -> None:
    for name, tensor in weights().items():
        save_file({name: tensor}, folder / f"{name}.safetensors")


def code_in_a_pickle(folder: Path) -> None:
    torch.save({"a": weights(), "model": torch.nn.Linear(2, 2)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (
            several_variants,
            "several-variants",
            "bf16.safetensors, diffusion_pytorch_model.fp16.safetensors; keep the one",
        ),
        (gguf, "quantized-base", "GGUF file of llama.cpp: merge into the safetensors model"),
        (flax, "missing-weights", "save it with save_pretrained"),
        (loose_shards, "missing-weights", "no model.safetensors.index.json to join them"),
        (code_in_a_pickle, "pickle", "pytorch_model.bin"),
    ],
)
def test_refused(
    make: Callable[[Path], None], code: str, words: str, coded: tuple[Path, Tensors], tmp_path: Path
) -> None:
    """Case 41: what cannot be read is named, with the next step, and nothing is written."""
    (tmp_path / "base").mkdir()
    make(tmp_path / "base")
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(coded[0], tmp_path / "out", base=tmp_path / "base")
    assert (caught.value.code, words in str(caught.value)) == (code, True), str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_no_undo_file_for_pickles(coded: tuple[Path, Tensors], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    pickle(tmp_path / "base")
    with pytest.raises(AdapterError) as caught:
        nola_codec.merge([coded[0]], tmp_path / "base", tmp_path / "out", keep_undo=True)
    assert caught.value.code == "needs-safetensors"


def packed(*endings: str, dtype: torch.dtype = torch.uint8, shape: tuple[int, ...] = (4,)) -> Tensors:
    """Tensors of a packed module, by the ends of their names."""
    return {
        name.removesuffix(".weight") + ending: torch.zeros(shape, dtype=dtype) for name in WEIGHTS for ending in endings
    }


F8 = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights().items()}
I8 = {name: tensor.to(torch.int8) for name, tensor in weights().items()}
QUANTIZED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "4 bit": (packed(".weight", ".weight.quant_state.bitsandbytes__nf4", ".weight.absmax"), {}, "bitsandbytes in 4"),
    "4 bit, by its config": (packed(".weight", shape=(32, 1)), {"quant_method": "bitsandbytes", "load_in_4bit": True},
                             "bitsandbytes in 4 bits"),
    "8 bit": (I8 | packed(".SCB", dtype=torch.float32), {}, "bitsandbytes in 8 bits"),
    "GPTQ": (packed(".qweight", ".qzeros", ".scales", ".g_idx"), {}, "GPTQ"),
    "GPTQ, by its config": (packed(".qweight", ".qzeros", ".scales"), {"quant_method": "gptq", "bits": 4}, "GPTQ"),
    "AWQ": (packed(".qweight", ".qzeros", ".scales"), {"quant_method": "awq"}, "AWQ"),
    "HQQ": (packed(".W_q", ".scale", ".zero"), {}, "HQQ"),
    "compressed-tensors": (packed(".weight_packed", ".weight_scale", ".weight_shape"), {}, "compressed-tensors"),
    "fine-grained FP8": (F8 | packed(".weight_scale_inv", dtype=torch.float32), {}, "FP8 with a scale for each block"),
    "FP8 and its config": (F8 | packed(".weight_scale_inv", dtype=torch.float32), {"quant_method": "fp8"}, "FP8"),
    "scales": (F8 | packed(".weight_scale", dtype=torch.float32), {}, "scaled weights"),
    "scales on floats": (weights() | packed(".weight_scale", dtype=torch.float32), {}, "scaled weights"),
    "ComfyUI": (F8 | packed(".scale_weight", dtype=torch.float32), {}, "ComfyUI's scaled FP8"),
    "bare FP8": (F8, {}, "F8_E4M3"),
    "MLX": (packed(".weight", dtype=torch.uint32, shape=(8, 1)) | packed(".scales", ".biases", dtype=torch.float16), {},
            "MLX"),
    "torchao": (packed("._weight_qdata", "._weight_scale"), {"quant_method": "torchao"}, "torchao"),
    "Quanto": (packed(".weight._data", ".weight._scale"), {}, "Quanto"),
    "NVFP4": (packed(".weight", ".weight_scale", ".weight_scale_2"), {}, "NVFP4"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "lone"),
    [(case, lone) for case in QUANTIZED for lone in (False, True) if not (lone and QUANTIZED[case][1])],
)
def test_quantized_bases_are_named(case: str, lone: bool, coded: tuple[Path, Tensors], tmp_path: Path) -> None:
    """Cases 41 e and 17: the method is named, whether the config tells it or only the tensors do."""
    tensors, quantization, words = QUANTIZED[case]
    (tmp_path / "base").mkdir()
    config = LLAMA | ({"quantization_config": quantization} if quantization else {})
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    base = tmp_path / "base" / ("model.safetensors" if lone else "")
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(coded[0], tmp_path / ("out.safetensors" if lone else "out"), base=base)
    assert caught.value.code == "quantized-base"
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{base}: {WEIGHTS[0]}: the weight is quantized")


def test_weights_that_a_method_skips_are_merged(coded: tuple[Path, Tensors], tmp_path: Path) -> None:
    """A model with quantized experts and plain attention takes an adapter of its attention."""
    experts = {"layers.0.experts.up_blocks": torch.zeros(4, dtype=torch.uint8),
               "layers.0.experts.up_scales": torch.zeros(4, dtype=torch.uint8)}  # fmt: skip
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(
        json.dumps(LLAMA | {"quantization_config": {"quant_method": "mxfp4"}})
    )
    save_file(weights() | experts, tmp_path / "base" / "model.safetensors")
    nola_codec.decode(coded[0], tmp_path / "out", base=tmp_path / "base")
    found = load_file(tmp_path / "out" / "model.safetensors")
    check({name: found[name] for name in WEIGHTS}, weights(), coded[1])


class Layers(torch.nn.Module):
    """A model in memory with the modules of `WEIGHTS`."""

    def __init__(self, make: Callable[[], torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"q_proj": make()}) for _ in range(2))


def fp8_with_scales() -> torch.nn.Module:
    """What transformers' FP8Linear holds."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(N, N).to(torch.float8_e4m3fn), requires_grad=False)
    module.weight_scale_inv = torch.nn.Parameter(torch.ones(2, 2))
    return module


def dynamic_of_torch() -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch will remove this method
        return torch.ao.nn.quantized.dynamic.Linear(N, N)


def packed_in_memory() -> torch.nn.Module:
    module = torch.nn.Linear(N, N, bias=False)
    module.weight = torch.nn.Parameter(torch.zeros(N * N // 2, 1, dtype=torch.uint8), requires_grad=False)
    return module


def buffers_of_gptq() -> torch.nn.Module:
    module = torch.nn.Module()
    for name in ("qweight", "qzeros", "scales", "g_idx"):
        module.register_buffer(name, torch.zeros(2, dtype=torch.int32))
    return module


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fp8_with_scales, "FP8 with a scale for each block"),
        (dynamic_of_torch, "PyTorch's own quantization"),
        (packed_in_memory, "stored as U8"),
        (buffers_of_gptq, "GPTQ"),
    ],
)
def test_quantized_modules_are_named(
    make: Callable[[], torch.nn.Module], words: str, coded: tuple[Path, Tensors]
) -> None:
    """Case 41 e: `merge_into` refuses what a merge on disk refuses."""
    with nola_codec.load(coded[0]) as file, pytest.raises(AdapterError) as caught:
        file.merge_into(Layers(make))
    assert caught.value.code == "quantized-base"
    assert words in str(caught.value)
