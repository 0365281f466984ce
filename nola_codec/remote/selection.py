"""Pick the files of a remote directory that a reader of adapters or of models needs. The others are not downloaded.

An adapter needs its weights and the configuration beside them. A model needs one form of its weights, and the small
files that make it a model. States of optimizers, checkpoints of a training, and the same weights in another form stay
behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nola_codec.errors import RemoteError

MAX_FILES = 10_000
"""Files that a directory may list."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHTS = (".safetensors", ".npz", ".gguf", *_PICKLES)
_OTHER_FORMS = (".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite", ".gguf", ".npz", ".mlmodel", ".pte")
_NO_MODEL = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".wav", ".mp3", ".parquet", ".arrow", ".zip", ".tar",
             ".gz", ".pdf", ".distcp", ".npy", ".pkl", ".log")  # fmt: skip
_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state)\b.*|.*_optim_states\.pt"
    r"|events\.out\.tfevents.*"
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.\w+")
_ADAPTER = re.compile(r"(adapter_model|pytorch_lora_weights|adapters)([.-].*)?\.(safetensors|bin|npz|pt)")
_ADAPTER_CONFIGS = frozenset({"adapter_config.json", "params.json", "config.json"})
_UNDO = "nola_undo.bin"  # with it a merged model can be unmerged
_MODEL_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")


def select_files(names: Iterable[str], where: str) -> list[str]:
    """Return the names that are needed, sorted.

    Args:
        names: The paths of all files, relative to the directory, with ``/`` between the parts.
        where: The directory, for messages.

    Raises:
        RemoteError: ``several-checkpoints``: the directory has no adapter or model itself, and several folders with an
            adapter.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, leaf = name.rpartition("/")
        if not any(part.startswith(".") for part in name.split("/")):
            folders.setdefault(folder, []).append(leaf)
    top = folders.get("", [])
    if "model_index.json" in top:
        chosen = {folder: _of_model(leaves) for folder, leaves in folders.items()}
    elif _is_adapter(top):
        below = [f for f in folders if "/" not in f and f and not _CHECKPOINT.fullmatch(f) and _is_adapter(folders[f])]
        chosen = {folder: _of_adapter(folders[folder]) for folder in ("", *below)}
    elif "config.json" in top:
        chosen = {"": _of_model(top)}
        chosen |= {f: leaves for f, leaves in folders.items() if f.split("/")[0] == "additional_chat_templates"}
    else:
        inner = [folder for folder in folders if folder and "/" not in folder and _is_adapter(folders[folder])]
        if len(inner) > 1 and not any(leaf.endswith(_WEIGHTS) for leaf in top):
            message = f"no adapter itself, and {len(inner)} folders with one ({', '.join(inner[:5])}); give one of them"
            raise RemoteError(message, code="several-checkpoints", where=where)
        chosen = {folder: _of_adapter(folders[folder]) for folder in ("", *inner) if folder in folders}
    return sorted(f"{folder}/{leaf}" if folder else leaf for folder, leaves in chosen.items() for leaf in leaves)


def _is_adapter(leaves: Iterable[str]) -> bool:
    return any(leaf == "adapter_config.json" or _ADAPTER.fullmatch(leaf) for leaf in leaves)


def _of_adapter(leaves: list[str]) -> list[str]:
    """Return the configuration and the weights of an adapter's folder, and further weights beside them."""
    weights = [leaf for leaf in leaves if leaf.endswith(_WEIGHTS) and not _STATE.fullmatch(leaf)]
    safe = {leaf.rpartition(".")[0] for leaf in weights if leaf.endswith(".safetensors")}
    # A whole model may lie beside an adapter, which needs none.
    kept = [w for w in weights if not (w.endswith(_PICKLES) and w.rpartition(".")[0] in safe) and not _is_model_file(w)]
    if any(_ADAPTER.fullmatch(w) and w.endswith(".safetensors") for w in kept):
        kept = [w for w in kept if not (_ADAPTER.fullmatch(w) and w.endswith(_PICKLES))]
    indexes = [leaf for leaf in leaves if re.fullmatch(r"adapter_model\.\w+\.index\.json", leaf)]
    return [*kept, *indexes, *(leaf for leaf in leaves if leaf in _ADAPTER_CONFIGS)]


def _is_model_file(leaf: str) -> bool:
    match = _SHARD.fullmatch(leaf)
    return (match["stem"] if match else leaf.rpartition(".")[0]) in _MODEL_STEMS


def _of_model(leaves: list[str]) -> list[str]:
    """Return one form of the weights of a model's folder, and its small files."""
    others = (*_WEIGHTS, *_OTHER_FORMS, *_NO_MODEL)
    small = [leaf for leaf in leaves if not leaf.endswith(others) and not _STATE.fullmatch(leaf)]
    small = [leaf for leaf in small if ".index." not in leaf and leaf != "adapter_config.json"]
    small += [leaf for leaf in leaves if leaf == _UNDO]
    no_weights = {_UNDO, *(leaf for leaf in leaves if _STATE.fullmatch(leaf) or _ADAPTER.fullmatch(leaf))}
    weights = [leaf for leaf in leaves if leaf not in no_weights]
    for suffix in (".safetensors", ".bin"):
        of_form = [leaf for leaf in weights if leaf.endswith(suffix)]
        indexes = [leaf for leaf in weights if f"{suffix}.index." in leaf]
        if of_form:
            return [*small, *_plain_variant(of_form, indexes, suffix)]
    return small


def _plain_variant(files: list[str], indexes: list[str], suffix: str) -> list[str]:
    """Return the plain file, or the plain index with its shards; if there is neither, all files and indexes."""
    for stem in _MODEL_STEMS:
        if f"{stem}{suffix}" in files:
            return [f"{stem}{suffix}"]
        if f"{stem}{suffix}.index.json" in indexes:
            shards = [name for name in files if (match := _SHARD.fullmatch(name)) and match["stem"] == stem]
            return [f"{stem}{suffix}.index.json", *(shards or files)]
    return [*files, *indexes]
