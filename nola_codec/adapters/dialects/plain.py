"""Dialects that are factor pairs under other names: what they share, and the ones that need no more than a table.

loralib      <path>.lora_A (r, in), <path>.lora_B (out, r); alpha is not in the file
sam_lora     w_a_000 (r, in), w_b_000 (out, r), numbered in the order of the layers (Sam_LoRA, SAMed)
cloneofsimo  unet:0:down, unet:0:up, text_encoder:0:..., numbered; ranks and classes in the metadata; <token> embeddings
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nola_codec.adapters.dialects.alphas import SUFFIX as ALPHA
from nola_codec.adapters.dialects.alphas import Alphas, pack_alphas, read_alphas
from nola_codec.adapters.dialects.foreign import unknown_key
from nola_codec.adapters.dialects.lycoris import Composite
from nola_codec.adapters.dialects.pairs import Spelling, find_pairs, join, pair_tensors, read_carried, read_pair
from nola_codec.adapters.sources import CONFIG_NAME, AdapterSource
from nola_codec.errors import AdapterError
from nola_codec.model.adapter import Adapter, LoraModule
from nola_codec.model.tensors import RawTensor
from nola_codec.stores.files import atomic_directory, dump_json, require_free
from nola_codec.stores.tensor_files import is_tensor_file, write_tensors
from nola_codec.stores.tensor_store import TensorStore

_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class PairDialect:
    """A dialect whose deltas are plain products.

    Attributes:
        name: Its id, in a `.nola` file and on the command line.
        title: For messages.
        spelling: Of the factors.
        carried: Keys of other tensors that belong to it; a group ``module``, if it matched, must be a module's name.
        file_name: Of the weights in a directory.
        has_alpha: Modules may have ``<module>.alpha``.
    """

    name: str
    title: str
    spelling: Spelling
    carried: re.Pattern[str] = _NOTHING
    file_name: str = "lora.safetensors"
    has_alpha: bool = False

    def detect(self, source: AdapterSource) -> bool:
        """Whether some key is a factor's."""
        return any(self.spelling.split(key) is not None for key in source.file.tensors)

    def read_source(self, source: AdapterSource, *, carry_unknown: bool = False) -> Adapter:
        """Read an opened file whole.

        Raises:
            AdapterError: ``empty-adapter``, ``unknown-key``, ``bad-alpha``, those of `find_pairs` and `read_pair`, and
                of the dialect's configuration.
        """
        store, where = source.file, source.where
        names, others = find_pairs(store.tensors, self.spelling, where)
        if not names:
            raise AdapterError("no LoRA factors in it", code="empty-adapter", where=where)
        own = {name + ALPHA for name in names} if self.has_alpha else set()
        alphas = read_alphas(store, [key for key in others if key in own])
        known = set(names)
        raw = {key: self._carry(source, key, known, carry_unknown) for key in sorted(set(others) - own)}
        packed, left = pack_alphas(alphas, names)
        config = self.config(source)
        if packed is not None:
            config = {**(config or {}), "alpha": packed}
        ranks = {name: self._rank(source, name) for name in names}
        scalings = self.scalings(source, ranks) | {name: alpha / ranks[name] for name, (_, alpha) in alphas.items()}
        modules = tuple(self.read_module(store, name, scalings[name]) for name in names)
        return Adapter(self.name, modules, raw | left, config, dict(store.metadata))

    def read_module(self, store: TensorStore, name: str, scaling: float) -> LoraModule:
        """One pair."""
        return read_pair(store, name, self.spelling.keys(name), scaling=scaling, transposed=self.spelling.transposed)

    def config(self, source: AdapterSource) -> dict[str, Any] | None:
        """What is kept of a configuration."""
        return None

    def scalings(self, source: AdapterSource, ranks: Mapping[str, int]) -> dict[str, float]:
        """Scaling by module, where no alpha says it: 1, that is alpha = r."""
        return dict.fromkeys(ranks, 1.0)

    def tensors(self, adapter: Adapter, dtype: str | None = None) -> dict[str, RawTensor]:
        """All tensors under their keys, factors rounded to ``dtype`` (None: their own).

        Raises:
            AdapterError: ``zero-rank``, ``overflow``, ``duplicate-key``, ``bad-config``, ``not-expressible``.
        """
        require_no_vectors(adapter, self.title)
        pairs = [
            pair_tensors(m, self.spelling.keys(m.name), dtype, transposed=self.spelling.transposed)
            for m in adapter.modules
        ]
        alphas = Alphas(adapter).tensors(m.name for m in adapter.modules) if self.has_alpha else {}
        return join(adapter.raw, alphas, *pairs)

    def write(
        self, adapter: Adapter, out: str | os.PathLike[str], *, dtype: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write one file; ``out`` without a tensor file's suffix is a directory."""
        made = self.tensors(adapter, dtype)
        return write_adapter_file(out, made, adapter.metadata, self.file_name, overwrite=overwrite)

    def composites(self, adapter: Adapter) -> tuple[Composite, ...]:
        """None: every delta is one product."""
        return ()

    def _rank(self, source: AdapterSource, name: str) -> int:
        shape = source.file.tensors[self.spelling.a_key(name)].shape
        if not shape:
            return 1  # read_pair will say what is wrong
        return max(1, shape[-1] if self.spelling.transposed[0] else shape[0])

    def _carry(self, source: AdapterSource, key: str, names: set[str], carry_unknown: bool) -> RawTensor:
        match = self.carried.fullmatch(key)
        module = match.groupdict().get("module") if match is not None else None
        if not carry_unknown and (match is None or (module is not None and module not in names)):
            raise unknown_key(key, self.name, source.where)
        return read_carried(source.file, key)


def write_adapter_file(
    out: str | os.PathLike[str],
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str],
    file_name: str,
    *,
    overwrite: bool,
    extra: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """One file of tensors; ``out`` without a tensor file's suffix is a directory that gets ``file_name``.

    Args:
        out: Where to.
        tensors: By key.
        metadata: Of safetensors.
        file_name: In a directory.
        overwrite: Replace what is there.
        extra: Key-values of GGUF.
        config: Goes into a directory as its configuration.

    Raises:
        AdapterError: ``not-expressible`` for what the container has no place for.
        OutputExists: Something is there and ``overwrite`` is False.
    """
    path = Path(out)
    require_free(path, overwrite=overwrite)
    if is_tensor_file(path):
        return write_tensors(path, tensors, metadata, extra=extra)
    with atomic_directory(path, replace=overwrite) as directory:
        write_tensors(directory / file_name, tensors, metadata, extra=extra)
        if config:
            (directory / CONFIG_NAME).write_bytes(dump_json(config))
    return path


def require_no_vectors(adapter: Adapter, title: str) -> None:
    """Raise ``not-expressible`` for an adapter with coded tensors that are no factor pairs."""
    if adapter.vectors:
        message = f"{title} has no place for a tensor that is not a pair of factors"
        raise AdapterError(message, code="not-expressible", where=adapter.vectors[0].name)


LORALIB = PairDialect(
    "loralib",
    "loralib",
    Spelling.of_suffixes(".lora_A", ".lora_B"),
    # loralib saves what was trained beside the factors, heads above all, under its own name.
    carried=re.compile(r"(?!.*lora_).+\.(?:weight|bias)"),
)
SAM = PairDialect(
    "sam_lora",
    "SAM LoRA (w_a_/w_b_)",
    Spelling(
        re.compile(r"w_(?:(?P<a>a)|(?P<b>b))_(?P<stem>\d{3})"),
        lambda name: f"w_a_{int(name[1:]):03d}",
        lambda name: f"w_b_{int(name[1:]):03d}",
        module=lambda digits: f"w{int(digits)}",
    ),
    carried=re.compile(r"(?:prompt_encoder|mask_decoder)\..+"),
)
CLONEOFSIMO = PairDialect(
    "cloneofsimo",
    "cloneofsimo lora",
    Spelling.of_suffixes(":down", ":up", stem=r"[a-z_0-9]+:\d+"),
    carried=re.compile(r"<[^<>]+>"),
)
PLAIN: Sequence[PairDialect] = (CLONEOFSIMO, SAM, LORALIB)
