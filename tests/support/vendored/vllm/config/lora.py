"""Stands for `vllm.config.lora`, of which `peft_helper.py` needs a name and one setting."""

from dataclasses import dataclass


@dataclass
class LoRAConfig:
    max_lora_rank: int = 16
