"""torchtune's and mistral-finetune's adapters in PEFT's form: other names, and other rows of queries and keys.

Cases 01 and 22. The truth is the attention itself: Meta's rotation of neighbouring pairs on the one hand, and that of
Transformers on the other, must give the same scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import nola_codec
from nola_codec.adapters import read, write
from nola_codec.adapters.conversion import convert
from nola_codec.errors import AdapterError

HIDDEN, HEADS, KV_HEADS, SIZE, RANK = 32, 4, 2, 8, 3
CONFIG = {
    "model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
}  # fmt: skip
NAMES = {
    "torchtune": ("attn.q_proj", "attn.k_proj", "attn.output_proj", "mlp.w1", "mlp.w2", "mlp.w3"),
    "mistral": (*(f"attention.w{n}" for n in "qko"), *(f"feed_forward.w{n}" for n in (1, 2, 3))),
}
OF_TRANSFORMERS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj",
)  # fmt: skip
SHAPES = ((32, 32), (16, 32), (32, 32), (48, 32), (32, 48), (48, 32))


def save_tool_file(tool: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write the adapter of a tool, with the scaling 2; return the deltas in the tool's order of rows, by own name."""
    torch.manual_seed(1)
    tensors, deltas = {}, {}
    for name, (out, inputs) in zip(NAMES[tool], SHAPES, strict=True):
        a, b = torch.randn(RANK, inputs), torch.randn(out, RANK)
        first, second = ("lora_a", "lora_b") if tool == "torchtune" else ("lora_A", "lora_B")
        tensors |= {f"layers.0.{name}.{first}.weight": a, f"layers.0.{name}.{second}.weight": b}
        deltas[name] = 2.0 * b @ a
    if tool == "torchtune":
        torch.save(tensors, folder / "adapter_0.pt")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 6}))
    else:
        save_file(tensors, folder / "lora.safetensors")
        (folder / "params.json").write_text(json.dumps({"lora": {"enable": True, "rank": RANK, "scaling": 2.0}}))
    return deltas


def rotate_neighbours(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Meta's rotation of ``x`` (positions, heads, size): neighbours are one complex number."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


@pytest.mark.parametrize("tool", sorted(NAMES))
def test_scores_are_those_of_the_tool(tool: str, tmp_path: Path) -> None:
    deltas = save_tool_file(tool, tmp_path)
    source = tmp_path / "adapter_0.pt" if tool == "torchtune" else tmp_path
    converted = convert(read(source), "peft", CONFIG)
    out = write(converted, tmp_path / "peft")
    factors = load_file(out / "adapter_model.safetensors")
    found = {
        name: 2.0
        * factors[f"base_model.model.model.layers.0.{name}.lora_B.weight"]
        @ factors[f"base_model.model.model.layers.0.{name}.lora_A.weight"]
        for name in OF_TRANSFORMERS
    }
    for own, name in list(zip(NAMES[tool], OF_TRANSFORMERS, strict=True))[2:]:
        torch.testing.assert_close(found[name], deltas[own])
    x, positions = torch.randn(5, HIDDEN), torch.arange(5.0)
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, SIZE, 2) / SIZE)[None]
    own_q, own_k = (rotate_neighbours((x @ deltas[name].T).view(5, -1, SIZE), angles) for name in NAMES[tool][:2])
    q, k = ((x @ found[name].T).view(1, 5, -1, SIZE).transpose(1, 2) for name in OF_TRANSFORMERS[:2])
    both = torch.cat((angles, angles), -1)[None]
    q, k = apply_rotary_pos_emb(q, k, both.cos(), both.sin())
    groups = HEADS // KV_HEADS
    expected = torch.einsum("phs,qhs->hpq", own_q, own_k.repeat_interleave(groups, 1))
    torch.testing.assert_close(q[0] @ k[0].repeat_interleave(groups, 0).mT, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_coded_file_loads_in_peft(tmp_path: Path) -> None:
    """`decode --format peft --base` of a `.nola` file gives an adapter whose keys all belong to the model."""
    from peft import PeftModel

    model = LlamaForCausalLM(
        LlamaConfig(**CONFIG, intermediate_size=48, num_hidden_layers=1, vocab_size=16, head_dim=SIZE)
    )
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "own").mkdir()
    save_tool_file("mistral", tmp_path / "own")
    nola_codec.encode(tmp_path / "own", tmp_path / "task.nola", nmse=0.1)
    nola_codec.decode(tmp_path / "task.nola", tmp_path / "peft", format="peft", base=tmp_path / "base")
    loaded = PeftModel.from_pretrained(model, tmp_path / "peft")
    assert len(loaded.peft_config["default"].target_modules) == len(OF_TRANSFORMERS)
    norms = [float(p.detach().norm()) for name, p in loaded.named_parameters() if "lora_B" in name]
    assert len(norms) == len(OF_TRANSFORMERS)
    assert min(norms) > 0


def test_rows_of_qwen2_keep_their_order(tmp_path: Path) -> None:
    save_tool_file("torchtune", tmp_path)
    adapter = read(tmp_path / "adapter_0.pt")
    converted = convert(adapter, "peft", {**CONFIG, "model_type": "qwen2"})
    own = {m.name: m for m in adapter.modules}["layers.0.attn.q_proj"]
    made = next(m for m in converted.modules if m.name.endswith("q_proj"))
    np.testing.assert_array_equal(made.lora_B, own.lora_B)


@pytest.mark.parametrize(
    ("base", "code", "words"),
    [
        (None, "needs-base", "--base"),
        ({**CONFIG, "model_type": "gemma"}, "not-expressible", "gemma"),
        ({**CONFIG, "num_attention_heads": 5}, "base-mismatch", "5 heads"),
    ],
)
def test_what_is_refused(base: dict[str, object] | None, code: str, words: str, tmp_path: Path) -> None:
    save_tool_file("torchtune", tmp_path)
    with pytest.raises(AdapterError, match=words) as caught:
        convert(read(tmp_path / "adapter_0.pt"), "peft", base)
    assert caught.value.code == code
