"""`nola-codec inspect`."""

from __future__ import annotations

from typing import Any

import click

from nola_codec.cli.output import error_share, json_option, print_json, size, table


@click.command()
@click.argument("file", type=click.Path())
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def command(file: str, tensors: bool, as_json: bool) -> None:
    """Show what FILE holds. Reads the header only; `verify` checks the rest."""
    from nola_codec.api.inspecting import inspect

    facts = inspect(file)
    if as_json:
        if not tensors:
            facts["tensors"] = len(facts["tensors"])
        print_json(facts)
        return
    _print_facts(file, facts)
    if tensors:
        click.echo("")
        _print_tensors(facts["tensors"])


def _print_facts(file: str, facts: dict[str, Any]) -> None:
    draft = ", a draft: readers of later versions may refuse it" if facts["draft"] else ""
    products = [t for t in facts["tensors"] if t["record"] == "lowrank"]
    vectors = [t for t in facts["tensors"] if t["record"] == "vector"]
    carried, drawn = (sum(t["record"] == kind for t in facts["tensors"]) for kind in ("raw", "drawn"))
    kind = "products" if facts["dialect"] == "parameters" else "deltas"
    counts = [f"{len(products)} {kind}"] if products or not (vectors or drawn) else []
    counts += [f"{len(vectors)} vectors"] if vectors else []
    counts += [f"{carried} carried as they came"] if carried else []
    counts += [f"{drawn} drawn again from a seed"] if drawn else []
    parts = ", ".join(f"{name} {size(count)}" for name, count in facts["bytes_by_part"].items() if count)
    lines = [
        ("file", f"{file}: {size(facts['bytes'])}, {facts['ratio']:.1f}x smaller than {facts['parameters']:,} in fp16"),
        ("format", f"version {facts['format_version']}.{facts['format_revision']}{draft}"),
        ("written by", facts["writer"]),
        ("dialect", facts["dialect"]),
        ("base model", facts["base_model"] or "not named"),
        ("tensors", ", ".join(counts)),
        ("basis", f"{', '.join(facts['bases']) or 'none'}, {facts['generator']}, seed {facts['seed']}"),
        ("form", ", ".join(facts["form"]) or "none"),
        ("coefficients", f"{facts['coefficients']:,}, {facts['bits_per_coefficient']:.3f} bits each, "
                         f"{', '.join(facts['entropy'])}"),
        ("bytes", parts),
        *((name, error_share(value)) for name, value in facts["measured"].items()),
        ("digest", facts["factors_sha256"]),
    ]  # fmt: skip
    if len(facts["rungs"]) > 1:
        for number, rung in enumerate(facts["rungs"]):
            errors = ", ".join(f"{name} {error_share(value)}" for name, value in rung.items() if name != "bytes")
            lines.append((f"rung {number}", f"{size(rung['bytes'])} of the file, {errors}"))
    for name, value in lines:
        click.echo(f"{name:<16}{value}")


def _print_tensors(tensors: list[dict[str, Any]]) -> None:
    rows = [["name", "shape", "rank", "kept", "coefficients"]]
    for item in tensors:
        shape = "x".join(map(str, item["shape"]))
        if item["record"] == "raw":
            rows.append([item["name"], f"{shape} {item['dtype']}", "", "", size(item["bytes"])])
        elif item["record"] == "drawn":
            rows.append([item["name"], f"{shape} {item['dtype']}", "drawn", "", f"seed {item['seed']}"])
        else:
            rank = str(item["rank"]) if item["record"] == "lowrank" else "vector"
            rows.append([item["name"], shape, rank, str(item["units"]), f"{item['coefficients']:,}"])
    table(rows, right=(2, 3, 4))
