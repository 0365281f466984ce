"""Models and adapters made by Transformers and PEFT, and PEFT's own merges, to hold merges of `.nola` files against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import nola_codec

Tensors = dict[str, torch.Tensor]


def make_adapter(model: Any, out: Path, **options: Any) -> Path:
    """Put a LoRA with random factors into a model, save it, and take it out again."""
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **options))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    tuned.save_pretrained(out)
    tuned.unload()
    return out


def rename_keys(adapter: Path, out: Path, renames: dict[str, str]) -> Path:
    """Copy an adapter with parts of its keys replaced, as an older version of its tools would have called them."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {}
    for key, tensor in tensors.items():
        for old, new in renames.items():
            key = key.replace(old, new)
        renamed[key] = tensor
    assert set(renamed) != set(tensors)
    out.mkdir()
    save_file(renamed, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    return out


def merge_both(
    model_class: Any, base: Path, adapter: Path, work: Path, renames: dict[str, str] | None = None
) -> tuple[Tensors, Tensors]:
    """Return the merged weights of this package, and those of PEFT, which merges the decoded adapter.

    Args:
        model_class: The class of Transformers that loads the base.
        base: The base model.
        adapter: The adapter, which is encoded first.
        work: A directory that is made.
        renames: Parts of keys that are replaced before PEFT loads the decoded adapter.
    """
    from peft import PeftModel

    work.mkdir()
    nola_codec.encode(adapter, work / "a.nola", num_basis=64)
    decoded = nola_codec.decode(work / "a.nola", work / "decoded")
    nola_codec.decode(work / "a.nola", work / "ours", base=base)
    if renames:
        decoded = rename_keys(decoded, work / "renamed", renames)
    model = model_class.from_pretrained(base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, decoded).merge_and_unload()
    assert any(not torch.equal(before[name], weight) for name, weight in merged.state_dict().items())
    merged.save_pretrained(work / "theirs")
    return load_file(work / "ours" / "model.safetensors"), load_file(work / "theirs" / "model.safetensors")


def require_equal(ours: Tensors, theirs: Tensors, base: Path, *, changed: int | None = None) -> None:
    """Require the same tensors, equal within the rounding of float32, and that the merge changed some of them."""
    before = load_file(base / "model.safetensors")
    assert set(ours) == set(theirs) == set(before)
    different = {name for name, weight in ours.items() if not torch.equal(weight, before[name])}
    assert different == {name for name, weight in theirs.items() if not torch.equal(weight, before[name])}
    assert changed is None or len(different) == changed, sorted(different)
    for name in different:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6, msg=name)
