"""`--format`: the real library loads what is written, and it moves the model by the right amount; or a reason is given.

A source of every dialect is a small file that is built here with the same factors and the same scaling. The language
model is a Llama of Transformers, the image model a UNet of Diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nola_codec.adapters import read, write
from nola_codec.adapters.conversion import convert
from nola_codec.adapters.dialects.dialect_names import TARGET_DIALECTS
from nola_codec.adapters.dialects.mlx_names import from_mlx, to_mlx
from nola_codec.errors import AdapterError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

LLAMA = {
    "model_type": "llama", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
IDS = torch.tensor([[1, 5, 9, 3]])
RANK, SCALING = 4, 2.0
LLAMA_LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
UNET_BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET_LEAVES = ("attn1.to_q", "attn1.to_out.0", "ff.net.2")

Factors = dict[str, tuple[Tensor, Tensor]]
Tensors = dict[str, Tensor]


def random_factors(model: nn.Module, paths: list[str]) -> Factors:
    generator = torch.Generator().manual_seed(3)
    found = {}
    for path in paths:
        out, into = model.get_submodule(path).weight.shape
        shapes = ((RANK, into), (out, RANK))
        found[path] = tuple(torch.randn(shape, generator=generator) * 0.3 for shape in shapes)
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA, initializer_range=0.2)).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def llama_factors(llama: LlamaForCausalLM) -> Factors:
    return random_factors(llama, [f"model.layers.{layer}.{leaf}" for layer in range(2) for leaf in LLAMA_LEAVES])


@pytest.fixture(scope="module")
def unet_factors(unet: UNet2DConditionModel) -> Factors:
    return random_factors(unet, [f"{UNET_BLOCK}.{leaf}" for leaf in UNET_LEAVES])


def apply(model: nn.Module, factors: Factors) -> Tensors:
    """The weights of the model after the deltas, by the path of the module."""
    return {path: model.get_submodule(path).weight + SCALING * b @ a for path, (a, b) in factors.items()}


# Sources.


def permute(weights: Tensor, heads: int) -> Tensor:
    """What llama.cpp's converter does to queries and keys."""
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def save_peft(folder: Path, factors: Factors, **config: Any) -> Path:
    folder.mkdir(parents=True)
    tensors: Tensors = {}
    for path, (a, b) in factors.items():
        tensors |= {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    names = {"peft_type": "LORA", "r": RANK, "lora_alpha": SCALING * RANK, "target_modules": sorted(factors), **config}
    (folder / "adapter_config.json").write_text(json.dumps(names))
    return folder


def save_mlx(folder: Path, factors: Factors) -> Path:
    folder.mkdir(parents=True)
    tensors: Tensors = {}
    for path, (a, b) in factors.items():
        tensors |= {f"{path}.lora_a": a.T.contiguous(), f"{path}.lora_b": b.T.contiguous()}
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": RANK, "scale": SCALING, "keys": list(LLAMA_LEAVES)}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def save_gguf(folder: Path, factors: Factors) -> Path:
    import gguf

    folder.mkdir(parents=True)
    leaves = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.down_proj": "ffn_down"}
    writer = gguf.GGUFWriter(folder / "a.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", SCALING * RANK)
    for path, (a, b) in factors.items():
        _, _, layer, leaf = path.split(".", 3)
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(leaf)
        writer.add_tensor(f"blk.{layer}.{leaves[leaf]}.weight.lora_a", a.numpy())
        writer.add_tensor(f"blk.{layer}.{leaves[leaf]}.weight.lora_b", (permute(b, heads) if heads else b).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "a.gguf"


def save_pairs(ends: tuple[str, str], name: Callable[[str], str], *, alpha: bool = False) -> Callable[..., Path]:
    """Save the pairs in one file; without an alpha, the scaling is multiplied into lora_B."""

    def save(folder: Path, factors: Factors) -> Path:
        folder.mkdir(parents=True)
        tensors: Tensors = {}
        for path, (a, b) in factors.items():
            tensors |= {name(path) + ends[0]: a, name(path) + ends[1]: b if alpha else b * SCALING}
            if alpha:
                tensors[name(path) + ".alpha"] = torch.tensor(SCALING * RANK)
        save_file(tensors, folder / "a.safetensors")
        return folder / "a.safetensors"

    return save


LANGUAGE_SOURCES: dict[str, Callable[[Path, Factors], Path]] = {
    "peft": save_peft,
    "mlx": save_mlx,
    "gguf": save_gguf,
    "loralib": save_pairs((".lora_A", ".lora_B"), str),
}
IMAGE_SOURCES: dict[str, Callable[[Path, Factors], Path]] = {
    "peft": lambda folder, factors: save_peft(
        folder,
        factors,
        auto_mapping={"base_model_class": "UNet2DConditionModel", "parent_library": "diffusers.models.unets"},
    ),
    "kohya": save_pairs(
        (".lora_down.weight", ".lora_up.weight"), lambda path: f"lora_unet_{path.replace('.', '_')}", alpha=True
    ),
    "diffusers": save_pairs((".lora_A.weight", ".lora_B.weight"), lambda path: f"unet.{path}"),
    "diffusers-old": save_pairs((".lora.down.weight", ".lora.up.weight"), lambda path: f"unet.{path}"),
}


# Loaders: each returns the changed weights, by the path of the module.


def load_peft(model: nn.Module, where: Path) -> Tensors:
    adapted = PeftModel.from_pretrained(model, where)
    try:
        wanted = load_file(where / "adapter_model.safetensors")
        state = {key.replace(".default", ""): value for key, value in adapted.state_dict().items()}
        assert all(torch.equal(state[key], value) for key, value in wanted.items())
        assert {key for key in state if "lora_" in key} == set(wanted)
        layers = {name: m for name, m in adapted.base_model.model.named_modules() if hasattr(m, "lora_A")}
        return {name: m.base_layer.weight + m.get_delta_weight("default") for name, m in layers.items()}
    finally:
        adapted.unload()


def load_diffusers(model: UNet2DConditionModel, where: Path) -> Tensors:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(where), weight_name="pytorch_lora_weights.safetensors", return_lora_metadata=True, local_files_only=True
    )
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(
        state, network_alphas=alphas, unet=model, adapter_name="a", metadata=metadata
    )
    try:
        layers = {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and m.lora_A}
        return {name: m.base_layer.weight + m.get_delta_weight("a") for name, m in layers.items()}
    finally:
        model.unload_lora()


def load_mlx(model: nn.Module, where: Path) -> Tensors:
    """What `load_adapters` of mlx-lm does: each factor must have its module in one of the chosen layers."""
    config = json.loads((where / "adapter_config.json").read_text())
    parameters = config["lora_parameters"]
    layers = list(model.model.layers)  # type: ignore[union-attr, arg-type]
    chosen = range(len(layers))[-max(config["num_layers"], 0) :]
    allowed = {f"model.layers.{layer}.{key}" for layer in chosen for key in parameters["keys"]}
    found: Tensors = {}
    tensors = load_file(where / "adapters.safetensors")
    for path in {key.rpartition(".")[0] for key in tensors}:
        assert path in allowed
        a, b = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
        assert a.shape[1] == b.shape[0] == parameters["rank"]
        weight = model.get_submodule(path).weight
        found[path] = weight + parameters["scale"] * (a @ b).T  # type: ignore[operator]
    return found


def load_gguf(model: nn.Module, where: Path) -> Tensors:
    """What llama.cpp computes from its own tensors: alpha / r times lora_b @ lora_a, on permuted queries and keys."""
    from gguf import GGUFReader

    reader = GGUFReader(where / "adapter.gguf")
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    leaves = {"attn_q": ("self_attn.q_proj", 4), "attn_k": ("self_attn.k_proj", 2), "ffn_down": ("mlp.down_proj", 0)}
    found = {}
    for name in {key.rpartition(".")[0] for key in tensors}:
        _, layer, leaf, _ = name.split(".")
        path, heads = f"model.layers.{layer}.{leaves[leaf][0]}", leaves[leaf][1]
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        weight = model.get_submodule(path).weight
        changed = (permute(weight, heads) if heads else weight) + alpha / len(a) * b @ a  # type: ignore[arg-type, operator]
        if heads:
            halves = changed.reshape(heads, len(changed) // heads // 2, 2, -1)
            changed = halves.swapaxes(1, 2).reshape(changed.shape)
        found[path] = changed
    return found


def load_loralib(model: nn.Module, where: Path) -> Tensors:
    """The layers of loralib with lora_alpha = r."""
    tensors = load_file(where / "lora.safetensors")
    found = {}
    for path in {key.rpartition(".")[0] for key in tensors}:
        found[path] = model.get_submodule(path).weight + tensors[f"{path}.lora_B"] @ tensors[f"{path}.lora_A"]
    return found


def load_kohya(model: UNet2DConditionModel, where: Path) -> Tensors:
    """Diffusers' own converter of kohya's files."""
    folder = where.parent / "renamed"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes((where / "lora.safetensors").read_bytes())
    return load_diffusers(model, folder)


LOADERS: dict[str, Callable[..., Tensors]] = {
    "peft": load_peft, "diffusers": load_diffusers, "diffusers-old": load_diffusers, "kohya": load_kohya,
    "mlx": load_mlx, "gguf": load_gguf, "loralib": load_loralib,
}  # fmt: skip

# Why a target is refused, by the kind of model and the target.
REFUSALS = {
    ("language", "kohya"): "component of an image model",
    ("language", "diffusers"): "loads LoRA into the components of a pipeline",
    ("language", "diffusers-old"): "only attention projections",
    ("image", "mlx"): "layers of a language model",
    ("image", "gguf"): "no such tensor",
    ("image", "diffusers-old"): "only attention projections",  # because of ff.net.2
}
PAIRS = [("language", source, target) for source in LANGUAGE_SOURCES for target in TARGET_DIALECTS]
PAIRS += [("image", source, target) for source in IMAGE_SOURCES for target in TARGET_DIALECTS]


@pytest.fixture
def models(
    llama: LlamaForCausalLM, unet: UNet2DConditionModel, llama_factors: Factors, unet_factors: Factors
) -> dict[str, Any]:
    return {"language": (llama, llama_factors, LANGUAGE_SOURCES), "image": (unet, unet_factors, IMAGE_SOURCES)}


@pytest.mark.parametrize(("kind", "source", "target"), PAIRS)
def test_matrix(kind: str, source: str, target: str, models: dict[str, Any], tmp_path: Path) -> None:
    """From each dialect to each: loaded, and the weights are equal to 1e-6; or refused, and the part is named."""
    model, factors, sources = models[kind]
    adapter = read(sources[source](tmp_path / "source", factors))
    assert adapter.dialect == source
    if (kind, target) in REFUSALS and source != target:
        with pytest.raises(AdapterError, match=REFUSALS[kind, target]) as caught:
            convert(adapter, target, LLAMA)
        assert caught.value.code == "not-expressible"
        assert any(path.replace(".", "_") in caught.value.where.replace(".", "_") for path in factors)
        return
    written = write(convert(adapter, target, LLAMA), tmp_path / "written")
    with torch.no_grad():
        whole = (
            nn.ModuleDict({"unet": model}) if kind == "image" and target == "loralib" and source != "peft" else model
        )
        found = {path.removeprefix("unet."): weight for path, weight in LOADERS[target](whole, written).items()}
        wanted = apply(model, factors)
    assert found.keys() == wanted.keys()
    for path, weight in wanted.items():
        torch.testing.assert_close(found[path], weight, rtol=0, atol=1e-6)


# Names that are no image model's.

GPT2_PATHS = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]
OTHERS = {
    "GPT-J": "transformer.h.0.attn.q_proj",
    "BLOOM, Falcon": "transformer.h.0.self_attention.query_key_value",
    "GPT-NeoX": "gpt_neox.layers.0.attention.query_key_value",
    "OPT": "model.decoder.layers.0.self_attn.q_proj",
    "DistilBERT": "transformer.layer.0.attention.q_lin",
    "ChatGLM": "transformer.encoder.layers.0.self_attention.query_key_value",
    "MPT": "transformer.blocks.0.attn.Wqkv",
    "OpenELM": "transformer.layers.0.attn.qkv_proj",
    "XLNet": "transformer.layer.0.rel_attn.q",
    "Llama": "model.layers.0.self_attn.q_proj",
}


def pairs_of(paths: list[str], into: int = 6, out: int = 4) -> Factors:
    return {path: (torch.ones(RANK, into), torch.ones(out, RANK)) for path in paths}


@pytest.mark.parametrize("path", [*OTHERS.values(), *GPT2_PATHS])
@pytest.mark.parametrize("source", ["peft", "loralib"])
@pytest.mark.parametrize("target", ["kohya", "diffusers", "diffusers-old"])
def test_language_models_have_no_component(path: str, source: str, target: str, tmp_path: Path) -> None:
    """GPT-2's ``transformer.h`` is no component of a pipeline, and neither are those of other language models."""
    adapter = read(LANGUAGE_SOURCES[source](tmp_path / "source", pairs_of([path])))
    with pytest.raises(AdapterError) as caught:
        convert(adapter, target)
    assert caught.value.code == "not-expressible"
    assert path in caught.value.where


def test_gpt2_keeps_its_inner_model(tmp_path: Path) -> None:
    """loralib to PEFT: ``transformer.`` stays in the keys, and PEFT loads all of them (Conv1D stores (in, out))."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8)).eval()
    shapes = {path: model.get_submodule(path).weight.shape for path in GPT2_PATHS}
    factors = {path: (torch.randn(RANK, i), torch.randn(o, RANK)) for path, (i, o) in shapes.items()}
    adapter = read(LANGUAGE_SOURCES["loralib"](tmp_path / "source", factors))
    written = write(convert(adapter, "peft"), tmp_path / "peft")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        found = load_peft(model, written)
    for path, (a, b) in factors.items():
        wanted = model.get_submodule(path).weight + SCALING * (b @ a).T
        torch.testing.assert_close(found[path], wanted, rtol=0, atol=1e-5)


MLX_NAMES = {
    ("gpt2", "transformer.h.3.attn.c_attn"): "model.h.3.attn.c_attn",
    ("gpt_bigcode", "transformer.h.3.attn.c_attn"): "transformer.h.3.attn.c_attn",
    ("gptj", "transformer.h.3.attn.q_proj"): "model.h.3.attn.q_proj",
    ("gpt_neox", "gpt_neox.layers.3.attention.query_key_value"): "model.h.3.attention.query_key_value",
    ("phi", "model.layers.3.self_attn.dense"): "model.layers.3.self_attn.dense",
}


@pytest.mark.parametrize(("model_type", "path"), MLX_NAMES)
def test_mlx_calls_layers_by_its_own_names(model_type: str, path: str) -> None:
    """The names of `mlx_lm/models`, and the way back. MLX loads no adapter with a name that its model lacks."""
    assert to_mlx(path, {"model_type": model_type}) == MLX_NAMES[model_type, path]
    assert from_mlx(MLX_NAMES[model_type, path]) == path


@pytest.mark.parametrize("path", [OTHERS[name] for name in ("OPT", "BLOOM, Falcon", "DistilBERT", "ChatGLM", "MPT")])
def test_mlx_has_no_such_model(path: str) -> None:
    with pytest.raises(AdapterError, match="no model of mlx-lm") as caught:
        to_mlx(path, None)
    assert path in str(caught.value)


def test_gpt2_in_mlx_needs_the_base() -> None:
    with pytest.raises(AdapterError, match="GPT-BigCode") as caught:
        to_mlx(GPT2_PATHS[0], None)
    assert caught.value.code == "needs-base"


def test_gguf_names_the_head(tmp_path: Path) -> None:
    """Case 26: a saved lm_head has no place in a GGUF adapter; factors of a tied one have no tensor in the model."""
    path = "model.layers.0.self_attn.q_proj"
    factors = pairs_of([path], 16, 16)
    save_peft(tmp_path / "saved", factors, modules_to_save=["lm_head"])
    file = tmp_path / "saved" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.weight": torch.ones(20, 16)}, file)
    with pytest.raises(AdapterError, match=r"lm_head\.weight") as caught:
        convert(read(tmp_path / "saved"), "gguf", LLAMA)
    assert caught.value.code == "not-expressible"
    head = read(save_peft(tmp_path / "head", pairs_of([path, "lm_head"], 16, 16)))
    assert convert(head, "gguf", LLAMA).modules[1].name == "output.weight"
    with pytest.raises(AdapterError, match="lm_head") as caught:
        convert(head, "gguf", {**LLAMA, "tie_word_embeddings": True})
    assert caught.value.code == "not-expressible"


def test_peft_finds_a_component_by_its_modules(tmp_path: Path) -> None:
    """A UNet's modules tell the component without ``auto_mapping``; those of a model that nobody knows do not."""
    adapter = read(save_peft(tmp_path / "unet", pairs_of([f"{UNET_BLOCK}.attn1.to_q"])))
    assert convert(adapter, "diffusers").modules[0].name == f"unet.{UNET_BLOCK}.attn1.to_q"
    strange = read(save_peft(tmp_path / "strange", pairs_of(["blocks.0.attn.to_q"])))
    with pytest.raises(AdapterError, match="components of a pipeline"):
        convert(strange, "diffusers")
