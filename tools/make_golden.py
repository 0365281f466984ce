"""Write the files that tests replay for ever: the encoder's files of the conformance kit, and `tests/kat/`.

    python tools/make_golden.py            # adds what is missing, never replaces

Golden files are made by the encoder, known answers by `spec/reference_decoder.py`, which shares no code with the
package. While the format is a draft (version 0), a change of the format takes four steps: delete the files by hand,
run this program, then `tools/make_conformance.py --replace`, which lists them, and review the diff.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from known_answers import SEED, long_bases

from nola_codec.api.decoding import read_adapter
from nola_codec.api.reference_sources import read_reference
from nola_codec.encoder.options import EncodeOptions
from nola_codec.encoder.pipeline import encode_adapter
from nola_codec.errors import EncodeError
from nola_codec.model.adapter import Adapter, BaseEntry, Layout, LoraModule, VectorTensor
from nola_codec.model.tensors import Draw, RawTensor
from nola_codec.prng.draws import draw_tensor

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "spec" / "conformance" / "valid"
KAT = ROOT / "tests" / "kat"
PREFIX = "base_model.model.model.layers"


def module(
    rng: np.random.Generator,
    name: str,
    b_shape: Sequence[int],
    a_shape: Sequence[int],
    *,
    layout: Layout = "linear",
    decay: float = 0.6,
    **extra: Any,
) -> LoraModule:
    """A module with a decaying spectrum."""
    rank, columns = a_shape[0], int(np.prod(a_shape[1:]))
    strength = decay ** np.arange(rank)
    lora_b = rng.standard_normal((b_shape[0], rank)) * strength * extra.pop("size", 0.02)
    lora_a = rng.standard_normal((rank, columns)) * 0.1
    return LoraModule(
        name=name,
        lora_A=lora_a.astype(np.float32),
        lora_B=lora_b.astype(np.float32),
        a_shape=tuple(a_shape),
        b_shape=tuple(b_shape),
        scaling=extra.pop("scaling", 2.0),
        layout=layout,
        **extra,
    )


def linears(rng: np.random.Generator, layers: int, out: int, columns: int, rank: int, decay: float = 0.6) -> Adapter:
    """q_proj and v_proj of some layers."""
    return Adapter(
        "peft",
        tuple(
            module(rng, f"{PREFIX}.{layer}.self_attn.{part}_proj", (out, rank), (rank, columns), decay=decay)
            for layer in range(layers)
            for part in "qv"
        ),
    )


def layouts(rng: np.random.Generator) -> Adapter:
    """Each layout, odd lengths, an unusual name, a module of zeros, all that a header carries."""
    zero = module(rng, f"{PREFIX}.0.mlp.zero", (7, 2), (2, 9))
    modules = (
        module(rng, "model.conv.0", (36, 2, 1, 1), (2, 3, 3, 3), layout="conv", dtype="F16"),
        module(rng, "model.embed_tokens", (20, 2), (2, 97), layout="embedding", scaling=0.5),
        module(rng, "h.0.attn.c_attn", (48, 3), (3, 7), fan_in_fan_out=True, dtype="BF16"),
        module(rng, "odd%23#007.x1", (3, 1), (1, 5), size=0.2),
        module(rng, "one", (1, 1), (1, 1), size=0.5),
        LoraModule(zero.name, zero.lora_A, zero.lora_B * 0, zero.a_shape, zero.b_shape, zero.scaling),
    )
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["conv", "x"],
        "nested": {"ü": [1.5, None]},
    }
    return Adapter("peft", modules, config=config, metadata={"format": "pt", "name": "Grüße"})


def raws(rng: np.random.Generator) -> Adapter:
    """Make carried tensors of several dtypes and shapes beside one module."""
    raw = {
        "classifier.weight": RawTensor("F32", (3, 4), rng.standard_normal(12).astype("<f4").tobytes()),
        "classifier.bias": RawTensor("F16", (3,), bytes(6)),
        "layers.0.flags": RawTensor("BOOL", (300,), b"\x01" * 300),
        "scalar": RawTensor("I64", (), (-5).to_bytes(8, "little", signed=True)),
        "empty": RawTensor("BF16", (0, 4), b""),
    }
    return Adapter("peft", (module(rng, "layers.0.q", (16, 2), (2, 16)),), raw)


def with_vectors(rng: np.random.Generator) -> Adapter:
    """Make vectors of several shapes and dtypes beside modules and a carried tensor; one is zero, one a scalar."""

    def tensor(name: str, size: float, *shape: int, **extra: Any) -> VectorTensor:
        return VectorTensor(name, (rng.standard_normal(shape) * size).astype(np.float32), **extra)

    vectors = (
        *(tensor(f"model.layers.{layer}.norm.weight.diff", 0.05, 36, dtype="BF16") for layer in range(3)),
        *(tensor(f"model.layers.{layer}.up.weight.diff", 0.02, 24, 40, gain=2.0) for layer in range(2)),
        tensor("odd#1.bias", 0.1, 7, dtype="F16"),
        tensor("scale", 1.0),
        VectorTensor("unchanged", np.zeros((3, 5), np.float32)),
    )
    raw = {"flags": RawTensor("BOOL", (3,), b"\x01\x00\x01")}
    return Adapter("peft", linears(rng, 2, 24, 40, 2).modules, raw, vectors=vectors)


def with_draws(rng: np.random.Generator) -> Adapter:
    """A VeRA and more: a draw of every method, with and without a divisor, slices and casts; a seed and a start."""
    low, high = -float(np.float32(0.3)), float(np.float32(0.3))  # no power of two: fused is another number
    draws = {
        "base_model.vera_A": Draw((4, 24), ("F32",), "uniform-fused", 24, 7, 0, 0, low, high),
        "base_model.vera_B": Draw((36, 4), ("F32",), "uniform", 24, 7, 96, 0, low, high),
        f"{PREFIX}.0.q.randlora_B": Draw((9, 3, 4), ("BF16", "F16", "F32"), "uniform-fused", 24, 2**32 - 1, 700, 1,
                                         low, high, 0.14453125),
        f"{PREFIX}.1.q.randlora_B": Draw((9, 3, 4), ("BF16", "F16", "F32"), "uniform-fused", 24, 2**32 - 1, 700, 1,
                                         low, high, 0.14453125),
        "ternary": Draw((5, 1, 40), ("F32", "BF16"), "ternary", 24, 5489, 12, 0, 1 / 8, 7 / 8, 0.4375),
        "eight": Draw((33,), ("BF16",), "uniform", 8, 1, 0, 0, -0.5, 0.5),
        "eleven": Draw((3, 5), ("F16",), "uniform", 11, 1, 623, 1, -0.5, 0.5, 3.0),
    }  # fmt: skip
    vectors = (
        VectorTensor(f"{PREFIX}.0.q.vera_lambda_b", rng.standard_normal(36).astype(np.float32), gain=0.3),
        VectorTensor(f"{PREFIX}.0.q.vera_lambda_d", rng.standard_normal(4).astype(np.float32), gain=0.9),
    )
    raw = {key: draw_tensor(draw) for key, draw in draws.items()}
    raw["scalar"] = raws(rng).raw["scalar"]
    return Adapter("peft", (), raw, vectors=vectors, draws=draws)


def next_version(rng: np.random.Generator, name: str, nmse: float | None) -> tuple[Adapter, EncodeOptions]:
    """Return the next version of what a golden file decodes to, and how to encode it against that file.

    A module has a rank more, the first vector another shape, and there are a module and a vector that are new.
    """
    path = GOLDEN / f"{name}.nola"
    before = read_adapter(path)

    def altered(array: np.ndarray, *shape: int) -> np.ndarray:
        size = float(np.sqrt((array**2).mean()))
        made = np.asarray(rng.standard_normal(shape or array.shape) * size * 0.2)
        made[tuple(slice(n) for n in array.shape)] += 1.1 * array
        return made.astype(np.float32)

    modules = [replace(m, lora_A=altered(m.lora_A), lora_B=altered(m.lora_B)) for m in before.modules]
    modules[-1] = replace(modules[-1], lora_B=5 * modules[-1].lora_B)  # other exponents than those of the reference
    first = modules[0]
    (out, rank), columns = first.lora_B.shape, first.lora_A.shape[1]
    modules[0] = replace(
        first,
        lora_B=altered(first.lora_B, out, rank + 1),
        lora_A=altered(first.lora_A, rank + 1, columns),
        b_shape=(out, rank + 1),
        a_shape=(rank + 1, columns),
    )
    modules.append(module(rng, f"{PREFIX}.{len(modules)}.self_attn.q_proj", (24, 2), (2, 40)))
    vectors = [replace(v, values=altered(v.values)) for v in before.vectors if v.values.size > 1]
    shorter = (rng.standard_normal(35) / 20).astype(np.float32)
    vectors = [*vectors[1:], replace(vectors[0], values=shorter), VectorTensor(f"new.{len(modules)}", shorter[:9])]
    options = EncodeOptions(reference=read_reference(path), nmse=nmse, error=None if nmse else 0.004)
    return replace(before, modules=tuple(modules), vectors=tuple(vectors)), options


def with_options(options: EncodeOptions, rng: np.random.Generator) -> tuple[Adapter, EncodeOptions]:
    """Return one small module and how to encode it."""
    return linears(rng, 1, 20, 28, 2), options


def planes(rng: np.random.Generator) -> Adapter:
    """Carried weights in float32, bfloat16 and float64, which are shorter in planes."""
    weights = rng.standard_normal((10, 30)).astype("<f4")
    half = (weights.view("<u4") >> 16).astype("<u2")
    raw = {
        "base_model.model.score.weight": RawTensor("F32", (10, 30), weights.tobytes()),
        "base_model.model.lm_head.weight": RawTensor("BF16", (10, 30), half.tobytes()),
        "base_model.model.head.weight": RawTensor("F64", (5, 12), weights[:2].astype("<f8").tobytes()),
    }
    return Adapter("peft", (), raw)


def named(adapter: Adapter) -> Adapter:
    """Return an adapter that names its base model."""
    return replace(adapter, base=BaseEntry("some/model", "main", hashlib.sha256(b"its weights").digest()))


def worked(rng: np.random.Generator) -> Adapter:
    """Make the file that the specification decodes to the last number: a module, a bias and a carried number."""
    raw = {"steps": RawTensor("I16", (), b"\x64\x00")}
    bias = VectorTensor("layers.0.q.bias.diff", (rng.standard_normal(3) * 0.02).astype(np.float32))
    return Adapter("peft", (module(rng, "layers.0.q", (6, 2), (2, 4), decay=0.9),), raw, vectors=(bias,))


def golden_files() -> dict[str, Callable[[np.random.Generator], tuple[Adapter, EncodeOptions]]]:
    """Name -> what to encode."""
    paper: dict[str, Any] = {"num_basis": 40, "bits": 4, "seed": SEED}
    files: dict[str, Callable[[np.random.Generator], tuple[Adapter, EncodeOptions]]] = {
        "effective": lambda rng: (linears(rng, 3, 64, 96, 4), EncodeOptions(error=0.02)),
        "nmse": lambda rng: (linears(rng, 2, 40, 64, 4), EncodeOptions(nmse=0.05, seed=7)),
        "short": lambda rng: (linears(rng, 2, 40, 36, 3), EncodeOptions(nmse=0.1)),
        "rungs": lambda rng: (
            linears(rng, 3, 96, 640, 4),
            EncodeOptions(nmse=0.2, progressive=True, rungs=(1200, 2200)),
        ),
        "effective-rungs": lambda rng: (linears(rng, 2, 600, 200, 3), EncodeOptions(error=0.1, rungs=(600,))),
        "trellis": lambda rng: (linears(rng, 4, 640, 600, 8, 0.7), EncodeOptions(error=0.3)),
        "dependent": lambda rng: (linears(rng, 2, 160, 256, 6), EncodeOptions(nmse=0.01)),
        "codec-raw": lambda rng: (linears(rng, 1, 36, 48, 2), EncodeOptions(nmse=0.2, entropy=("raw",))),
        "blocks": lambda rng: (linears(rng, 4, 64, 96, 4), EncodeOptions(nmse=0.05, block_size=400)),
        "base": lambda rng: (named(linears(rng, 1, 24, 40, 2)), EncodeOptions(nmse=0.1)),
        "codec-rans": lambda rng: (linears(rng, 4, 128, 192, 3), EncodeOptions(nmse=0.02, entropy=("raw", "rans"))),
        "shared-basis": lambda rng: (linears(rng, 3, 32, 48, 2), EncodeOptions(nmse=0.2, shared_basis=True)),
        "layouts": lambda rng: (layouts(rng), EncodeOptions(nmse=0.02)),
        "raw-tensors": lambda rng: (raws(rng), EncodeOptions(nmse=0.1)),
        "only-raw": lambda rng: (Adapter("peft", (), raws(rng).raw), EncodeOptions(size=4000)),
        "empty": lambda rng: (Adapter("peft", ()), EncodeOptions(size=4000)),
        "bits-1": lambda rng: (linears(rng, 1, 20, 28, 2), EncodeOptions(bits=1)),
        "bits-16": lambda rng: (linears(rng, 1, 12, 20, 2), EncodeOptions(bits=16)),
    }
    for basis in ("hadamard", "rademacher", "uniform"):
        files[f"paper-{basis}"] = partial(with_options, EncodeOptions(basis=basis, **paper))
    files |= {
        "vectors": lambda rng: (with_vectors(rng), EncodeOptions(nmse=0.02)),
        "vectors-rungs": lambda rng: (with_vectors(rng), EncodeOptions(nmse=0.05, rungs=(450,))),
        "vectors-paper": lambda rng: (with_vectors(rng), EncodeOptions(basis="rademacher", **paper)),
        "only-vectors": lambda rng: (
            Adapter("peft", (), vectors=with_vectors(rng).vectors),
            EncodeOptions(nmse=0.1, shared_basis=True),
        ),
    }
    files |= {
        "drawn": lambda rng: (with_draws(rng), EncodeOptions(nmse=0.05)),
        "drawn-rungs": lambda rng: (with_draws(rng), EncodeOptions(nmse=0.05, rungs=(420,))),
        "planes": lambda rng: (planes(rng), EncodeOptions(size=4000)),
    }
    files |= {  # each needs the file before it
        "reference": lambda rng: next_version(rng, "vectors", 0.02),
        "reference-chain": lambda rng: next_version(rng, "reference", None),
        "reference-unchanged": lambda rng: (
            read_adapter(GOLDEN / "reference-chain.nola"),
            EncodeOptions(reference=read_reference(GOLDEN / "reference-chain.nola"), nmse=0.02, shared_basis=True),
        ),
    }
    files["worked"] = lambda rng: (worked(rng), EncodeOptions(nmse=0.06))
    return files


def encode(adapter: Adapter, options: EncodeOptions) -> bytes:
    """The file; the error of an adapter this small moves in steps, so a target may have to be moved to be hit."""
    for attempt in range(8):
        aim = options if options.nmse is None else replace(options, nmse=options.nmse * 0.93**attempt)
        try:
            return encode_adapter(adapter, aim, source_bytes=0)[0]
        except EncodeError as error:
            if error.code != "unreachable" or attempt == 7 or options.nmse is None:
                raise
    raise AssertionError


def reference() -> ModuleType:
    """`spec/reference_decoder.py` as a module."""
    spec = importlib.util.spec_from_file_location("reference_decoder", ROOT / "spec" / "reference_decoder.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def torch_answers() -> list[dict[str, Any]]:
    """Tensors that the installed PyTorch draws on this CPU; each line names the kernels that drew it."""
    import torch

    answers = []
    for seed in (0, 7, 2**32 - 1, 2**32 + 7, 2**63 + 12345):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for count, low, high in ((5, -0.25, 0.25), (17, 0.0, 1.0), (100, -(3.0**0.5) / 7, 3.0**0.5 / 7)):
                generator = torch.Generator("cpu").manual_seed(seed)
                torch.empty(3).uniform_(generator=generator)
                made = torch.empty(count, dtype=dtype).uniform_(low, high, generator=generator)
                answers.append(
                    {
                        "torch": torch.__version__.split("+")[0], "kernels": torch.backends.cpu.get_cpu_capability(),
                        "seed": seed, "start": 3, "dtype": str(dtype).removeprefix("torch."), "count": count,
                        "low": low, "high": high,
                        "sha256": hashlib.sha256(made.view(torch.uint8).numpy().tobytes()).hexdigest(),
                        "first": made[:3].double().tolist(),
                    }
                )  # fmt: skip
    return answers


def write_new(path: Path, data: bytes) -> None:
    """Write, unless there is a file: then say so and leave it."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        print(f"{path.relative_to(ROOT)}: already there, left as it is", file=sys.stderr)
    else:
        print(f"{path.relative_to(ROOT)}: {len(data)} bytes")


def write_answers(name: str, answers: Sequence[dict[str, Any]]) -> None:
    """A known-answer file, one answer a line."""
    lines = ",\n".join(json.dumps(answer) for answer in answers)
    write_new(KAT / name, f"[\n{lines}\n]\n".encode())


def main() -> None:
    """Write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for index, (name, make) in enumerate(golden_files().items()):
        path = GOLDEN / f"{name}.nola"
        if not path.exists():
            write_new(path, encode(*make(np.random.default_rng(index))))
    write_answers("bases.json", long_bases(reference()))
    # Once without and once with what newer CPUs have: ATEN_CPU_CAPABILITY=default python tools/make_golden.py
    name = f"torch-{'plain' if os.environ.get('ATEN_CPU_CAPABILITY') == 'default' else 'fused'}.json"
    if not (KAT / name).exists():
        write_answers(name, torch_answers())


if __name__ == "__main__":
    main()
