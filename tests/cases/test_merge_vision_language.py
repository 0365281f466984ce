"""Case 16b: merging into vision-language models, whose weights have other names on disk than in memory."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from peft_merges import make_adapter, merge_both, rename_keys, require_equal
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nola_codec
from nola_codec.checkpoints.key_renames import KeyRenames

# PEFT asks a model for a property that Transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROOT = Path(__file__).resolve().parents[2]
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 96,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
MROPE = TEXT | {"max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2]}}  # fmt: skip
TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}


def qwen2_vl() -> Any:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    return T.Qwen2VLForConditionalGeneration(T.Qwen2VLConfig(text_config=MROPE, vision_config=vision, **TOKENS))


def qwen2_5_vl() -> Any:
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 16,
              "fullatt_block_indexes": [0]}  # fmt: skip
    return T.Qwen2_5_VLForConditionalGeneration(T.Qwen2_5_VLConfig(text_config=MROPE, vision_config=vision, **TOKENS))


def qwen3_vl() -> Any:
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 16,
              "deepstack_visual_indexes": [0]}  # fmt: skip
    text = MROPE | {"head_dim": 8}
    return T.Qwen3VLForConditionalGeneration(T.Qwen3VLConfig(text_config=text, vision_config=vision, **TOKENS))


def llava() -> Any:
    vision = T.CLIPVisionConfig(**VISION, projection_dim=16)
    return T.LlavaForConditionalGeneration(T.LlavaConfig(text_config=T.LlamaConfig(**TEXT), vision_config=vision))


def llava_next() -> Any:
    vision = T.CLIPVisionConfig(**VISION, projection_dim=16)
    config = T.LlavaNextConfig(text_config=T.LlamaConfig(**TEXT), vision_config=vision)
    return T.LlavaNextForConditionalGeneration(config)


def gemma3() -> Any:
    text = TEXT | {"head_dim": 8}
    return T.Gemma3ForConditionalGeneration(
        T.Gemma3Config(text_config=text, vision_config=dict(VISION), mm_tokens_per_image=4)
    )


def paligemma() -> Any:
    text = T.GemmaConfig(**TEXT, head_dim=8)
    vision = T.SiglipVisionConfig(**VISION, projection_dim=16)
    return T.PaliGemmaForConditionalGeneration(
        T.PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=90, projection_dim=16)
    )


def mistral3() -> Any:
    text, vision = T.MistralConfig(**TEXT, head_dim=8), T.PixtralVisionConfig(**VISION)
    return T.Mistral3ForConditionalGeneration(
        T.Mistral3Config(text_config=text, vision_config=vision, image_token_index=90)
    )


def smolvlm() -> Any:
    config = T.SmolVLMConfig(text_config=T.LlamaConfig(**TEXT), vision_config=dict(VISION), image_token_id=90)
    return T.SmolVLMForConditionalGeneration(config)


def internvl() -> Any:
    vision = T.InternVLVisionConfig(**(VISION | {"image_size": [28, 28], "patch_size": [14, 14]}))
    config = T.InternVLConfig(text_config=T.Qwen2Config(**TEXT), vision_config=vision, image_token_id=90)
    return T.InternVLForConditionalGeneration(config)


# A layer of each tower, and what lies between the towers.
TARGETS = re.compile(r"q_proj|qkv|multi_modal_projector|connector|merger")

MODELS = {each.__name__: each for each in (
    qwen2_vl, qwen2_5_vl, qwen3_vl, llava, llava_next, gemma3, paligemma, mistral3, smolvlm, internvl)}  # fmt: skip
Made = dict[str, tuple[Any, Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The class of each model, the model on disk, and an adapter on linear layers of all its parts."""
    found = {}
    for name, make in MODELS.items():
        torch.manual_seed(1)
        model = make()
        out = tmp_path_factory.mktemp(name)
        model.save_pretrained(out / "base")
        layers = (each for each, module in model.named_modules() if isinstance(module, torch.nn.Linear))
        linear = [each for each in layers if TARGETS.search(each)]
        assert len(linear) > 1
        found[name] = (type(model), out / "base", make_adapter(model, out / "adapter", target_modules=linear))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_merge_of_peft(name: str, made: Made, tmp_path: Path) -> None:
    """Case 16b: language layers, vision layers and projectors get what PEFT adds to them."""
    model_class, base, adapter = made[name]
    require_equal(*merge_both(model_class, base, adapter, tmp_path / "work"), base)


OLDER = {
    "llava": ("llava", {".model.language_model.": ".language_model.model.",
                        ".model.vision_tower.": ".vision_tower.vision_model.",
                        ".model.multi_modal_projector.": ".multi_modal_projector."}),
    "gemma3": ("gemma3", {".model.language_model.": ".language_model.model.",
                          ".model.vision_tower.": ".vision_tower.vision_model."}),
    "qwen2_5_vl": ("qwen2_5_vl", {".model.language_model.layers": ".model.layers", ".model.visual.": ".visual."}),
    "qwen2_vl": ("qwen2_vl", {".model.language_model.layers": ".model.layers", ".model.visual.": ".visual."}),
}  # fmt: skip


@pytest.mark.parametrize("case", OLDER)
def test_names_of_older_versions(case: str, made: Made, tmp_path: Path) -> None:
    """Case 16b: an adapter that an older Transformers named. PEFT of today finds few of its modules by itself."""
    name, renames = OLDER[case]
    model_class, base, adapter = made[name]
    older = rename_keys(adapter, tmp_path / "older", renames)
    newer = {new: old for old, new in reversed(renames.items())}
    require_equal(*merge_both(model_class, base, older, tmp_path / "work", newer), base)


@pytest.mark.parametrize("outer", ["model.", "language_model.model.", "model.language_model."])
def test_unknown_models_lack_or_have_the_usual_prefixes(outer: str, tmp_path: Path) -> None:
    """Case 16b: a type of model that no table knows, and a language model's adapter in a larger model."""
    base = tmp_path / "base"
    base.mkdir()
    save_file({f"{outer}layers.0.q.weight": torch.zeros(8, 6)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}))
    for inner in ("model.", "language_model.model.", "model.language_model."):
        factors = {"A": torch.ones(2, 6), "B": torch.ones(8, 2)}
        keys = {f"base_model.model.{inner}layers.0.q.lora_{s}.weight": factor for s, factor in factors.items()}
        out = tmp_path / inner
        out.mkdir()
        save_file(keys, out / "adapter.safetensors")
        nola_codec.encode(out / "adapter.safetensors", out / "a.nola", num_basis=64)
        nola_codec.decode(out / "a.nola", out / "merged", base=base)
        assert load_file(out / "merged" / "model.safetensors")[f"{outer}layers.0.q.weight"].abs().min() > 1


@pytest.mark.parametrize("name", MODELS)
def test_keys_of_both_kinds_become_names_in_memory(name: str, made: Made) -> None:
    """The rules turn the keys on disk into the names in memory, and leave the names in memory alone."""
    model_class, base, _ = made[name]
    renames = KeyRenames.of(json.loads((base / "config.json").read_text()))
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_pretrained(base))
    memory = set(model.state_dict())
    with safe_open(base / "model.safetensors", "pt") as file:
        assert {renames.read(key).whole for key in file.keys()} <= memory  # noqa: SIM118
    assert {renames.read(key).whole for key in memory} == memory


def test_the_table_is_that_of_the_installed_transformers() -> None:
    """The rules are copied from Transformers; an update that changes them must not go unnoticed."""
    spec = importlib.util.spec_from_file_location("make_key_renames", ROOT / "tools" / "make_key_renames.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    table = json.loads(tool.TABLE.read_text(encoding="utf-8"))
    if table["transformers"] != T.__version__:
        pytest.skip(f"the table is that of transformers {table['transformers']}")
    rules = tool.rules()
    assert table["rules"] == rules, "run tools/make_key_renames.py"
    for name in MODELS:
        if name in table["types"]:
            architecture = table["types"][name]
            assert table["architectures"][architecture] == tool.parts_of(MODELS[name](), rules), architecture
