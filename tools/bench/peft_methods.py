"""Measure `.nola` files of PEFT's methods of few numbers against what PEFT saves: bytes, exact and at two errors.

    python tools/bench/peft_methods.py [--anew] [--json]

Each method adapts the queries and values of a network without training: two settings each, about 256 trained numbers
in layers of 16 x 16, and PEFT's own defaults in layers of 576 x 576. All trained numbers are drawn from a normal
distribution, so nothing but their sizes is of the task. `.nola` files hold the configuration too, which PEFT saves
beside the tensors. The exact file is decoded, and its tensors must be PEFT's to the bit. It takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common import table

import nola_codec
from nola_codec.errors import EncodeError
from nola_codec.stores.safetensors_io import SafetensorsFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import results

ERRORS = (0.01, 0.1)
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "UniLoraConfig": {"theta_d_length": 256},
    "TinyLoraConfig": {"u": 64},
    "VBLoRAConfig": {"num_vectors": 32, "vector_length": 8},
    "FourierFTConfig": {"n_frequency": 64},
    "WaveFTConfig": {"n_frequency": 64},
    "PveraConfig": {"r": 8},
}
_LARGE: Mapping[str, Mapping[str, Any]] = {
    "UniLoraConfig": {"theta_d_length": 4096},
    "TinyLoraConfig": {},
    "VBLoRAConfig": {"num_vectors": 256, "vector_length": 64, "save_only_topk_weights": True},
    "FourierFTConfig": {},
    "WaveFTConfig": {},
    "PveraConfig": {"r": 64},
}
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"small": _SMALL, "large": _LARGE}


def save_adapter(method: str, options: Mapping[str, Any], width: int, out: Path) -> int:
    """Save an adapter of a network with layers of width x width, and return how many numbers it trains."""
    import peft
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=32, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    chosen = getattr(peft, method)(target_modules=["q_proj", "v_proj"], **options)
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), chosen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(out)
    return sum(parameter.numel() for parameter in trained)


def tensors(directory: Path) -> dict[str, object]:
    """Return the tensors of a directory of PEFT by key."""
    with SafetensorsFile(directory / "adapter_model.safetensors") as file:
        return {key: file.read(key) for key in file.tensors}


def measure(method: str, options: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return the bytes of PEFT's files and of `.nola` files."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about seeds and buffers
        source = Path(folder) / "adapter"
        numbers = save_adapter(method, options, width, source)
        exact = Path(folder) / "a.nola"
        nola_codec.encode(source, exact)
        nola_codec.decode(exact, Path(folder) / "out")
        if tensors(Path(folder) / "out") != tensors(source):
            raise AssertionError(f"{method}: the decoded tensors are not those of PEFT")
        figures: dict[str, Any] = {
            "numbers": numbers,
            "peft": (source / "adapter_model.safetensors").stat().st_size,
            "peft_config": (source / "adapter_config.json").stat().st_size,
            "exact": exact.stat().st_size,
        }
        for error in ERRORS:
            try:
                figures[f"nmse {error}"] = nola_codec.encode(source, nmse=error).bytes
            except EncodeError as problem:
                figures[f"nmse {error}"] = None
                print(f"{method}: {problem}", file=sys.stderr)
    return figures


def main() -> None:
    """Measure what is not measured yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    results.add_options(parser)
    arguments = parser.parse_args()
    rows = []
    for size, methods in METHODS.items():
        width = {"small": 16, "large": 576}[size]
        for method, options in methods.items():
            settings = {"method": method, "size": size, "width": width, "options": dict(options)}
            program = partial(measure, method, options, width)
            rows.append(results.measure("peft_methods", settings, program, anew=arguments.anew))
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    cells = [[r["settings"]["method"].removesuffix("Config"), str(r["settings"]["width"]),
              *(f"{r['figures'][key]:,}" for key in r["figures"])] for r in rows]  # fmt: skip
    print(table(cells, ["method", "width", *rows[0]["figures"]]))


if __name__ == "__main__":
    main()
