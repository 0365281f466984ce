"""Keys that a training left with more than the names of the modules: wrappers, the adapter's name, a wrong prefix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nola_codec
from nola_codec import adapters
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_writer import dump

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
PEFT = "base_model.model.model.layers.0.self_attn.q_proj"


def _tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, RawTensor]:
    random = np.random.default_rng(1)
    return {
        key: RawTensor("F32", shape, random.standard_normal(shape).astype("<f4").tobytes())
        for key, shape in shapes.items()
    }


def _pair(module: str, down: str, up: str) -> dict[str, tuple[int, ...]]:
    return {module + down: (2, 6), module + up: (8, 2)}


PLAIN: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any] | None]] = {
    "peft": (_pair(PEFT, ".lora_A.weight", ".lora_B.weight"), CONFIG),
    "kohya": (_pair("lora_unet_down_blocks_0_attn_to_q", ".lora_down.weight", ".lora_up.weight"), None),
    "diffusers": (_pair("unet.down_blocks.0.attn.to_q", ".lora_A.weight", ".lora_B.weight"), None),
    "loralib": (_pair("encoder.layer.0.query", ".lora_A", ".lora_B"), None),
}
DIRTY = {
    "compiled": ("peft", "base_model.", "_orig_mod.base_model."),
    "compiled inside": ("peft", ".model.layers", "._orig_mod.model.layers"),
    "data parallel": ("peft", "base_model.", "module.base_model."),
    "data parallel inside": ("peft", "base_model.model.", "base_model.model.module."),
    "both": ("peft", "base_model.", "module._orig_mod.base_model."),
    "sharded": ("peft", ".model.layers.0.", "._fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module."),
    "doubled prefix": ("peft", "base_model.model.", "base_model.model.base_model.model."),
    "no prefix": ("peft", "base_model.model.", ""),
    "flattened": ("kohya", "lora_unet_", "lora_unet__orig_mod_"),
    "flattened inside": ("kohya", "_0_attn", "_0__checkpoint_wrapped_module_attn"),
    "diffusers, compiled": ("diffusers", "unet.", "unet._orig_mod."),
    "diffusers, named": ("diffusers", ".weight", ".my_style.weight"),
    "loralib, parallel": ("loralib", "encoder.", "module.encoder."),
    "named": ("peft", ".weight", ".default.weight"),
    "named otherwise": ("peft", ".weight", ".sft-2.weight"),
}


def _read(tensors: dict[str, RawTensor], config: dict[str, Any] | None) -> Adapter:
    return adapters.read(dump(tensors, {}), config=config)


@pytest.mark.parametrize("case", DIRTY)
def test_wrappers_and_names_are_taken_away(case: str) -> None:
    """Cases 07 and 08: what a wrapper put into the keys changes nothing but a note."""
    dialect, plain, dirty = DIRTY[case]
    shapes, config = PLAIN[dialect]
    tensors = _tensors(shapes)
    expected = _read(tensors, config)
    found = _read({key.replace(plain, dirty, 1): tensor for key, tensor in tensors.items()}, config)
    assert len(set(found.notes) - set(expected.notes)) == (2 if case == "both" else 1)
    assert found.dialect == dialect
    assert adapters.dialect_of(found).tensors(found) == tensors
    assert [m.scaling for m in found.modules] == [m.scaling for m in expected.modules]


def test_all_parts_lose_the_name_of_the_adapter() -> None:
    """Case 08: embeddings, magnitudes, trained copies and untouched originals of a whole state dict."""
    config = CONFIG | {"modules_to_save": ["score"], "use_dora": True, "target_modules": ["q_proj", "embed_tokens"]}
    shapes: dict[str, tuple[int, ...]] = {
        f"{PEFT}.lora_A.x.weight": (2, 6),
        f"{PEFT}.lora_B.x.weight": (8, 2),
        f"{PEFT}.lora_magnitude_vector.x.weight": (8,),
        "base_model.model.model.embed_tokens.lora_embedding_A.x": (2, 9),
        "base_model.model.model.embed_tokens.lora_embedding_B.x": (6, 2),
        "base_model.model.score.modules_to_save.x.weight": (3, 6),
        "base_model.model.score.original_module.weight": (3, 6),
    }
    found = _read(_tensors(shapes), config)
    assert set(adapters.dialect_of(found).tensors(found)) == {
        f"{PEFT}.lora_A.weight",
        f"{PEFT}.lora_B.weight",
        f"{PEFT}.lora_magnitude_vector",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_embedding_B",
        "base_model.model.score.weight",
    }
    assert any("original_module" in note for note in found.notes)
    assert any("the name of the adapter, x" in note for note in found.notes)


def test_copy_without_a_name_keeps_its_module() -> None:
    """Case 08: older PEFT left modules_to_save in the key, and the word after it belongs to the module."""
    shapes = _pair(PEFT, ".lora_A.weight", ".lora_B.weight") | {
        "base_model.model.classifier.modules_to_save.dense.weight": (3, 6)
    }
    found = _read(_tensors(shapes), CONFIG | {"modules_to_save": ["classifier"]})
    assert set(found.raw) == {"base_model.model.classifier.dense.weight"}


def test_several_adapters_are_refused() -> None:
    """Case 08: which of two adapters is meant, nobody can say."""
    shapes = {f"{PEFT}.lora_{ab}.{name}.weight": (2, 2) for ab in "AB" for name in ("poet", "coder")}
    with pytest.raises(AdapterError, match="names of 2 adapters: coder, poet") as caught:
        _read(_tensors(shapes), CONFIG)
    assert caught.value.code == "several-adapters"


def test_two_keys_of_one_tensor_are_refused() -> None:
    shapes = _pair(PEFT, ".lora_A.weight", ".lora_B.weight") | {f"_orig_mod.{PEFT}.lora_A.weight": (2, 6)}
    with pytest.raises(AdapterError, match="means the same tensor as") as caught:
        _read(_tensors(shapes), CONFIG)
    assert caught.value.code == "duplicate-key"


def test_module_inside_a_path_stays() -> None:
    """A model may have a module of the name "module"; only one before all paths is a wrapper's."""
    shapes = _pair("base_model.model.encoder.module.q_proj", ".lora_A.weight", ".lora_B.weight")
    assert not _read(_tensors(shapes), CONFIG).notes


def test_decoded_directory_has_plain_keys(tmp_path: Path) -> None:
    """Case 07: the note is in the report, and PEFT's names are in the decoded file."""
    source = tmp_path / "adapter"
    source.mkdir()
    tensors = _tensors(PLAIN["peft"][0])
    data = dump({f"_orig_mod.{key}": tensor for key, tensor in tensors.items()}, {})
    (source / "adapter_model.safetensors").write_bytes(data)
    (source / "adapter_config.json").write_text(json.dumps(CONFIG))
    report = nola_codec.encode(source, tmp_path / "a.nola", size="40KB")
    assert "the keys are read without _orig_mod., which wrappers of the training put into them" in report.notes
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "again")
    with adapters.sources.open_source(tmp_path / "again") as opened:
        assert set(opened.file.tensors) == set(tensors)
