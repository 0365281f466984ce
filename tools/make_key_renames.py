"""Write ``nola_codec/checkpoints/key_renames.json``: the renaming rules of the installed transformers.

The names of weights in memory differ from the keys on disk, and transformers keeps the rules for both ways in
``conversion_mapping.py``. A merge must know them and must not need transformers, so this program copies them. Run it
after an update of transformers:

    python tools/make_key_renames.py            # all architectures, about five minutes
    python tools/make_key_renames.py --check    # say whether the rules in the table are those of the installed version
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[1] / "nola_codec" / "checkpoints" / "key_renames.json"

Rule = list[Any]
"""``[sources, targets]`` or ``[sources, targets, kind]``; see `nola_codec.checkpoints.key_renames`."""


def rule_of(transform: Any) -> Rule:
    """Return one transform of transformers as a row of the table."""
    row: Rule = [list(transform.source_patterns), list(transform.target_patterns)]
    kind = _kind(transform)
    return row if kind == "rename" else [*row, kind]


def _kind(transform: Any) -> str:
    name = type(transform).__name__
    if name in ("WeightRenaming", "PrefixChange"):
        return "rename"
    if name == "GroupWeightRename":
        return "group"
    if name != "WeightConverter":
        return "other"
    operations = [(type(each).__name__, each) for each in transform.operations]
    names = [each for each, _ in operations]
    last = operations[-1][1]
    if names == ["MergeModulelist"] and last.dim == 0:
        return "experts"
    if names == ["MergeModulelist", "Concatenate"] and operations[0][1].dim == 0 and last.dim == 1:
        return "experts"
    if names == ["Concatenate"] and last.dim == 0 and last.num_shards_attribute is None:
        return "join"
    if names == ["Chunk"] and last.dim == 0 and last.num_shards_attribute is None:
        return "split"
    if names == ["Split"] and last.dim == 0:
        return "split"
    if names == ["Transpose"] and last.check_dims:
        return "rename"
    return "other"


def rules() -> dict[str, list[Rule]]:
    """Return the rules of the installed transformers by the name of a class or the type of a model."""
    from transformers.conversion_mapping import _build_checkpoint_conversion_mapping

    found: dict[str, list[Any]] = _build_checkpoint_conversion_mapping()  # type: ignore[no-untyped-call]
    return {name: [rule_of(each) for each in found[name]] for name in sorted(found) if name != "legacy"}


def architectures(known: Mapping[str, list[Rule]]) -> tuple[dict[str, list[list[str]]], dict[str, str]]:
    """Return the parts of each architecture that have rules, and the main architecture of each type of model.

    A part is ``[name of the rules, scope, prefix of the base model]``, or only the name for the model itself.
    """
    parts: dict[str, list[list[str]]] = {}
    types: dict[str, str] = {}
    for model_type, name in _classes():
        found = parts.get(name)
        if found is None:
            found = _parts(name, model_type, known)
        if found:
            parts[name] = found
            types.setdefault(model_type, name)
    return dict(sorted(parts.items())), dict(sorted(types.items()))


def _classes() -> Iterator[tuple[str, str]]:
    from transformers.models.auto import modeling_auto

    for table in ("IMAGE_TEXT_TO_TEXT_MAPPING", "CAUSAL_LM_MAPPING", None):
        attribute = "MODEL_MAPPING_NAMES" if table is None else f"MODEL_FOR_{table}_NAMES"
        for model_type, names in sorted(getattr(modeling_auto, attribute).items()):
            for name in [names] if isinstance(names, str) else names:
                yield model_type, name


def _parts(name: str, model_type: str, known: Mapping[str, list[Rule]]) -> list[list[str]]:
    """Build the model without weights and ask each of its parts for its rules, as transformers does."""
    own = [[each] for each in (name, model_type) if each in known][:1]
    model = build(name)
    return own if model is None else parts_of(model, known)


def parts_of(model: Any, known: Mapping[str, list[Rule]]) -> list[list[str]]:
    """Return the parts of a model that have rules (`get_model_conversion_mapping` of transformers)."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    transforms = get_model_conversion_mapping(model, add_legacy=False) or []
    modules = dict(model.named_modules())
    found: list[list[str]] = []
    position = 0
    while position < len(transforms):
        first: Any = transforms[position]
        scope, prefix = first.scope_prefix, first.base_model_prefix
        module = modules[""] if scope is None else _module(modules, scope, prefix)
        names = [type(module).__name__, getattr(getattr(module, "config", None), "model_type", "")]
        name = next(each for each in names if each in known)
        found.append([name] if scope is None else [name, scope, prefix])
        position += len(known[name])
    return found


def _module(modules: Mapping[str, Any], scope: str, prefix: str) -> Any:
    full = f"{prefix}.{scope}" if scope and prefix else prefix or scope
    return modules.get(full) if full in modules else modules.get(scope)


def build(name: str) -> Any:
    """Return a model of a class with its default configuration and without memory; None if it cannot be made."""
    import torch
    import transformers

    try:
        made = getattr(transformers, name)
        config = made.config_class()
        _shorten(config)
        with torch.device("meta"):
            return made(config)
    except Exception:  # some defaults make no model, and some models need packages that are not installed
        return None


def _shorten(config: Any) -> None:
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            _shorten(value)
    for name in ("num_hidden_layers", "num_layers", "depth", "n_layer", "encoder_layers", "decoder_layers"):
        if isinstance(getattr(config, name, None), int):
            try:
                setattr(config, name, 2)
            except (AttributeError, ValueError):
                continue


def text_of(table: Mapping[str, Any]) -> str:
    """Return the table as JSON with one line for each entry, so that a change of it can be read."""
    blocks = []
    for section, entries in table.items():
        if isinstance(entries, str):
            blocks.append(f'"{section}": {json.dumps(entries)}')
            continue
        lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in entries.items()]
        blocks.append(f'"{section}": {{\n' + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> int:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description="Copy the renaming rules of the installed transformers.")
    parser.add_argument("--check", action="store_true", help="only compare the rules with those of the table")
    check = parser.parse_args().check
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import transformers

    known = rules()
    if check:
        same = json.loads(TABLE.read_text(encoding="utf-8"))["rules"] == known
        print("the table is current" if same else "the table differs from the installed transformers")
        return 0 if same else 1
    parts, types = architectures(known)
    table = {"transformers": transformers.__version__, "types": types, "architectures": parts, "rules": known}
    TABLE.write_text(text_of(table), encoding="utf-8")
    print(f"{TABLE}: {len(known)} sets of rules, {len(parts)} architectures, {TABLE.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
