"""Scales that are not in the tensors: found where tools keep them, assumed aloud, or set by the user.

The expected scalings come from PEFT and diffusers where these read such files, and else from the formula of the tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

import nola_codec
from nola_codec import adapters
from nola_codec.adapters import deltas
from nola_codec.cli import main
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers and PEFT, of their optional packages

Tensors = dict[str, np.ndarray[Any, Any]]
PATHS = ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q")


def factors(names: Mapping[str, int], a: str, b: str, size: int = 12) -> Tensors:
    """The factors of square modules, by the name and the rank of each, under keys that end in `a` and `b`."""
    numbers = np.random.default_rng(1)
    made: Tensors = {}
    for name, rank in names.items():
        made[name + a] = numbers.normal(size=(rank, size)).astype(np.float32)
        made[name + b] = numbers.normal(size=(size, rank)).astype(np.float32)
    return made


SPELLINGS: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "ComfyUI": (tuple(f"diffusion_model.{path}" for path in PATHS), ".lora_A.weight", ".lora_B.weight", "diffusers"),
    "diffusers": (tuple(f"transformer.{path}" for path in PATHS), ".lora_A.weight", ".lora_B.weight", "diffusers"),
    "BFL": (PATHS, ".lora_A.weight", ".lora_B.weight", "diffusers"),
    "kohya": (
        tuple(f"lora_unet_{path.replace('.', '_')}" for path in PATHS), ".lora_down.weight", ".lora_up.weight", "kohya",
    ),
    "kohya, dotted": (
        tuple(f"diffusion_model.{path}" for path in PATHS), ".lora_down.weight", ".lora_up.weight", "kohya",
    ),
    "diffusers, old": (
        tuple(f"unet.mid_block.{i}.processor.to_q_lora" for i in "01"), ".down.weight", ".up.weight", "diffusers-old",
    ),
    "loralib": (PATHS, ".lora_A", ".lora_B", "loralib"),
    "torchtune": (
        ("layers.0.attn.q_proj", "layers.1.attn.q_proj"), ".lora_a.weight", ".lora_b.weight", "torchtune",
    ),
    "mistral": (
        ("layers.0.attention.wq", "layers.1.attention.wq"), ".lora_A.weight", ".lora_B.weight", "mistral",
    ),
    "PEFT, lone": (
        tuple(f"base_model.model.{path}" for path in PATHS), ".lora_A.weight", ".lora_B.weight", "peft",
    ),
    "cloneofsimo": (("unet:0", "unet:1"), ":down", ":up", "cloneofsimo"),
}  # fmt: skip
DEFAULTS = {
    "loralib": (1.0, "assumed"), "torchtune": (1.0, "assumed"), "mistral": (2.0, "assumed"),
    "PEFT, lone": (1.0, "assumed"),
}  # fmt: skip


def write(path: Path, spelling: str, ranks: tuple[int, int] = (4, 4), metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file in this spelling."""
    names, a, b, _ = SPELLINGS[spelling]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(factors(dict(zip(names, ranks, strict=True)), a, b), path, metadata)
    return path


def scalings(adapter: Adapter) -> list[float]:
    """The scalings in the order of the modules' names."""
    return [module.scaling for module in sorted(adapter.modules, key=lambda m: m.name)]


# Alphas in the metadata of the file.


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_alpha_in_the_metadata_is_divided_by_the_rank(spelling: str, tmp_path: Path) -> None:
    """Case 06, in each dialect, with two ranks."""
    for name in ("alpha", "lora_alpha", "network_alpha"):
        path = write(tmp_path / "l.safetensors", spelling, (4, 16), {name: "8", "rank": "16"})
        adapter = adapters.read(path)
        assert (adapter.dialect, adapter.scale_origin) == (SPELLINGS[spelling][3], "metadata")
        assert scalings(adapter) == [2.0, 0.5]


@pytest.mark.parametrize("spelling", ["ComfyUI", "PEFT, lone"])
def test_a_decoded_file_says_the_alpha_that_the_metadata_said(spelling: str, tmp_path: Path) -> None:
    """Case 06."""
    path = write(tmp_path / "l.safetensors", spelling, (4, 16), {"alpha": "8"})
    report = nola_codec.encode(path, tmp_path / "a.nola")
    assert (report.scale_origin, report.scalings) == ("metadata", (0.5, 2.0))
    assert not any("scale" in note for note in report.notes)
    assert nola_codec.inspect(tmp_path / "a.nola").scale_origin == "metadata"
    assert scalings(adapters.read(nola_codec.decode(tmp_path / "a.nola", tmp_path / "out"))) == [2.0, 0.5]


def test_the_metadata_means_what_diffusers_takes_it_for(tmp_path: Path) -> None:
    """Case 06: diffusers reads such an alpha since its pull request 14408, for one family of models."""
    from diffusers.loaders.lora_pipeline import MiniMaxH3LoraLoaderMixin
    from peft import LoraConfig

    path = write(tmp_path / "l.safetensors", "diffusers", (4, 16), {"alpha": "8"})
    _, metadata = MiniMaxH3LoraLoaderMixin.lora_state_dict(str(path), return_lora_metadata=True)
    config = LoraConfig(**{key.removeprefix("transformer."): value for key, value in metadata.items()})
    assert not config.alpha_pattern
    assert scalings(adapters.read(path)) == [config.lora_alpha / 4, config.lora_alpha / 16]


def test_an_alpha_tensor_wins(tmp_path: Path) -> None:
    """Case 06: so do loaders; no place counts for the other modules then."""
    names = SPELLINGS["diffusers"][0]
    tensors = factors(dict.fromkeys(names, 4), ".lora_A.weight", ".lora_B.weight")
    save_file(tensors | {f"{names[0]}.alpha": np.array(2, np.float32)}, tmp_path / "l.safetensors", {"alpha": "8"})
    adapter = adapters.read(tmp_path / "l.safetensors")
    assert (scalings(adapter), adapter.scale_origin) == ([0.5, 1.0], "tensor")


def test_components_and_rslora_in_the_metadata(tmp_path: Path) -> None:
    metadata = {"transformer.lora_alpha": "8", "transformer.r": "4", "transformer.use_rslora": "True"}
    adapter = adapters.read(write(tmp_path / "l.safetensors", "diffusers", (4, 16), metadata))
    assert scalings(adapter) == [4.0, 2.0]


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        ({"alpha": "Dynamic"}, "not a usable alpha"),
        ({"alpha": "0"}, "not a usable alpha"),
        ({"alpha": "nan"}, "not a usable alpha"),
        ({"alpha": "4", "rank": "32"}, "says rank 32"),
        ({"ss_network_alpha": "2", "ss_network_dim": "4"}, "--scale 0.5 follows the metadata"),
    ],
)
def test_metadata_that_is_not_used_is_named(metadata: dict[str, str], note: str, tmp_path: Path) -> None:
    """Loaders of kohya's files take alpha = r without alphas, and read no ``ss_network_alpha``."""
    adapter = adapters.read(write(tmp_path / "l.safetensors", "kohya", (4, 4), metadata))
    assert scalings(adapter) == [1.0, 1.0]
    assert note in " ".join(adapter.notes)


def test_lycoris_without_alphas_takes_the_metadata(tmp_path: Path) -> None:
    pair = factors({"lora_unet_x.hada_w1": 4, "lora_unet_x.hada_w2": 4}, "_b", "_a")
    save_file(pair, tmp_path / "one.safetensors")
    save_file(pair, tmp_path / "half.safetensors", {"network_alpha": "2"})
    (one,), (half,) = (deltas(adapters.read(tmp_path / f"{name}.safetensors")) for name in ("one", "half"))
    np.testing.assert_allclose(half.dense(), one.dense() / 2, rtol=1e-6)


# A configuration beside the file.


def peft_scalings(options: dict[str, Any], ranks: tuple[int, int]) -> tuple[dict[str, Any], list[float]]:
    """The configuration of PEFT for these options, and the scalings that its layers get."""
    from peft import LoraConfig, get_peft_model

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn1 = torch.nn.Module()
            self.attn1.to_q = torch.nn.Linear(12, 12)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])

    config = LoraConfig(target_modules=["to_q"], **options)
    model = get_peft_model(Model(), config)
    layers = [block.attn1.to_q for block in model.base_model.model.blocks]
    assert [layer.r["default"] for layer in layers] == list(ranks)
    return json.loads(json.dumps(config.to_dict(), default=list)), [layer.scaling["default"] for layer in layers]


CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "plain": ({"r": 4, "lora_alpha": 16}, (4, 4)),
    "rsLoRA": ({"r": 4, "lora_alpha": 16, "use_rslora": True}, (4, 4)),
    "patterns": (
        {"r": 4, "lora_alpha": 16, "rank_pattern": {"blocks.1.attn1.to_q": 8}, "alpha_pattern": {"^blocks.0.attn1": 2}},
        (4, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("options", CONFIGS)
def test_a_configuration_beside_counts_for_a_directory_and_for_a_file(options: str, tmp_path: Path) -> None:
    """Case 38. PEFT tells the scalings."""
    config, wanted = peft_scalings(*CONFIGS[options])
    for file in ("pytorch_lora_weights.safetensors", "lora.safetensors"):
        for spelling in ("diffusers", "ComfyUI", "BFL"):
            path = write(tmp_path / spelling / file, spelling, CONFIGS[options][1])
            (path.parent / "adapter_config.json").write_text(json.dumps(config))
            for source in (path, path.parent):
                adapter = adapters.read(source)
                assert (adapter.dialect, adapter.scale_origin) == ("diffusers", "config")
                assert scalings(adapter) == wanted


@pytest.mark.parametrize(("options", "spelling"), [("rsLoRA", "ComfyUI"), ("patterns", "diffusers")])
def test_a_decoded_adapter_says_the_scalings_of_the_configuration(options: str, spelling: str, tmp_path: Path) -> None:
    """Case 38: as a directory and as a file."""
    config, wanted = peft_scalings(*CONFIGS[options])
    path = write(tmp_path / "in" / "l.safetensors", spelling, CONFIGS[options][1])
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    nola_codec.encode(path, tmp_path / "a.nola")
    assert nola_codec.inspect(tmp_path / "a.nola").scale_origin == "config"
    for out in ("again", "again.safetensors"):
        again = adapters.read(nola_codec.decode(tmp_path / "a.nola", tmp_path / out))
        assert scalings(again) == pytest.approx(wanted, rel=1e-7)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text()) == config


def test_diffusers_loads_the_decoded_file_at_the_scaling_of_the_configuration(tmp_path: Path) -> None:
    """Case 38: diffusers itself reads no configuration beside, so the decoded file says the scaling in its metadata."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=0, attention_head_dim=4, num_attention_heads=3,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 0),
    )  # fmt: skip
    name = "transformer.transformer_blocks.0.attn.to_q"
    save_file(factors({name: 4}, ".lora_A.weight", ".lora_B.weight"), tmp_path / "l.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["to_q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    nola_codec.encode(tmp_path / "l.safetensors", tmp_path / "a.nola")
    out = nola_codec.decode(tmp_path / "a.nola", tmp_path / "out")
    model.load_lora_adapter(
        str(out), prefix="transformer", adapter_name="x", weight_name="pytorch_lora_weights.safetensors"
    )
    assert model.transformer_blocks[0].attn.to_q.scaling["x"] == 1.5


@pytest.mark.parametrize("name", ["lora.safetensors", "pytorch_model.bin"])
def test_a_file_of_peft_has_its_configuration_beside_under_any_name(name: str, tmp_path: Path) -> None:
    """Case 38: PEFT's keys in a file of another name."""
    names, a, b, _ = SPELLINGS["PEFT, lone"]
    tensors = {key: torch.from_numpy(value) for key, value in factors(dict.fromkeys(names, 4), a, b).items()}
    if name.endswith(".bin"):
        torch.save(tensors, tmp_path / name)
    else:
        save_torch(tensors, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    for source in (tmp_path, tmp_path / name):
        adapter = adapters.read(source)
        assert (scalings(adapter), adapter.scale_origin) == ([4.0, 4.0], "config")


def test_a_configuration_of_another_rank_is_refused_unless_the_user_says_the_scale(tmp_path: Path) -> None:
    path = write(tmp_path / "l.safetensors", "diffusers")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    with pytest.raises(AdapterError, match="8 by adapter_config") as e:
        adapters.read(path)
    assert e.value.code == "rank-mismatch"
    assert scalings(adapters.read(path, scale=3)) == [3.0, 3.0]


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_places_that_differ_are_refused_unless_the_user_says_the_scale(spelling: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "l.safetensors", spelling, metadata={"alpha": "8"})
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    assert scalings(adapters.read(path)) == [2.0, 2.0]
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    other = write(tmp_path / "b" / "l.safetensors", spelling, metadata={"alpha": "8", "lora_alpha": "16"})
    for source in (path, other):
        with pytest.raises(AdapterError, match="--scale") as e:
            adapters.read(source)
        assert e.value.code == "scale-conflict"
        assert scalings(adapters.read(source, scale=4)) == [4.0, 4.0]


def test_mistral_finetune_keeps_its_scaling_in_params_json(tmp_path: Path) -> None:
    """Case 22: as a directory and as a file, merged and written back; norms are carried into the model."""
    path = write(tmp_path / "ck" / "lora.safetensors", "mistral")
    tensors = load_file(path) | {"layers.0.attention_norm.weight": np.full(12, 1.5, np.float32)}
    save_file(tensors, path)
    params = {"dim": 12, "lora": {"enable": True, "rank": 4, "dropout": 0.0, "scaling": 2.5}}
    (tmp_path / "ck" / "params.json").write_text(json.dumps(params))
    for source in (path, path.parent):
        adapter = adapters.read(source)
        assert (adapter.dialect, adapter.scale_origin, scalings(adapter)) == ("mistral", "config", [2.5, 2.5])
    nola_codec.encode(path, tmp_path / "a.nola", nmse=1e-3)
    out = nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    assert json.loads((out / "params.json").read_text()) == params
    assert scalings(adapters.read(out)) == [2.5, 2.5]
    lone = nola_codec.decode(tmp_path / "a.nola", tmp_path / "again.safetensors")
    assert scalings(adapters.read(lone)) == [2.5, 2.5]
    base = {f"{name}.weight": np.zeros((12, 12), np.float32) for name in SPELLINGS["mistral"][0]}
    save_file(base | {"layers.0.attention_norm.weight": np.ones(12, np.float32)}, tmp_path / "base.safetensors")
    nola_codec.merge([tmp_path / "a.nola"], tmp_path / "base.safetensors", tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    name = SPELLINGS["mistral"][0][0]
    wanted = 2.5 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    assert np.linalg.norm(merged[f"{name}.weight"] - wanted) < 0.04 * np.linalg.norm(wanted)
    assert (merged["layers.0.attention_norm.weight"] == 1.5).all()


@pytest.mark.parametrize(
    ("lora", "code"), [({"rank": 8, "scaling": 2}, "rank-mismatch"), ({"scaling": "2"}, "bad-config")]
)
def test_a_bad_params_json_is_refused(lora: dict[str, Any], code: str, tmp_path: Path) -> None:
    path = write(tmp_path / "lora.safetensors", "mistral")
    (tmp_path / "params.json").write_text(json.dumps({"lora": lora}))
    with pytest.raises(AdapterError) as e:
        adapters.read(path)
    assert e.value.code == code


def test_torchtune_is_read_with_and_without_the_configuration_beside(tmp_path: Path) -> None:
    """Case 01: its own pickled bfloat16 file; delta = alpha / r * lora_b @ lora_a."""
    names, a, b, _ = SPELLINGS["torchtune"]
    tensors = {k: torch.from_numpy(v).bfloat16() for k, v in factors(dict.fromkeys(names, 4), a, b).items()}
    torch.save(tensors, tmp_path / "adapter_0.pt")
    adapter = adapters.read(tmp_path / "adapter_0.pt")
    assert (adapter.dialect, scalings(adapter), adapter.scale_origin) == ("torchtune", [1.0, 1.0], "assumed")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "adapter_0.pt"):
        adapter = adapters.read(source)
        assert (scalings(adapter), adapter.scale_origin) == ([2.0, 2.0], "config")
    wanted = 2 * tensors[names[0] + b].double() @ tensors[names[0] + a].double()
    np.testing.assert_allclose(deltas(adapter)[0].dense(), wanted.numpy(), rtol=1e-6)
    nola_codec.encode(tmp_path / "adapter_0.pt", tmp_path / "a.nola")
    out = nola_codec.decode(tmp_path / "a.nola", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["adapter_0.pt", "adapter_config.json"]
    assert scalings(adapters.read(out)) == [2.0, 2.0]


# Scales that nothing says, and the user's.


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_nothing_says_is_assumed_aloud_unless_the_dialect_defines_it(spelling: str, tmp_path: Path) -> None:
    path = write(tmp_path / "l.safetensors", spelling)
    value, origin = DEFAULTS.get(spelling, (1.0, "dialect"))
    adapter = adapters.read(path)
    assert (adapter.scale_origin, scalings(adapter)) == (origin, [value, value])
    said = [note for note in adapter.notes if f"the scaling {value:g} is assumed" in note and "--scale" in note]
    assert len(said) == (origin == "assumed")
    if spelling in ("loralib", "diffusers"):
        report = nola_codec.encode(path, tmp_path / "a.nola")
        assert (report.scale_origin, report.scalings) == (origin, (value,))
        assert set(said) <= set(report.notes)
        assert nola_codec.inspect(tmp_path / "a.nola").scale_origin == origin


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_user_sets_a_scale_that_nothing_says(spelling: str, tmp_path: Path) -> None:
    """The decoded adapter says it too, as a directory or as a safetensors file."""
    path = write(tmp_path / "l.safetensors", spelling, (4, 8))
    adapter = adapters.read(path, scale=0.3)
    assert (adapter.scale_origin, scalings(adapter), adapter.notes) == ("option", [0.3, 0.3], ())
    again = adapters.write(adapter, tmp_path / "out")
    if spelling == "torchtune":  # a pickle has no metadata, and the configuration says it
        assert (again / "adapter_config.json").exists()
    assert scalings(adapters.read(again)) == pytest.approx([0.3, 0.3], rel=1e-7)


@pytest.mark.parametrize("place", ["tensor", "metadata", "config"])
def test_a_scale_that_the_adapter_says_cannot_be_set(place: str, tmp_path: Path) -> None:
    path = write(tmp_path / "l.safetensors", "diffusers", metadata={"alpha": "8"} if place == "metadata" else None)
    if place == "config":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    if place == "tensor":
        alphas = {f"{name}.alpha": np.array(8, np.float32) for name in SPELLINGS["diffusers"][0]}
        save_file(load_file(path) | alphas, path)
    with pytest.raises(AdapterError, match="says its scaling itself") as e:
        nola_codec.encode(path, scale=3)
    assert e.value.code == "option"
    assert nola_codec.encode(path, scale=2).scale_origin == place  # the same number is no mistake


@pytest.mark.parametrize("scale", [0, float("nan"), float("inf")])
def test_a_scale_is_a_number_other_than_0(scale: float, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="scale: expected"):
        nola_codec.encode(write(tmp_path / "l.safetensors", "loralib"), scale=scale)


def test_the_commands_take_a_scale_and_tell_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "l.safetensors", "loralib")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        return int(exit_.value.code or 0), *capsys.readouterr()

    coded = tmp_path / "a.nola"
    made = json.loads(run("encode", path, "-o", coded, "--scale", "4", "--json")[1])
    assert "4, given by the user" in run("inspect", coded)[1]
    shown = json.loads(run("inspect", coded, "--json")[1])
    assert made["scale_origin"] == shown["scale_origin"] == "option"
    assert made["scalings"] == shown["scalings"] == [4.0]
    compared = json.loads(run("compare", path, coded, "--scale", "4", "--json")[1])
    assert compared["scale_origins"] == ["option", "option"]
    assert compared["nmse"] == pytest.approx(made["nmse"], rel=1e-3)
    assert "the scaling 1 is assumed" in run("compare", path, coded)[2]
    assert run("compare", coded, coded, "--scale", "4")[0] == 2
    swept = json.loads(run("sweep", path, "--error", "0.5", "--json")[1])
    assert "the scaling 1 is assumed" in swept["notes"][0]
    swept = json.loads(run("sweep", path, "--error", "0.5", "--scale", "2", "--json")[1])
    assert swept["notes"] == []
    nola_codec.encode(path, tmp_path / "assumed.nola")
    turned = run("decode", tmp_path / "assumed.nola", "-o", tmp_path / "peft", "--format", "peft")
    assert "scaling 1, assumed" in turned[2]


def test_files_without_an_origin_still_tell_what_their_dialect_knows() -> None:
    """Files that were written before the origin was kept have no entry for it."""
    known = {
        "peft": ({"peft_type": "LORA"}, "config"), "kohya": ({"alpha": {}}, "tensor"), "diffusers": (None, "dialect"),
        "mlx": ({"lora_parameters": {"scale": 20.0}}, "config"), "loralib": (None, "assumed"), "delta": (None, ""),
        "gguf": ({"gguf": {"adapter.lora.alpha": ["FLOAT32", 8.0]}}, "metadata"),
    }  # fmt: skip
    for name, (config, origin) in known.items():
        dialect = adapters.find_dialect(name)
        assert dialect is not None
        assert dialect.scale_origin(config, {}) == origin
