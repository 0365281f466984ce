"""More of `odd_files`: dialects other than PEFT's, right, wrong and mixed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from odd_files import CONFIG, GOOD, MODULE, A, B, Tensors, add, factors, files, lone, numbers, peft, raw, without

from nola_codec.model.tensors import RawTensor
from nola_codec.stores.pickle_io import dump_pickle
from nola_codec.stores.safetensors_writer import dump

KOHYA = "lora_unet_down_blocks_0_attentions_0_proj_in"


def lora(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Callable[[Path], Path]:
    """A lone file."""
    return lone("lora.safetensors", dump(tensors, metadata))


def pair(a: str, b: str, *, out: int = 7, into: int = 9, turned: bool = False) -> Tensors:
    """Factors of rank 2 under these keys; stored transposed, as MLX has them, or not."""
    shapes = ((into, 2), (2, out)) if turned else ((2, into), (out, 2))
    return {key: raw(numbers(*shape)) for key, shape in zip((a, b), shapes, strict=True)}


def scalar(value: float, dtype: str = "F32") -> RawTensor:
    return raw(np.array(value), dtype)


PLAIN = pair(f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight")
ALPHA = {f"{KOHYA}.alpha": scalar(1.0)}
DIFFUSERS = pair("unet.mid.to_q.lora_A.weight", "unet.mid.to_q.lora_B.weight")
MLX = pair("model.layers.0.q_proj.lora_a", "model.layers.0.q_proj.lora_b", turned=True)
LOHA = {
    f"{KOHYA}.hada_w{n}_{s}": raw(numbers(*((7, 2) if s == "a" else (2, 9)), seed=int(n))) for n in "12" for s in "ab"
}
LOKR = {f"{KOHYA}.lokr_w1": raw(numbers(2, 3)), f"{KOHYA}.lokr_w2": raw(numbers(4, 5))}
RIGHT: dict[str, Tensors] = {
    "kohya": PLAIN | ALPHA,
    "kohya without alpha": PLAIN,
    "kohya with an alpha of another dtype": PLAIN | {f"{KOHYA}.alpha": scalar(2.0, "BF16")},
    "kohya's DoRA": PLAIN | ALPHA | {f"{KOHYA}.dora_scale": raw(numbers(7, 1))},
    "ComfyUI": {key.replace(KOHYA, "diffusion_model.blocks.0.q"): tensor for key, tensor in (PLAIN | ALPHA).items()},
    "diffusers": DIFFUSERS,
    "diffusers of old": pair(*(f"unet.mid.attn1.processor.to_q_lora.{side}.weight" for side in ("down", "up"))),
    "LoHa": LOHA | ALPHA,
    "LoKr": LOKR | ALPHA,
    "LoKr of zeros": {key: raw(np.zeros(tensor.shape)) for key, tensor in LOKR.items()},
    "a full delta": {f"{KOHYA}.diff": raw(numbers(7, 9)), f"{KOHYA}.diff_b": raw(numbers(7))},
    "MLX": MLX,
    "loralib": pair("q.lora_A", "q.lora_B"),
    "cloneofsimo": pair("unet:0:down", "unet:0:up"),
    "Sam_LoRA": pair("w_a_000", "w_b_000"),
}

# A key of a module that is not there, as each dialect spells it.
LONELY = (
    ("proj_in", "proj_out"), (".q", ".k"), ("q.", "k."), (":0:", ":1:"), ("000", "001"), ("mid", "up"),
)  # fmt: skip


def make_right_and_wrong() -> None:
    """Every dialect as it should be, and with the same faults."""
    for name, tensors in RIGHT.items():
        first, tensor = next(iter(tensors.items()))
        stranger = tensors | {"surprise": raw(numbers(3))}
        add(name, lora(tensors))
        add(f"{name}, in doubles", lora({key: raw(numbers(*t.shape), "F64") for key, t in tensors.items()}))
        add(f"{name}, with NaN", lora(tensors | {first: raw(np.full(tensor.shape, np.nan))}), "not-finite")
        add(f"{name}, in bytes", lora(tensors | {first: raw(np.ones(tensor.shape), "I8")}), "not-float")
        add(f"{name}, and a stranger", lora(stranger), "unknown-key")
        if name in ("kohya", "diffusers", "MLX", "loralib"):
            add(f"{name}, pickled", lone("lora.pt", dump_pickle(tensors)))
            add(f"{name}, and a stranger passed through", lora(stranger), None, "", "--carry-unknown")
        if name != "a full delta":
            other = next(first.replace(old, new, 1) for old, new in LONELY if old in first)
            add(f"{name}, with half a pair more", lora(tensors | {other: tensor}), "missing-partner")


def make_bombs() -> None:
    """Small files of parts that make very large deltas."""
    add(
        "LoKr that unfolds to 2^32 elements",
        lora({f"{KOHYA}.lokr_w{n}": raw(numbers(256, 256)) for n in "12"}),
        "limit",
    )
    long, wide = raw(numbers(1 << 15, 1)), raw(numbers(1, 1 << 15))
    loha = {f"{KOHYA}.hada_w{n}_{s}": long if s == "a" else wide for n in "12" for s in "ab"}
    add("LoHa that unfolds to 2^30 elements", lora(loha), "limit")
    down, middle, up = raw(numbers(1, 1 << 13, 1, 1)), raw(numbers(1, 1, 4, 4)), raw(numbers(1 << 13, 1, 1, 1))
    tucker = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_mid.weight": middle, f"{KOHYA}.lora_up.weight": up}
    add("Tucker that unfolds to 2^30 elements", lora(tucker), "limit")
    down, up = raw(numbers(1, 1 << 13)), raw(numbers(1 << 13, 1))
    plain = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}
    add("LoRA that unfolds to 2^26 elements", lora(plain))


def make_alphas() -> None:
    """Alphas that are something else than a number."""
    for name, tensor, code in (
        ("NaN", scalar(np.nan), "bad-alpha"), ("infinite", scalar(np.inf), "bad-alpha"),
        ("a list", raw(numbers(2)), "bad-alpha"), ("an integer", scalar(1, "I32"), None),
        ("1e38", scalar(1e38), None), ("1e-40", scalar(1e-40), None), ("0", scalar(0), None), ("-1", scalar(-1), None),
    ):  # fmt: skip
        add(f"an alpha that is {name}", lora(PLAIN | {f"{KOHYA}.alpha": tensor}), code)


def make_mixed() -> None:
    """Two adapters in one file."""
    dialects = {"PEFT": GOOD, "kohya": PLAIN | ALPHA, "diffusers": DIFFUSERS, "MLX": MLX}
    for first, one in dialects.items():
        for second, other in dialects.items():
            if first < second:
                # diffusers' keys are PEFT's without a prefix, so that such a file has one meaning.
                code = None if (first, second) == ("PEFT", "diffusers") else "unknown-key"
                add(f"{first} and {second} in one file", lora(one | other), code)
    add("half of PEFT's factors beside kohya's", lora(without(B) | PLAIN), "missing-partner")


def make_metadata() -> None:
    """What diffusers and MLX say beside the tensors."""
    for what, text, code in (
        ("not JSON", "{", "bad-config"), ("a list", "[]", "bad-config"), ("nested", "[" * 100_000, "bad-config"),
        ("a rank as text", '{"unet.r": "2"}', "bad-config"), ("another rank", '{"unet.r": 4}', "rank-mismatch"),
        ("keys without a dot", '{"r": 2, "lora_alpha": 8}', None), ("5000 digits", "9" * 5000, "bad-config"),
    ):  # fmt: skip
        add(f"diffusers' metadata: {what}", lora(DIFFUSERS, {"lora_adapter_metadata": text}), code)
    for what, config, code in (
        ("a scale", {"lora_parameters": {"scale": 10.0}}, None),
        ("no scale", {"lora_parameters": {}}, None),
        ("a list of parameters", {"lora_parameters": []}, "bad-config"),
        ("a scale as text", {"lora_parameters": {"scale": "20"}}, "bad-config"),
        ("an infinite scale", {"lora_parameters": {"scale": float("inf")}}, "bad-config"),
        ("a full fine-tune", {"lora_parameters": {"scale": 1.0}, "fine_tune_type": "full"}, "not-lora"),
        ("PEFT's configuration", CONFIG, "foreign-dialect"),
    ):
        content = {"adapters.safetensors": dump(MLX), "adapter_config.json": json.dumps(config)}
        add(f"MLX's directory: {what}", files(content), code)


def make_layouts() -> None:
    """PEFT's other layouts."""
    experts = {key.replace("self_attn.q_proj", "mlp.experts"): tensor for key, tensor in factors(rank=6).items()}
    add("experts", peft(experts, target_parameters=["mlp.experts.down_proj", "model.layers.0.mlp.experts"]))
    embedding = {"lora_embedding_A": raw(numbers(2, 11)), "lora_embedding_B": raw(numbers(6, 2))}
    add("an embedding", peft({f"base_model.model.embed.{side}": tensor for side, tensor in embedding.items()}))
    both = {f"{MODULE.format(0)}.{side}": tensor for side, tensor in embedding.items()}
    add("both layouts of one module", peft(GOOD | both), "mixed-layout")
    add("a grouped convolution", peft({A: raw(numbers(2, 4, 3, 3)), B: raw(numbers(4, 1, 1, 1))}), "grouped-conv")
    add("a convolution", peft({A: raw(numbers(2, 4, 3, 3)), B: raw(numbers(4, 2, 1, 1))}))


make_right_and_wrong()
make_bombs()
make_alphas()
make_mixed()
make_metadata()
make_layouts()
