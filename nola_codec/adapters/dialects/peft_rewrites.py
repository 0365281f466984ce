"""Read the older and rarer forms of PEFT's LoRA as the plain form: AdaLoRA, and factors of fused projections."""

from __future__ import annotations

from dataclasses import replace

from nola_codec.adapters.dialects import peft_adalora
from nola_codec.adapters.dialects.merged_linear import NOTE, enabled_blocks, is_merged_linear, plain_factor
from nola_codec.adapters.dialects.peft_config import PREFIX, parse_config, with_ranks
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.stores.tensor_store import MemoryStore

_A, _B = ".lora_A.weight", ".lora_B.weight"


def as_plain_lora(source: AdapterSource) -> tuple[AdapterSource, tuple[str, ...]]:
    """Return a source in the plain form of LoRA, and notes for the user. A plain source is returned as it is.

    Raises:
        AdapterError: Those of `peft_adalora.as_lora`, `enabled_blocks`, `plain_factor` and `parse_config`.
    """
    config = source.config
    if config is not None and config.get("peft_type") == peft_adalora.PEFT_TYPE:
        return peft_adalora.as_lora(source)
    shapes = {key: info.shape for key, info in source.file.tensors.items()}
    modules = [key.removesuffix(_B) for key in shapes if key.endswith(_B) and key.removesuffix(_B) + _A in shapes]
    enabled = enabled_blocks(config, f"{source.where}: {CONFIG_NAME}")
    merged = [m for m in modules if is_merged_linear(shapes[m + _A], shapes[m + _B], enabled)]
    if enabled is None:
        # A wrong rank is more likely than a fused projection without its flags, and has an error of its own.
        merged = [module for module in merged if len(shapes[module + _B]) == 3]
    if not merged:
        return source, ()
    tensors = {key: source.file.read(key) for key in shapes}
    for module in merged:
        key = module + _B
        tensors[key] = plain_factor(tensors[key], shapes[module + _A], enabled, f"{source.where}: {key}")
    assert config is not None, "the flags are in the configuration"
    settings = parse_config(config, f"{source.where}: {CONFIG_NAME}")
    ranks = {module.removeprefix(PREFIX): shapes[module + _A][0] for module in modules}
    plain = {key: value for key, value in config.items() if key not in ("enable_lora", "merge_weights")}
    made = with_ranks(plain, ranks, {path: settings.scaling_of(path) for path in ranks})
    file = MemoryStore(tensors, name=source.file.name, metadata=source.file.metadata)
    return replace(source, file=file, config=made), (NOTE,)
