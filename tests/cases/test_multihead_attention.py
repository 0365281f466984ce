"""LoRA on `torch.nn.MultiheadAttention`: PEFT's forward pass, which the adapter was trained with, is the oracle.

PEFT has one rank and one alpha for both projections, and adds the delta of the output projection twice.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import nola_codec
from nola_codec.adapters import read, write
from nola_codec.adapters.trimming import trim
from nola_codec.errors import AdapterError
from nola_codec.integrations import peft as nola_peft

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(16, 2, batch_first=True)
        self.lin = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(self.mha(x, x, x, need_weights=False)[0])  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def save_adapter(folder: Path, seed: int = 1, /, **options: Any) -> Path:
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["mha", "lin"],
        "init_lora_weights": False,
        **options,
    }
    adapted = get_peft_model(net(), LoraConfig(**chosen))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and not name.endswith("mha.lora_B.default.bias"):  # which PEFT never uses
                # Multiples of 1 / 16, of which a file loses little.
                parameter.copy_(torch.randint(-4, 5, parameter.shape) / 16)
    adapted.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def peft_output(folder: Path) -> Tensor:
    """What the model computes with an adapter that is not merged."""
    return PeftModel.from_pretrained(net(), folder).eval()(X)  # type: ignore[no-any-return]


@torch.no_grad()
def merged_output(file: Path) -> Tensor:
    """What the model computes after a merge of this package."""
    plain = net()
    with nola_codec.load(file) as opened:
        opened.merge_into(plain)
    return plain(X)  # type: ignore[no-any-return]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"lora_alpha": 3, "use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"mha": 40}},
    "rank_pattern": {"rank_pattern": {"mha": 2}},
    "other patterns": {"rank_pattern": {"lin": 3}, "alpha_pattern": {"lin": 5}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_merge_computes_what_peft_computes(case: str, tmp_path: Path) -> None:
    """The decoded directory and the merge agree with PEFT's forward pass, and all factors come back."""
    folder = save_adapter(tmp_path / "a", **CASES[case])
    wanted = peft_output(folder)
    nola_codec.encode(folder, tmp_path / "a.nola", nmse=1e-3)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded")
    decoded = peft_output(tmp_path / "decoded")
    torch.testing.assert_close(merged_output(tmp_path / "a.nola"), decoded, rtol=0, atol=1e-5)
    assert (decoded - wanted).norm() < 0.5 * wanted.norm()
    configs = [json.loads((each / "adapter_config.json").read_text()) for each in (folder, tmp_path / "decoded")]
    assert configs[0] == configs[1]


def test_a_trim_keeps_one_rank_for_both_projections(tmp_path: Path) -> None:
    adapter = read(save_adapter(tmp_path / "a", alpha_pattern={"mha": 40}))
    for module in adapter.modules:
        kept = {"mha": 1, "out_proj": 2, "lin": 3}[module.name.rpartition(".")[2]]
        module.lora_A[kept:] = 0
    write(adapter, tmp_path / "whole")
    trimmed, count = trim(adapter)
    write(trimmed, tmp_path / "trimmed")
    assert (count.found, count.dropped, count.kept) == (12, 5, 1)
    torch.testing.assert_close(peft_output(tmp_path / "trimmed"), peft_output(tmp_path / "whole"), rtol=0, atol=1e-6)


def test_a_lone_file_means_the_same(tmp_path: Path) -> None:
    """Scalings go into lora_B of a lone file as PEFT's layers have them, and are read from it as they were."""
    adapter = read(save_adapter(tmp_path / "a", lora_alpha=8))
    again = read(write(adapter, tmp_path / "a.safetensors"))
    for old, new in zip(adapter.modules, again.modules, strict=True):
        scaled = new.scaling * new.lora_B @ new.lora_A
        torch.testing.assert_close(torch.from_numpy(scaled), torch.from_numpy(old.scaling * old.lora_B @ old.lora_A))


@pytest.mark.parametrize("first", ["plain", "alpha_pattern"])
def test_joined_adapters_add_up(first: str, tmp_path: Path) -> None:
    """Two merges, one after the other, are the merge of the joined adapter; PEFT computes the same with it."""
    one = save_adapter(tmp_path / "one", 1, **CASES[first])
    two = save_adapter(tmp_path / "two", 2, **CASES["rank_pattern"])
    nola_codec.merge_adapters([one, (two, 0.5)], tmp_path / "both")
    plain = net()
    for folder, weight in ((one, 1.0), (two, 0.5)):
        merged, before = PeftModel.from_pretrained(net(), folder).merge_and_unload(), net().state_dict()
        for name, value in merged.state_dict().items():
            plain.state_dict()[name] += weight * (value - before[name])
    with torch.no_grad():
        torch.testing.assert_close(peft_output(tmp_path / "both"), plain(X), rtol=0, atol=1e-5)


def test_a_hot_swap_sets_the_scaling_of_the_layer(tmp_path: Path) -> None:
    for name, case in (("one", "plain"), ("two", "alpha_pattern")):
        save_adapter(tmp_path / name, **CASES[case])
        nola_codec.encode(tmp_path / name, tmp_path / f"{name}.nola", nmse=1e-3)
    live = nola_peft.load(net(), tmp_path / "one.nola")
    nola_peft.load(live, tmp_path / "two.nola", replace=True)
    with torch.no_grad():
        torch.testing.assert_close(live(X), nola_peft.load(net(), tmp_path / "two.nola")(X), rtol=0, atol=1e-6)


def test_the_bias_of_the_output_is_added_once(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", lora_alpha=8, lora_bias=True, init_lora_weights=True)
    nola_codec.encode(folder, tmp_path / "a.nola", nmse=1e-3)
    nola_codec.decode(tmp_path / "a.nola", tmp_path / "decoded")
    merged = PeftModel.from_pretrained(net(), tmp_path / "decoded").merge_and_unload()
    plain = net()
    with nola_codec.load(tmp_path / "a.nola") as opened:
        opened.merge_into(plain)
    torch.testing.assert_close(plain.mha.out_proj.bias, merged.mha.out_proj.bias)


def test_projections_of_several_ranks_are_refused(tmp_path: Path) -> None:
    """What one entry of a configuration cannot state is not written."""
    adapter = read(save_adapter(tmp_path / "a"))
    odd = tuple(replace(module, scaling=1.0) for module in adapter.modules)
    with pytest.raises(AdapterError) as caught:
        write(replace(adapter, modules=odd), tmp_path / "out")
    assert caught.value.code == "target-parameters"
