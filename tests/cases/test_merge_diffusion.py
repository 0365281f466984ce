"""Merging image and video adapters: the weights are found by every name that tools give them, or none is changed.

The right value of each weight is W + alpha / r * up @ down, rounded once, with the factors of the decoded adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.errors import AdapterError

Tensors = dict[str, torch.Tensor]
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
RANK, ALPHA, OUT, IN = 2, 1.0, 8, 6


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLA_THREADS", "1")
    torch.manual_seed(1)


def pair(module: str, out: int = OUT, inputs: int = IN, *, alpha: float | None = ALPHA, ab: bool = False) -> Tensors:
    """A pair of factors under a module's name: kohya's, or with `ab` those of diffusers."""
    down, up = ("lora_A", "lora_B") if ab else ("lora_down", "lora_up")
    made = {f"{module}.{down}.weight": torch.randn(RANK, inputs), f"{module}.{up}.weight": torch.randn(out, RANK)}
    return made if alpha is None or ab else {**made, f"{module}.alpha": torch.tensor(alpha)}


def delta(adapter: Mapping[str, torch.Tensor], module: str) -> torch.Tensor:
    """What a pair adds to its weight, in float64."""
    down = adapter.get(f"{module}.lora_down.weight", adapter.get(f"{module}.lora_A.weight"))
    up = adapter.get(f"{module}.lora_up.weight", adapter.get(f"{module}.lora_B.weight"))
    assert down is not None
    assert up is not None
    scale = float(adapter.get(f"{module}.alpha", torch.tensor(float(len(down))))) / len(down)
    return scale * (up.double() @ down.double())


def code(adapter: Tensors, folder: Path) -> tuple[Path, Tensors]:
    """Encode an adapter; return the file, and what it decodes to."""
    save_file(adapter, folder / "in.safetensors")
    nola_codec.encode(folder / "in.safetensors", folder / "a.nola", num_basis=16, bits=8)  # the fastest form
    return folder / "a.nola", load_file(nola_codec.decode(folder / "a.nola", folder / "again.safetensors"))


def lone(base: Tensors, folder: Path) -> Path:
    save_file(base, folder / "base.safetensors")
    return folder / "base.safetensors"


def component(folder: Path, weights: Tensors, name: str = "Model") -> Path:
    folder.mkdir(parents=True)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"_class_name": name}))
    return folder


def pipeline(folder: Path, components: Mapping[str, Tensors]) -> Path:
    for name, weights in components.items():
        component(folder / name, weights)
    (folder / "model_index.json").write_text(json.dumps({name: ["diffusers", "Model"] for name in components}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    return folder


def merged_pipeline(folder: Path) -> dict[str, Tensors]:
    return {path.parent.name: load_file(path) for path in folder.glob("*/diffusion_pytorch_model.safetensors")}


def same(found: Tensors, base: Tensors, changes: Mapping[str, torch.Tensor]) -> None:
    """Check that the changes, and nothing else, were added to the base, with one rounding."""
    wanted = {name: w if name not in changes else (w.double() + changes[name]).to(w.dtype) for name, w in base.items()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=2e-6)
        assert (name in changes) == bool((found[name] != base[name]).any()), name


NAMES = {
    # Case 09 a to d.
    "ComfyUI's name on a file without its prefix": ("diffusion_model.blocks.{}.self_attn.q", "blocks.{}.self_attn.q"),
    "on a checkpoint of ComfyUI": (
        "diffusion_model.blocks.{}.self_attn.q", "model.diffusion_model.blocks.{}.self_attn.q"),
    "diffusers' name on a lone component": (
        "transformer.single_transformer_blocks.{}.attn.to_q", "single_transformer_blocks.{}.attn.to_q"),
    "OneTrainer's dotted name": ("unet.output_blocks.{}.1.proj_in", "model.diffusion_model.output_blocks.{}.1.proj_in"),
    # The rest of the kind.
    "equal names": ("blocks.{}.self_attn.q", "blocks.{}.self_attn.q"),
    "a name without the prefix of the file": ("blocks.{}.self_attn.q", "model.diffusion_model.blocks.{}.self_attn.q"),
    "flattened": ("lora_unet_blocks_{}_self_attn_q", "blocks.{}.self_attn.q"),
    "flattened, on a prefix": ("lora_unet_blocks_{}_self_attn_q", "model.diffusion_model.blocks.{}.self_attn.q"),
    "flattened by LyCORIS": ("lycoris_transformer_blocks_{}_attn_to_q", "transformer_blocks.{}.attn.to_q"),
    "flattened in part": ("unet.down_blocks_{}_attn.to_q", "down_blocks.{}.attn.to_q"),
    "a training wrapper on the file": ("transformer.blocks.{}.attn.to_q", "module.blocks.{}.attn.to_q"),
    "an unknown prefix on the file": ("transformer.blocks.{}.attn.to_q", "net.inner.blocks.{}.attn.to_q"),
    "compound names": ("lora_unet_single_blocks_{}_linear1", "diffusion_model.single_blocks.{}.linear1"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names_on_a_lone_file(case: str, tmp_path: Path) -> None:
    """Case 09: W + alpha / r * up @ down under each of the names."""
    module, stored = NAMES[case]
    base = {stored.format(n) + ".weight": torch.randn(OUT, IN) for n in range(2)} | {"other.weight": torch.ones(3)}
    file, again = code(pair(module.format(0)) | pair(module.format(1)), tmp_path)
    nola_codec.decode(file, tmp_path / "merged.safetensors", base=lone(base, tmp_path))
    changes = {stored.format(n) + ".weight": delta(again, module.format(n)) for n in range(2)}
    same(load_file(tmp_path / "merged.safetensors"), base, changes)


def locon() -> tuple[dict[str, Tensors], Tensors]:
    """The variants of case 51, and the weights of the UNet."""
    stem = "lora_unet_" + BLOCK.replace(".", "_") + "_"
    pairs = pair(stem + "attn1_to_q", IN, IN)
    norms = {stem + "norm1.w_norm": torch.randn(IN), stem + "norm1.b_norm": torch.randn(IN)}
    biases = {stem + "attn1_to_q.diff_b": torch.randn(IN)}
    full = {stem + "attn1_to_k.diff": torch.randn(IN, IN)}
    variants = {"pairs": pairs, "norms": norms, "pairs and norms": pairs | norms, "pairs and biases": pairs | biases,
                "all": pairs | norms | biases | full}  # fmt: skip
    shapes = {"attn1.to_q.weight": (IN, IN), "attn1.to_q.bias": (IN,), "attn1.to_k.weight": (IN, IN),
              "norm1.weight": (IN,), "norm1.bias": (IN,)}  # fmt: skip
    return variants, {f"{BLOCK}.{name}": torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("place", ["component", "pipeline"])
@pytest.mark.parametrize("variant", ["pairs", "norms", "pairs and norms", "pairs and biases", "all"])
def test_pairs_beside_norms_and_biases(variant: str, place: str, tmp_path: Path) -> None:
    """Case 51: pairs, ``diff``, ``diff_b`` and norms of LyCORIS in one file, into a component and into a pipeline."""
    variants, weights = locon()
    file, again = code(variants[variant], tmp_path)
    pipe = pipeline(tmp_path / "pipe", {"unet": weights})
    base = pipe if place == "pipeline" else pipe / "unet"
    nola_codec.decode(file, tmp_path / "out", base=base)
    stem = "lora_unet_" + BLOCK.replace(".", "_") + "_"
    endings = {".w_norm": ".weight", ".b_norm": ".bias", ".diff_b": ".bias", ".diff": ".weight"}
    changes = {}
    for key, value in again.items():
        module, dot, ending = key.rpartition(".")
        path = f"{BLOCK}." + module.removeprefix(stem).replace("attn1_", "attn1.")
        if dot + ending in endings:
            changes[path + endings[dot + ending]] = value.double()
        elif key.endswith(".lora_up.weight"):
            changes[f"{BLOCK}.attn1.to_q.weight"] = delta(again, stem + "attn1_to_q")
    found = tmp_path / "out" / ("unet" if place == "pipeline" else "") / "diffusion_pytorch_model.safetensors"
    same(load_file(found), weights, changes)


def test_a_whole_extract_in_bfl_names(tmp_path: Path) -> None:
    """Case 04: dotted factors without alpha, ``diff_b``, and the ``diff`` of a bare parameter."""
    modules = {"single_blocks.0.linear1": (12, IN), "single_blocks.0.modulation.lin": (9, IN),
               "double_blocks.0.img_attn.qkv": (9, IN)}  # fmt: skip
    scale = "double_blocks.0.img_attn.norm.query_norm.scale"
    adapter: Tensors = {f"diffusion_model.{scale}.diff": torch.randn(IN)}
    base: Tensors = {scale: torch.randn(IN)}
    for name, (out, inputs) in modules.items():
        adapter |= pair(f"diffusion_model.{name}", out, inputs, alpha=None)
        adapter[f"diffusion_model.{name}.diff_b"] = torch.randn(out)
        base |= {f"{name}.weight": torch.randn(out, inputs), f"{name}.bias": torch.randn(out)}
    file, again = code(adapter, tmp_path)
    nola_codec.decode(file, tmp_path / "out.safetensors", base=lone(base, tmp_path))
    changes = {f"{name}.weight": delta(again, f"diffusion_model.{name}") for name in modules}
    changes |= {f"{name}.bias": again[f"diffusion_model.{name}.diff_b"].double() for name in modules}
    changes[scale] = again[f"diffusion_model.{scale}.diff"].double()
    same(load_file(tmp_path / "out.safetensors"), base, changes)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_wan_with_diff_m(prefix: str, tmp_path: Path) -> None:
    """Case 03: ``diff_m`` is added to the bare parameter ``modulation``, norms by ``diff``, biases by ``diff_b``."""
    adapter = pair("diffusion_model.blocks.0.ffn.0", alpha=None)
    adapter |= {
        "diffusion_model.blocks.0.ffn.0.diff_b": torch.randn(OUT),
        "diffusion_model.blocks.0.norm3.diff": torch.randn(IN),
        "diffusion_model.blocks.0.norm3.diff_b": torch.randn(IN),
        "diffusion_model.blocks.0.diff_m": torch.randn(1, 6, IN),
        "diffusion_model.head.diff_m": torch.randn(1, 2, IN),
    }
    shapes = {"ffn.0.weight": (OUT, IN), "ffn.0.bias": (OUT,), "norm3.weight": (IN,), "norm3.bias": (IN,),
              "modulation": (1, 6, IN)}  # fmt: skip
    base = {f"{prefix}blocks.0.{name}": torch.randn(shape) for name, shape in shapes.items()}
    base[f"{prefix}head.modulation"] = torch.randn(1, 2, IN)
    file, again = code(adapter, tmp_path)
    nola_codec.decode(file, tmp_path / "out.safetensors", base=lone(base, tmp_path))
    changes = {f"{prefix}blocks.0.ffn.0.weight": delta(again, "diffusion_model.blocks.0.ffn.0")}
    for key in (
        "blocks.0.ffn.0.diff_b",
        "blocks.0.norm3.diff",
        "blocks.0.norm3.diff_b",
        "blocks.0.diff_m",
        "head.diff_m",
    ):
        module, _, ending = key.rpartition(".")
        tensor = f"{module}." + {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}[ending]
        changes[prefix + tensor] = again[f"diffusion_model.{key}"].double()
    same(load_file(tmp_path / "out.safetensors"), base, changes)


MODULE = "blocks.0.attn1.to_q"


def two_transformers() -> dict[str, Tensors]:
    return {name: {f"{MODULE}.weight": torch.randn(OUT, IN)} for name in ("transformer", "transformer_2")}


@pytest.mark.parametrize("named", [("transformer",), ("transformer_2",), ("transformer", "transformer_2")])
def test_each_transformer_gets_its_own(named: tuple[str, ...], tmp_path: Path) -> None:
    """Case 32: Wan 2.2 has two transformers, which the names tell apart."""
    weights = two_transformers()
    adapter: Tensors = {}
    for name in named:
        adapter |= pair(f"{name}.{MODULE}", ab=True)
    file, again = code(adapter, tmp_path)
    nola_codec.decode(file, tmp_path / "out", base=pipeline(tmp_path / "pipe", weights))
    found = merged_pipeline(tmp_path / "out")
    for name, base in weights.items():
        same(found[name], base, {f"{MODULE}.weight": delta(again, f"{name}.{MODULE}")} if name in named else {})
    assert (tmp_path / "out" / "scheduler" / "scheduler_config.json").exists()


@pytest.mark.parametrize("module", [MODULE, "diffusion_model." + MODULE, "lora_unet_blocks_0_attn1_to_q"])
def test_a_name_that_fits_both_transformers_is_refused(module: str, tmp_path: Path) -> None:
    """Case 32: nothing tells which of the two is meant, so nothing is written."""
    file, _ = code(pair(module), tmp_path)
    with pytest.raises(AdapterError, match="transformer and transformer_2 have such a weight") as caught:
        nola_codec.decode(file, tmp_path / "out", base=pipeline(tmp_path / "pipe", two_transformers()))
    assert caught.value.code == "base-mismatch"
    assert not (tmp_path / "out").exists()


def test_both_transformers_are_never_put_into_one(tmp_path: Path) -> None:
    """Case 32: the adapter of two components does not fit a directory of one."""
    file, _ = code(
        pair(f"transformer.{MODULE}", ab=True) | pair("transformer_2.blocks.1.attn1.to_q", ab=True), tmp_path
    )
    base = component(tmp_path / "one", {f"{b}.weight": torch.randn(OUT, IN) for b in (MODULE, "blocks.1.attn1.to_q")})
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(file, tmp_path / "out", base=base)
    assert caught.value.code == "merge-components"


@pytest.mark.parametrize(
    ("module", "folder", "path"),
    [
        ("lora_unet_blocks_0_attn1_to_q", "transformer", MODULE),
        (MODULE, "transformer", MODULE),
        ("diffusion_model." + MODULE, "transformer", MODULE),
        ("conv_in", "unet", "conv_in"),
        ("controlnet.down.0.proj", "controlnet", "down.0.proj"),
        ("image_encoder.vision.0.fc", "image_encoder", "vision.0.fc"),
        ("text_encoder_3.encoder.0.q", "text_encoder_3", "encoder.0.q"),
        ("lora_te2_layers_0_fc", "text_encoder_2", "layers.0.fc"),
        ("transformer_3." + MODULE, "transformer_3", MODULE),
        ("lora_te3_encoder_block_0_q", "text_encoder_2", "encoder.block.0.q"),  # T5 of Flux, as sd-scripts calls it
        ("text_encoders.clip_l.transformer.layers.0.fc", "text_encoder", "layers.0.fc"),
    ],
)
def test_components_are_those_of_the_pipeline(module: str, folder: str, path: str, tmp_path: Path) -> None:
    """Case 32: a component is found by the folders that the pipeline has; a bare name goes to the only one with it."""
    weights = {folder: {f"{path}.weight": torch.randn(OUT, IN)}, "vae": {"decoder.conv.weight": torch.randn(OUT, IN)}}
    file, again = code(pair(module), tmp_path)
    nola_codec.decode(file, tmp_path / "out", base=pipeline(tmp_path / "pipe", weights))
    found = merged_pipeline(tmp_path / "out")
    same(found[folder], weights[folder], {f"{path}.weight": delta(again, module)})
    same(found["vae"], weights["vae"], {})


def test_bare_names_of_two_components(tmp_path: Path) -> None:
    """Case 32: the shape tells two text encoders apart, and each bare name goes to the only place that it fits."""
    weights = {
        "text_encoder": {"layers.0.fc.weight": torch.randn(OUT, IN)},
        "text_encoder_2": {"layers.0.fc.weight": torch.randn(OUT + 2, IN)},
        "unet": {"mid.proj.weight": torch.randn(OUT, IN)},
    }
    file, again = code(pair("layers.0.fc", OUT + 2, ab=True) | pair("mid.proj", ab=True), tmp_path)
    nola_codec.decode(file, tmp_path / "out", base=pipeline(tmp_path / "pipe", weights))
    found = merged_pipeline(tmp_path / "out")
    same(found["text_encoder"], weights["text_encoder"], {})
    same(found["text_encoder_2"], weights["text_encoder_2"], {"layers.0.fc.weight": delta(again, "layers.0.fc")})
    same(found["unet"], weights["unet"], {"mid.proj.weight": delta(again, "mid.proj")})


def test_components_in_a_lone_file(tmp_path: Path) -> None:
    """A checkpoint that holds the UNet and the text encoder under their prefixes takes an adapter of both."""
    stored = {"lora_unet_mid_proj": "model.diffusion_model.mid.proj",
              "lora_te_text_model_fc1": "cond_stage_model.transformer.text_model.fc1"}  # fmt: skip
    base = {f"{path}.weight": torch.randn(OUT, IN) for path in stored.values()}
    file, again = code(pair("lora_unet_mid_proj") | pair("lora_te_text_model_fc1"), tmp_path)
    nola_codec.decode(file, tmp_path / "out.safetensors", base=lone(base, tmp_path))
    changes = {f"{path}.weight": delta(again, module) for module, path in stored.items()}
    same(load_file(tmp_path / "out.safetensors"), base, changes)


@pytest.mark.parametrize("kernel", [(1, 1), (1,), ()])
@pytest.mark.parametrize("stored", [(1, 1), ()])
def test_a_kernel_of_one_is_a_linear_layer(kernel: tuple[int, ...], stored: tuple[int, ...], tmp_path: Path) -> None:
    """``proj_in`` is a 1x1 convolution in SD 1.5 and linear in SDXL; tools squeeze the kernel, or keep it."""
    module, path = "lora_unet_mid_block_attentions_0_proj_in", "mid_block.attentions.0.proj_in"
    adapter = pair(module)
    for side, ones in (("down", kernel), ("up", (1,) * len(kernel))):
        key = f"{module}.lora_{side}.weight"
        adapter[key] = adapter[key].reshape(*adapter[key].shape, *ones)
    base = {f"{path}.weight": torch.randn(OUT, IN, *stored)}
    file, again = code(adapter, tmp_path)
    nola_codec.decode(file, tmp_path / "out.safetensors", base=lone(base, tmp_path))
    flat = {key: value.reshape(value.shape[:2]) if value.dim() > 2 else value for key, value in again.items()}
    change = delta(flat, module).reshape(OUT, IN, *stored)
    same(load_file(tmp_path / "out.safetensors"), base, {f"{path}.weight": change})


def test_a_refusal_names_the_layouts_and_the_nearest_weights(tmp_path: Path) -> None:
    """The names of diffusers on a checkpoint of BFL: eight parts are listed, the others are counted."""
    adapter: Tensors = {}
    for n in range(12):
        adapter |= pair(f"transformer.single_transformer_blocks.{n}.attn.to_q", ab=True)
    base = {f"single_blocks.{n}.linear1.weight": torch.randn(OUT * 3, IN) for n in range(12)}
    base["double_blocks.0.img_attn.qkv.weight"] = torch.randn(OUT * 3, IN)
    file, _ = code(adapter, tmp_path)
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(file, tmp_path / "out.safetensors", base=lone(base, tmp_path))
    message = str(caught.value)
    assert "12 parts of the adapter do not fit the base model" in message
    assert "the adapter looks like Flux as diffusers names it, and the base model like Flux in BFL's layout" in message
    assert "no weight transformer.single_transformer_blocks.0.attn.to_q.weight [8, 6]; nearest: " in message
    assert message.count("\n") == 9
    assert message.endswith("and 4 more")


@pytest.mark.parametrize(
    ("path", "own", "stored", "words"),
    [
        ("img_in", (OUT, 2 * IN), (OUT, IN), "another number of input channels, such as a control model"),
        ("blocks.0.ffn.0", (OUT, IN), (2 * OUT, 2 * IN), "another size of the model"),
        ("token_embedding", (OUT, IN), (OUT + 1, IN), "the vocabulary of one of the two was resized"),
    ],
)
def test_a_wrong_shape_has_a_likely_cause(
    path: str, own: tuple[int, int], stored: tuple[int, int], words: str, tmp_path: Path
) -> None:
    """Case 27: the widened input of a control LoRA is named, and so are other usual causes."""
    file, _ = code(pair(f"diffusion_model.{path}", *own), tmp_path)
    with pytest.raises(AdapterError) as caught:
        nola_codec.decode(
            file, tmp_path / "out.safetensors", base=lone({f"{path}.weight": torch.ones(stored)}, tmp_path)
        )
    assert caught.value.code == "base-mismatch"
    assert f"shape: expected {list(own)}, found {list(stored)} ({path}.weight); " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("algo", ["lora", "loha", "full"])
def test_the_merge_of_lycoris(algo: str, tmp_path: Path) -> None:
    """Case 51: pairs and norms that LyCORIS saved merge to what LyCORIS itself merges from what we decode."""
    lycoris = pytest.importorskip("lycoris")

    def model() -> torch.nn.Module:
        torch.manual_seed(3)
        block = torch.nn.ModuleDict({"to_q": torch.nn.Linear(16, 16), "norm": torch.nn.LayerNorm(16)})
        return torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])})

    lycoris.LycorisNetwork.apply_preset({"enable_conv": True, "target_module": ["Linear", "LayerNorm"]})
    base = model()
    alpha = 2.0 if algo == "loha" else 1.0  # the merge of LyCORIS 4.1.3 multiplies a LoHa by alpha / r twice
    network = lycoris.create_lycoris(base, 1.0, linear_dim=2, linear_alpha=alpha, algo=algo, train_norm=True)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    file, again = code(state, tmp_path)
    nola_codec.decode(file, tmp_path / "out.safetensors", base=lone(dict(model().state_dict()), tmp_path))
    wanted = model()
    other, _ = lycoris.create_lycoris_from_weights(1.0, None, wanted, weights_sd=again)
    other.merge_to(1.0)
    found = load_file(tmp_path / "out.safetensors")
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=2e-6)
    assert (found["blocks.0.norm.weight"] != model().state_dict()["blocks.0.norm.weight"]).any()
