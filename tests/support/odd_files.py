"""A folder as a hub has them: files and directories that people hand to `encode`, and what should come of each.

for name, odd in ODD.items():
    given = odd.make(empty_directory)       # the path to hand over
    odd.code                                # None: it encodes, and decodes to the same keys

Everything is small, and the same each time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nola_codec.model.tensors import RawTensor
from nola_codec.stores.safetensors_writer import dump

MODULE = "base_model.model.model.layers.{}.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "nobody/it",
}  # fmt: skip

Tensors = dict[str, RawTensor]


@dataclass(frozen=True)
class Odd:
    """Something odd, and what comes of it.

    Attributes:
        make: Writes it into an empty directory; returns what is handed to `encode`.
        code: Of the error; None when it encodes, and then decodes to the same keys.
        says: Words of the error.
        arguments: Further ones of `encode`.
    """

    make: Callable[[Path], Path]
    code: str | None = None
    says: str = ""
    arguments: tuple[str, ...] = ()


ODD: dict[str, Odd] = {}


def add(name: str, make: Callable[[Path], Path], code: str | None = None, says: str = "", *arguments: str) -> None:
    if name in ODD:
        raise ValueError(f"{name} is there already")
    ODD[name] = Odd(make, code, says, arguments)


def raw(values: np.ndarray, dtype: str = "F32") -> RawTensor:
    """Values in a dtype; BF16 by cutting."""
    if dtype == "BF16":
        bits = (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2")
        return RawTensor(dtype, values.shape, bits.tobytes())
    numpy_dtype = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I32": "<i4", "F8_E4M3": "u1"}[dtype]
    return RawTensor(dtype, values.shape, values.astype(numpy_dtype).tobytes())


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def factors(
    module: str = MODULE.format(0), rank: int = 2, out: int = 24, into: int = 20, dtype: str = "F32"
) -> Tensors:
    """Both factors of a linear layer, under PEFT's keys."""
    return {
        f"{module}.lora_A.weight": raw(numbers(rank, into), dtype),
        f"{module}.lora_B.weight": raw(numbers(out, rank, seed=1), dtype),
    }


GOOD: Tensors = factors() | factors(MODULE.format(1))
A, B, *_ = GOOD


def files(content: Mapping[str, bytes | str]) -> Callable[[Path], Path]:
    """A directory of these files, itself what is handed over."""

    def make(directory: Path) -> Path:
        for name, data in content.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return directory

    return make


def lone(name: str, data: bytes | str, beside: Mapping[str, Any] | None = None) -> Callable[[Path], Path]:
    """One file, and perhaps a configuration beside it."""

    def make(directory: Path) -> Path:
        files({name: data} | ({} if beside is None else {"adapter_config.json": json.dumps(beside)}))(directory)
        return directory / name

    return make


def peft(
    tensors: Tensors | bytes | None = None,
    config: Any = CONFIG,
    weights: str = "adapter_model.safetensors",
    **changes: Any,
) -> Callable[[Path], Path]:
    """A PEFT directory, with other tensors, other bytes of weights or another configuration."""
    data = tensors if isinstance(tensors, bytes) else dump(GOOD if tensors is None else tensors, {"format": "pt"})
    text = config if isinstance(config, (bytes, str)) else json.dumps(config | changes)
    return files({weights: data, "adapter_config.json": text})


def without(*keys: str) -> Tensors:
    return {key: tensor for key, tensor in GOOD.items() if key not in keys}


def filled(value: float, dtype: str = "F32") -> Tensors:
    """The good tensors, one number of one factor replaced."""
    values = numbers(24, 2, seed=1).astype(np.float64)
    values[3, 1] = value
    return GOOD | {B: raw(values if dtype == "F64" else values.astype(np.float32), dtype)}


def make_directories() -> None:
    """What is, and is not, in a directory."""
    readme = "# A LoRA\n"
    weights, config = dump(GOOD), json.dumps(CONFIG)
    add("ordinary", peft())
    add("ordinary, with a trailer of other files", files({
        "adapter_model.safetensors": weights, "adapter_config.json": config, "README.md": readme, "optimizer.pt": b"x",
        "tokenizer.json": "{}", "checkpoint-10/adapter_model.safetensors": b"x", ".gitattributes": "*.bin lfs\n",
    }))  # fmt: skip
    add("empty directory", files({}), "missing-weights")
    add("a readme alone", files({"README.md": readme}), "missing-weights")
    add("a repository of checkpoints", files({
        "README.md": readme, "checkpoint-10/adapter_model.safetensors": weights,
        "checkpoint-20/adapter_model.safetensors": weights,
    }), "several-checkpoints", "checkpoint-20")  # fmt: skip
    add("no weights", files({"adapter_config.json": config}), "missing-weights")
    add("no configuration", files({"adapter_model.safetensors": weights}), "missing-config")
    add("weights without a directory", lone("adapter_model.safetensors", weights))
    add("weights by their path", lone("adapter_model.safetensors", weights, CONFIG))
    add("weights of another name", lone("my lora (final).safetensors", weights))
    add("weights of no suffix", lone("weights", weights))
    add("a whole model", files({"config.json": "{}", "model.safetensors": weights}), "missing-weights", "whole model")
    add("a pipeline", files({"model_index.json": "{}", "unet/config.json": "{}"}), "missing-weights", "whole model")
    add("a model's weights", lone("model.safetensors", dump({"model.norm.weight": raw(numbers(8))})), "empty-adapter")
    add("two adapters", files({"a.safetensors": weights, "b.safetensors": weights}), "missing-weights", "a.safetensors")
    add("shards", files({
        "adapter_config.json": config, "adapter_model.safetensors.index.json": '{"weight_map": {}}',
        "adapter_model-00001-of-00002.safetensors": weights, "adapter_model-00002-of-00002.safetensors": weights,
    }), "duplicate-key")  # fmt: skip
    add("shards, of which one is missing", files({
        "adapter_config.json": config, "adapter_model-00001-of-00002.safetensors": weights,
    }), "sharded", "shard 2 of 2 is missing")  # fmt: skip
    add("a shard", lone("adapter_model-00001-of-00002.safetensors", weights), "sharded")
    add("a path that is not there", lambda directory: directory / "none", "not-found")
    add("a path too long", lambda directory: directory / ("n" * 300), "unreadable")
    add("a device", lambda directory: Path("/dev/zero"), "unreadable", "not a regular file")
    add("the weights are a directory", files({
        "adapter_config.json": config, "adapter_model.safetensors/x": b"x",
    }), "unreadable")  # fmt: skip
    add("the configuration is a directory", files({
        "adapter_config.json/x": b"x", "adapter_model.safetensors": weights,
    }), "unreadable")  # fmt: skip
    add("names that climb", lambda directory: files({
        "a/b/adapter_model.safetensors": weights, "a/b/adapter_config.json": config,
    })(directory) / "a" / ".." / "a" / "b" / ".")  # fmt: skip
    for name in ("--help", "-", "a\nb", "\x1b[2J", "größe ☃", "a b", "$(touch x)"):
        add(f"a directory called {name!r}", _called(name, weights))
        add(f"an empty directory called {name!r}", _called(name, None), "missing-weights")

    def loop(directory: Path) -> Path:
        (directory / "loop").symlink_to("loop")
        return directory / "loop"

    def loop_inside(directory: Path) -> Path:
        (directory / "adapter_model.safetensors").symlink_to(directory / "adapter_model.safetensors")
        return peft_config_only(directory)

    def dangling(directory: Path) -> Path:
        (directory / "adapter_model.safetensors").symlink_to("blobs/none")
        return peft_config_only(directory)

    def linked(directory: Path) -> Path:
        """As a hub's cache has it: every file a link to a blob."""
        files({"blobs/1": weights, "blobs/2": config})(directory)
        (directory / "snapshot").mkdir()
        (directory / "snapshot" / "adapter_model.safetensors").symlink_to("../blobs/1")
        (directory / "snapshot" / "adapter_config.json").symlink_to("../blobs/2")
        return directory / "snapshot"

    def pipe(directory: Path) -> Path:
        os.mkfifo(directory / "adapter_model.safetensors")
        return peft_config_only(directory)

    def peft_config_only(directory: Path) -> Path:
        (directory / "adapter_config.json").write_text(config)
        return directory

    def itself(directory: Path) -> Path:
        (directory / "self").symlink_to(".")
        return peft()(directory) / "self" / "self" / "self"

    def piped_config(directory: Path) -> Path:
        os.mkfifo(directory / "adapter_config.json")
        (directory / "adapter_model.safetensors").write_bytes(weights)
        return directory

    add("a configuration that is a pipe", piped_config, "unreadable", "not a regular file")
    add("a link to itself", loop, "unreadable")
    add("weights that are a link to themselves", loop_inside, "unreadable")
    add("weights that are a dangling link", dangling, "not-found")
    add("a hub's cache", linked)
    add("weights that are a pipe", pipe, "unreadable", "not a regular file")
    add("a directory within itself", itself)


def _called(name: str, weights: bytes | None) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        (directory / name).mkdir()
        return directory / name if weights is None else peft(weights)(directory / name)

    return make


def make_configurations() -> None:
    """`adapter_config.json` that means something else, or nothing."""
    add("configuration: not JSON", peft(config="{"), "bad-json")
    add("configuration: empty", peft(config=""), "empty-file")
    add("configuration: a list", peft(config="[1, 2]"), "bad-json", "not a JSON object")
    add("configuration: null", peft(config="null"), "bad-json")
    add("configuration: an LFS pointer", peft(config="version https://git-lfs.github.com/spec/v1\n"), "lfs-pointer")
    add("configuration: a web page", peft(config="<!DOCTYPE html><html>404</html>"), "html-page")
    add("configuration: nested for ever", peft(config='{"a":' * 100_000), "bad-json")
    for depth, code in ((90, None), (500, "bad-config")):
        text = json.dumps(CONFIG)[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}"
        add(f"configuration: nested {depth} deep", peft(config=text), code)
    add("configuration: not UTF-8", peft(config=b'{"peft_type": "\xff"}'), "bad-json")
    add("configuration: UTF-16", peft(config=json.dumps(CONFIG).encode("utf-16")), "bad-json")
    add("configuration: with a byte order mark", peft(config=b"\xef\xbb\xbf" + json.dumps(CONFIG).encode()))
    add("configuration: keys that nobody knows", peft(config=CONFIG | {"new_thing": {"a": [1, None, True]}, "": 0}))
    add("configuration: half a character", peft(config=json.dumps(CONFIG | {"x": "\ud800"})), "bad-config")
    for digits, code in ((18, None), (20, "bad-config"), (4000, "bad-config"), (5000, "bad-json")):
        text = json.dumps(CONFIG)[:-1] + ', "x": ' + "9" * digits + "}"
        add(f"configuration: a number of {digits} digits", peft(config=text), code)
    add("configuration: not a number", peft(config=CONFIG | {"x": math.nan, "y": math.inf}))
    add("configuration: a key twice", peft(config='{"r": 64, ' + json.dumps(CONFIG)[1:]))
    add("configuration: null alpha", peft(lora_alpha=None), "bad-config")
    add(
        "configuration: infinite alpha",
        peft(config=json.dumps(CONFIG).replace('"lora_alpha": 4', '"lora_alpha": 1e400')),
        "bad-config",
    )
    add("configuration: alpha 0", peft(lora_alpha=0))
    add("configuration: negative alpha", peft(lora_alpha=-4))
    add("configuration: rank as text", peft(r="2"), "bad-config")
    add("configuration: rank true", peft(r=True), "bad-config")
    add("configuration: rank 0", peft(r=0), "bad-config")
    add("configuration: rank 2^60", peft(r=1 << 60), "bad-config")
    add("configuration: another rank", peft(r=8), "rank-mismatch", "expected 8 by adapter_config.json, found 2")
    add("configuration: a pattern that looks ahead", peft(rank_pattern={"(?=a)a": 2}), "unsafe-pattern")
    add("configuration: a pattern that is none", peft(alpha_pattern={"(": 2}), "bad-config")
    for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"):
        add(f"initialised by {init}", peft(init_lora_weights=init), "not-a-delta", "changes the base weights")
    add("replicated layers", peft(layer_replication=[[0, 1], [0, 1]]), "layer-replication")
    for method in (
        "PROMPT_TUNING",
        "PREFIX_TUNING",
        "P_TUNING",
        "IA3",
        "BOFT",
        "FROD",
        "OFT",
        "HRA",
        None,
        7,
    ):
        add(f"PEFT's {method}", peft(peft_type=method), "not-lora")
    for method in ("VERA", "RANDLORA", "PVERA"):
        add(f"factors that should be PEFT's {method}", peft(peft_type=method), "foreign-dialect", "keys look like")

    def enormous(directory: Path) -> Path:
        peft()(directory)
        with (directory / "adapter_config.json").open("r+b") as stream:
            stream.truncate(65_000_000)  # takes no room on the disk
        return directory

    add("configuration: 65 MB", enormous, "limit")


def make_tensors() -> None:
    """Whole files whose tensors are odd."""
    for dtype in ("F16", "BF16", "F64"):
        add(f"{dtype} factors", peft(factors(dtype=dtype)))
    add("factors of two dtypes", peft(GOOD | {A: raw(numbers(2, 20), "F16")}))
    add("I8 factors", peft(GOOD | {A: RawTensor("I8", (2, 20), bytes(40))}), "not-float")
    add("F8_E4M3 factors", peft(GOOD | {A: RawTensor("F8_E4M3", (2, 20), bytes(range(40)))}))
    for name, value in (("NaN", math.nan), ("infinity", math.inf), ("minus infinity", -math.inf)):
        add(f"{name} in a factor", peft(filled(value)), "not-finite", "at [3, 1]")
        add(f"{name} in a BF16 factor", peft(filled(value, "BF16")), "not-finite")
    add("a double too large", peft(filled(1e300, "F64")), "overflow")
    add("a very large number", peft(filled(1e30)))
    add("very small numbers", peft(GOOD | {B: raw(numbers(24, 2) * np.float32(1e-40))}))
    add("an untrained adapter", peft({k: raw(np.zeros(t.shape)) if "lora_B" in k else t for k, t in GOOD.items()}))
    add("nothing but zeros", peft({k: raw(np.zeros(t.shape)) for k, t in GOOD.items()}))
    add("lora_A missing", peft(without(A)), "missing-partner", "lora_A.weight is missing")
    add("lora_B missing", peft(without(B)), "missing-partner", "lora_B.weight is missing")
    add("ranks differ", peft(GOOD | {B: raw(numbers(24, 3))}), "rank-mismatch")
    add("rank 0", peft(factors(rank=0)), "bad-shape")
    add("no inputs", peft(factors(into=0)), "bad-shape")
    add("one number a factor", peft(factors(rank=1, out=1, into=1), r=1))
    add("a rank over both sizes", peft(factors(rank=16, out=3, into=5), r=16))
    add("a factor that is a number", peft(GOOD | {A: raw(numbers())}), "bad-shape")
    add("a factor that is a list", peft(GOOD | {A: raw(numbers(40))}), "bad-shape")
    add("no tensors", peft({}), "empty-adapter")
    add("no tensors, of anybody's", lone("a.safetensors", dump({})), "empty-adapter")
    add("a stranger among them", peft(GOOD | {"surprise": raw(numbers(3))}), "unknown-key", "surprise")
    add(
        "a stranger among them, passed through", peft(GOOD | {"surprise": raw(numbers(3))}), None, "", "--carry-unknown"
    )
    add("an empty stranger, passed through", peft(GOOD | {"x": raw(numbers(0, 3))}), None, "", "--carry-unknown")
    add("a number, passed through", peft(GOOD | {"x": raw(numbers(), "I32")}), None, "", "--carry-unknown")
    add("absurd and empty, passed through", peft(
        GOOD | {"x": RawTensor("F32", (0, 1 << 60), b"")}
    ), "bad-shape", "", "--carry-unknown")  # fmt: skip
    add("NaN in a tensor that is carried", peft(GOOD | {"x": raw(np.full(3, np.nan))}), None, "", "--carry-unknown")
    bias = {f"{MODULE.format(0)}.lora_B.bias": raw(numbers(24))}
    saved = {"base_model.model.score.weight": raw(numbers(2, 5))}
    add("biases and saved modules", peft(GOOD | bias | saved, modules_to_save=["score"]))
    add("magnitudes", peft(GOOD | {f"{MODULE.format(0)}.lora_magnitude_vector": raw(numbers(24))}, use_dora=True))
    add("the names of two adapters in the keys", peft({
        key.replace(".weight", f".{name}.weight"): tensor for key, tensor in GOOD.items() for name in ("a", "b")
    }), "several-adapters")  # fmt: skip
    odd_names = {
        "new lines": "a\nb", "terminal escapes": "a\x1b[2Jb", "paths": "../../etc/passwd", "nulls": "a\0b",
        "spaces": "a b", "snowmen": "☃.größe", "no letters": "...", "escapes of ours": "a%25#b#1%",
        "very large numbers": f"layers.{9 ** 40}.q", "digits of other scripts": "layers.٣.q",
        "leading zeros": "layers.007.q",
    }  # fmt: skip
    for kind, name in odd_names.items():
        # No dialect has a line's end in a name.
        add(
            f"names with {kind}", peft(factors(f"base_model.model.{name}")), "foreign-dialect" if "\n" in name else None
        )
        bad = {f"base_model.model.{name}.lora_A.weight": raw(numbers(2, 4))}
        add(f"half a pair, with {kind}", peft(bad), "foreign-dialect" if "\n" in name else "missing-partner")
    add("names too long", peft(factors("base_model.model." + "n" * 2000)), "limit")
    add("half a pair, with a name of 100 KB", peft(
        {f"base_model.model.{'n' * 100_000}.lora_A.weight": raw(numbers(2, 4))}
    ), "missing-partner")  # fmt: skip
    surrogate = json.loads('"base_model.model.\\ud800"')
    header, data = {}, b""
    for key, tensor in factors(surrogate).items():
        header[key] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(tensor.data)],
        }
        data += tensor.data
    text = json.dumps(header).encode()
    add("names with half a character", peft(len(text).to_bytes(8, "little") + text + data), "bad-header")
    big = {f"{key}.{i}": "x" * 1000 for i in range(2000) for key in "k"}
    add("metadata of 2 MB", peft(dump(GOOD, big)))


make_directories()
make_configurations()
make_tensors()
