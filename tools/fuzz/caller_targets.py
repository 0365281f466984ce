"""Targets that read what is typed: arguments of the command line, and patterns of modules."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from changes import alter, scramble
from nola_forge import golden
from odd_files import CONFIG, GOOD
from safetensors.numpy import save_file
from target import IN_MEMORY, Target

from nola_codec.adapters.dialects.peft_patterns import PatternMap
from nola_codec.cli import group
from nola_codec.errors import NolaError
from nola_codec.stores.safetensors_writer import dump

_LONGEST_PATTERN = 24
_LONGEST_NAME = 14
"""Longer ones are not compared with `re`, which may take for ever."""
_COMMANDS = ("encode", "inspect", "decode", "verify", "compare", "truncate", "merge", "report")
"""Commands that need no network, no training and no processes of their own."""
_NO_OPTIONS = ("--fit", "--data", "--prompts", "--held-out", "--against", "--help")
_WORDS = (
    "", "-", "--", "-1", "0", "1", "2", "64", "1e3", "1e308", "nan", "inf", "-inf", "0x10", "1_0", "٣", "10KB",
    "0.5 KB", "1KiB", "9" * 40, "10KB,30KB", "30KB,10KB", "a=1", "units=1", "units=-1", "units", "max=1,", "cpu",
    "cuda:9", "meta", "int8", "task.nola", "adapter", "rungs.nola", "task.nola:0.5", "rungs.nola:-1", "task.nola:nan",
    "base", "nowhere", "made", "\x1b[2J", "é", "\udcff", "a b", "*", "q_proj",
)  # fmt: skip


def _pattern_seeds() -> list[bytes]:
    names = ["a.q_proj", "layers.0.q", "layers.10.q", "q\n", "x"]
    patterns = [
        ["q_proj"], [r"layers\.0\..*"], ["^a.q_proj", "q"], ["(?:a|b)*q"], [r"layers\.\d+\.q"], ["[^a-c]{2,3}x?"],
        ["(?P<n>q|x)$"], ["a.*q_proj", ".*"], ["(a|a)*q", "x+y*"], [r"[\d.]+q"],
    ]  # fmt: skip
    return [json.dumps([own, names]).encode() for own in patterns]


def _change_patterns(data: bytes, rng: random.Random) -> bytes:
    try:
        patterns, names = json.loads(data)
        at = rng.randrange(len(patterns))
        pattern = patterns[at]
        if rng.random() < 0.2:
            return json.dumps([patterns, alter(names, rng)]).encode()
        for _ in range(rng.choice((1, 1, 2, 3))):
            place = rng.randrange(len(pattern) + 1)
            piece = rng.choice(
                (*r"()[]{}|*+?.^$\,0-:<>=!", "(?:", r"\d", r"\b", "{2}", "{,3}", "|a", "q", r"\Z", "[^", "(?i)")
            )
            pattern = pattern[:place] + piece + pattern[place + (rng.random() < 0.3) :]
        return json.dumps([[*patterns[:at], pattern, *patterns[at + 1 :]], names]).encode()
    except (ValueError, TypeError, AttributeError):
        return scramble(data, rng)


def _read_patterns(data: bytes) -> None:
    """Match patterns, and compare with what `re` says. Raises AssertionError for a difference."""
    try:
        patterns, names = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return
    if not all(isinstance(own, list) and all(isinstance(each, str) for each in own) for own in (patterns, names)):
        return
    found = PatternMap({pattern: number for number, pattern in enumerate(patterns)}, "fuzz")
    for name in names:
        taken = found.find(name)
        if len(name) > _LONGEST_NAME or any(len(pattern) > _LONGEST_PATTERN for pattern in patterns):
            continue
        last = {pattern: number for number, pattern in enumerate(patterns)}
        fits = (number for pattern, number in last.items() if re.match(rf"(.*\.)?({pattern})$", name))
        expected = next(fits, None)
        if taken != expected:
            raise AssertionError(f"{name!r}: pattern {taken}, where `re` finds {expected}")


@cache
def _place() -> Path:
    """Return a folder with what the commands are given."""
    folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _fill(folder)
    return folder


def _fill(folder: Path) -> None:
    shutil.rmtree(folder)
    for name in ("adapter", "base"):
        (folder / name).mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(dump(GOOD))
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    names = [f"model.layers.{number}.self_attn.q_proj.weight" for number in (0, 1)]
    save_file(
        {name: rng.standard_normal((24, 20)).astype(np.float16) for name in names},
        folder / "base" / "model.safetensors",
    )
    (folder / "base" / "config.json").write_text("{}")
    (folder / "task.nola").write_bytes(golden("nmse"))
    (folder / "rungs.nola").write_bytes(golden("rungs"))


def _argument_seeds() -> list[bytes]:
    lines = [
        "encode adapter -o made --size 1KB", "encode adapter -n --json --nmse 0.2",
        "encode adapter -n --num-basis 8 --bits 3",
        "encode adapter -o made -f --progressive --rungs 500B,800B --ratio 3",
        "encode adapter -o made --base base --carried int8 --limits units=10", "inspect task.nola --json",
        "inspect rungs.nola", "decode task.nola -o made", "decode task.nola -o made --dialect kohya --dtype bf16",
        "verify task.nola", "verify rungs.nola --json", "compare adapter task.nola",
        "truncate rungs.nola -o made --rung 0", "merge task.nola --base base -o made",
        "merge task.nola:0.5 --base base -o made --dry-run", "report task.nola -o made",
    ]  # fmt: skip
    return [json.dumps(line.split()).encode() for line in lines]


@cache
def _options(command: str) -> list[str]:
    made: click.Command = importlib.import_module(f"nola_codec.cli.{command.replace('-', '_')}").command
    names = [name for parameter in made.params for name in parameter.opts if name.startswith("-")]
    return [name for name in names if name not in _NO_OPTIONS]


def _change_arguments(data: bytes, rng: random.Random) -> bytes:
    try:
        words: list[Any] = json.loads(data)
        at = rng.randrange(1, len(words) + 1)
        match rng.randrange(6):
            case 0:
                words[at:at] = [rng.choice(_options(words[0]))]
            case 1:
                words[at:at] = [rng.choice(_options(words[0])), rng.choice(_WORDS)]
            case 2:
                words[at : at + 1] = []
            case 3:
                words[at:at] = [rng.choice(_WORDS)]
            case 4 if at < len(words):
                words[at] = scramble(words[at].encode(errors="surrogateescape"), rng).decode(errors="surrogateescape")
            case _:
                words[at : at + 1] = [rng.choice(_WORDS)]
        return json.dumps(words).encode()
    except (ValueError, AttributeError, IndexError):
        return scramble(data, rng)


def _read_arguments(data: bytes) -> None:
    """Run the command line with these words, in a folder of its own, which no word may leave."""
    try:
        words = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or words[:1] == []:
        return
    if words[0] not in _COMMANDS or any(re.search(r"/|\.\.|~|\0|^hf:", word) for word in words):
        return
    if any(
        word.startswith("--") and any(name.startswith(word.split("=")[0]) for name in _NO_OPTIONS) for word in words
    ):
        return  # click takes a word that options begin with
    folder, before = _place(), Path.cwd()
    os.chdir(folder)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO())),
        ):
            group.main(words, prog_name="nola-codec", standalone_mode=False)
    except click.ClickException as error:
        raise NolaError(error.format_message(), code="usage") from error
    except (OSError, SystemExit) as error:
        raise NolaError(str(error), code="system") from error
    finally:
        os.chdir(before)
        if {each.name for each in folder.iterdir()} != {"adapter", "base", "task.nola", "rungs.nola"}:
            _fill(folder)


def caller_targets() -> list[Target]:
    """Return the targets of this module."""
    return [
        Target("patterns", _pattern_seeds, _change_patterns, _read_patterns),
        Target("arguments", _argument_seeds, _change_arguments, _read_arguments),
    ]
