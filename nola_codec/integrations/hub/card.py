"""The model card of a file: what it is, how small, what was lost, and how to load it in five lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from nola_codec.api.inspecting import render_reference
from nola_codec.integrations.hub.card_facts import CardFacts
from nola_codec.integrations.hub.escaping import code, literal
from nola_codec.integrations.hub.held_out import UNIT
from nola_codec.rendering import render_error, render_ratio, render_scalings, render_size

HOME = "https://github.com/nola-codec/nola-codec"

_ERRORS = {
    "effective_error": (
        "effective error",
        "estimated when the file was made: the share of the adapter's signal that is lost, with the small part of the "
        "added noise that a model notices",
    ),
    "nmse": (
        "NMSE",
        "measured on what the file decodes to: the squared error of the weights' change over its energy. It counts all "
        "noise, also the part that a model hardly notices, so it can be large in a file that keeps the task",
    ),
    "loss": ("held-out loss", "as recorded when the file was made, on rows that its training did not use"),
    "distance": (
        "distance from the adapter",
        "as recorded when the file was made: how far its predictions are from those of the adapter, on data without "
        "labels that its training did not use. The adapter itself has 0. It is no loss of the task",
    ),
}


def card_metadata(files: Sequence[CardFacts]) -> dict[str, Any]:
    """Return the front matter of a card, for the YAML at the head of a README. What is not known is left out."""
    bases = list(dict.fromkeys(facts.base_model for facts in files if facts.base_model))
    metadata: dict[str, Any] = {"library_name": "nola-codec"}
    if bases:
        metadata["base_model"] = bases[0] if len(bases) == 1 else bases
        metadata["base_model_relation"] = "adapter" if all(facts.is_adapter for facts in files) else "finetune"
    for key in ("license", "pipeline_tag"):
        values = {getattr(facts, key) for facts in files}
        if len(values) == 1 and (value := values.pop()) is not None:
            metadata[key] = value
    tags = ["nola", "nola-codec"]
    for facts in files:
        if facts.is_adapter:
            tags.append("lora")
        if facts.is_diffusion:
            tags.append("diffusers")
        elif facts.file.dialect in ("peft", "mlx", "gguf"):
            tags.append(facts.file.dialect)
    metadata["tags"] = list(dict.fromkeys(tags))
    return metadata


def card_title(files: Sequence[CardFacts], repo: str) -> str:
    """Return the head of a new card, above the sections of the files."""
    what = "A LoRA adapter" if all(facts.is_adapter for facts in files) else "What a fine-tuning changed in a model"
    return f"# {repo.split('/')[-1]}\n\n{what}, stored as a small [`.nola`]({HOME}) file.\n"


def card_section(facts: CardFacts, repo: str, revision: str | None) -> str:
    """Return the section of one file in a card, as Markdown.

    Args:
        facts: What is known of the file.
        repo: The repository that the card is for.
        revision: The branch that the file is on, if it is not the main one.
    """
    file, reference = facts.file, facts.file.reference
    size = f"{render_size(file.bytes)} ({file.bytes:,} bytes), {render_ratio(file.ratio)} than its " \
           f"{file.parameters:,} parameters in fp16"  # fmt: skip
    rows = [
        ("size", size),
        ("base model", _base_model(facts)),
        ("dialect", code(file.dialect)),
        ("what is in it", _contents(facts)),
        *([] if reference is None else [("needs", f"an earlier version: {render_reference(reference, code)}")]),
        *((("scaling", render_scalings(file.scalings, file.scale_origin)),) if file.scalings else ()),
        *_error_rows(facts),
        *_held_out_rows(facts),
        ("written by", code(file.writer)),
        ("file SHA-256", code(facts.file_sha256)),
        ("content SHA-256", code(file.content_sha256)),
        ("decoded SHA-256", code(file.decoded_sha256)),
    ]
    table = "\n".join(f"| {label} | {value} |" for label, value in rows)
    draft = "\nThe format of the file is a draft: later versions of nola-codec may refuse it.\n" if file.draft else ""
    return f"""## {code(facts.path)}

| | |
|---|---|
{table}

The coding is lossy. What the file decodes to is the same, to the bit, on every machine.
{draft}
### How to load it

{_loading(facts, repo, revision)}"""


def _base_model(facts: CardFacts) -> str:
    if facts.base_model:
        revision = f", revision {code(facts.base_revision)}" if facts.base_revision else ""
        return f"[{facts.base_model}](https://huggingface.co/{facts.base_model}){revision}"
    return "not named in the file" if not facts.file.base_model else "named in the file, but not found on the Hub"


def _contents(facts: CardFacts) -> str:
    tensors = facts.file.tensors
    pairs = [tensor for tensor in tensors if tensor.record == "lowrank"]
    ranks = sorted({tensor.rank for tensor in pairs if tensor.rank is not None})
    parts = []
    if pairs:
        span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        parts.append(f"{len(pairs)} low-rank changes of weights, of rank {span}")
    for record, words in (("vector", "tensors coded as vectors"), ("raw", "tensors carried"),
                          ("drawn", "tensors drawn again from a seed")):  # fmt: skip
        count = sum(tensor.record == record for tensor in tensors)
        if count:
            parts.append(f"{count} {words}")
    return ", ".join(parts) or "nothing"


def _error_rows(facts: CardFacts) -> list[tuple[str, str]]:
    measured = facts.file.measured
    rows = [(label, f"{render_error(measured[name])} ({words})") for name, (label, words) in _ERRORS.items()
            if name in measured and not (name == "loss" and facts.held_out)]  # fmt: skip
    return rows or [("errors", "not recorded in the file")]


def _held_out_rows(facts: CardFacts) -> list[tuple[str, str]]:
    losses = facts.held_out
    if losses is None:
        return [] if "loss" in facts.file.measured else [("held-out loss", "not recorded")]
    text = f"{losses.file:.4f} {code(losses.unit) if losses.unit != UNIT else UNIT}"
    if losses.rows is not None:
        text += f" on {losses.rows:,} rows"
    others = [("the original adapter", losses.adapter), ("the base model", losses.base)]
    beside = [f"{name} has {value:.4f}" for name, value in others if value is not None]
    text += f"; {', '.join(beside)}" if beside else ""
    text += f"; the file keeps {losses.kept:.1%} of the adapter's gain" if losses.kept is not None else ""
    return [("held-out loss", text)]


def _loading(facts: CardFacts, repo: str, revision: str | None) -> str:
    address = f"{literal(repo)}, {literal(facts.path)}" + (f", revision={literal(revision)}" if revision else "")
    base = literal(facts.base_model or "THE_BASE_MODEL")
    if facts.base_revision:
        base += f", revision={literal(facts.base_revision)}"
    text = ""
    if facts.file.dialect == "peft" and facts.auto_class:
        lines = [
            f"# pip install 'nola-codec[hub,peft]', from {HOME}",
            "import nola_codec.integrations.peft",
            "from nola_codec.integrations.hub import pull",
            f"from transformers import {facts.auto_class}",
            "",
            f"base = {facts.auto_class}.from_pretrained({base})",
            f"model = nola_codec.integrations.peft.load(base, pull({address}).path)",
        ]
        text = _fence("python", lines) + "\nOr as files, for any other tool:\n\n"
    elif facts.is_diffusion:
        lines = [
            f"# pip install 'nola-codec[hub,torch]' diffusers, from {HOME}",
            "import nola_codec.integrations.diffusers",
            "from diffusers import DiffusionPipeline",
            "from nola_codec.integrations.hub import pull",
            "",
            f"pipeline = DiffusionPipeline.from_pretrained({base})",
            f"nola_codec.integrations.diffusers.load(pipeline, pull({address}).path)",
        ]
        text = _fence("python", lines) + "\nOr as files, for any other tool:\n\n"
    at = f" --revision {shlex.quote(revision)}" if revision else ""
    name = shlex.quote(facts.name)
    decode = f"nola-codec decode {name} -o adapter"
    if not facts.is_adapter:
        decode = f"nola-codec decode {name} --base BASE_MODEL_DIRECTORY -o merged"
    pull = f"nola-codec pull {shlex.quote(f'{repo}:{facts.path}')}{at} -o {name}"
    if facts.file.reference is not None:
        text = (
            "The file holds the difference to an earlier version, which the table names. Pull that version into the "
            f"folder of this one first, or give it with `--reference`; without it nothing can be decoded.\n\n{text}"
        )
    return text + _fence("bash", [pull, decode])


def _fence(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])
