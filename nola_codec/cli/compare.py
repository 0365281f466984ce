"""`nola-codec compare`."""

from __future__ import annotations

from dataclasses import asdict

import click

from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.help import option
from nola_codec.cli.output import OUTPUT, json_option, print_json
from nola_codec.rendering import render_error, render_table

_LISTED = 10


@helpful_command(
    examples=[
        ("What did a file lose?", "nola-codec compare my_lora my.nola"),
        ("Fail in a script above an NMSE of 5%", "nola-codec compare my_lora my.nola --max-nmse 0.05"),
    ],
    says_no="weights are missing on one side, carried tensors differ, or --max-nmse is exceeded",
)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@option("--per-tensor", group=OUTPUT, is_flag=True, help="List every delta, the worst first.")
@option("--max-nmse", group="Target", type=float, help="End with exit status 1 above this NMSE.")
@json_option
def command(a: str, b: str, per_tensor: bool, max_nmse: float | None, as_json: bool) -> int:
    """Compare the deltas of adapter B with those of adapter A, the reference; either may be a .nola file."""
    from nola_codec.api.comparing import compare

    found = compare(a, b)
    good = found.same_structure and (max_nmse is None or found.nmse <= max_nmse)
    if as_json:
        facts = asdict(found)
        print_json({"ok": good, **facts})
        return 0 if good else 1
    if not found.tensors:
        click.echo("NMSE     undefined: no weight is in both adapters")
    else:
        click.echo(f"NMSE     {render_error(found.nmse)}  over {len(found.tensors)} deltas")
        worst = max(found.tensors, key=lambda t: t.nmse)
        click.echo(f"worst    {render_error(worst.nmse)}  {worst.name}")
    if found.carried_equal or found.carried_different:
        click.echo(f"carried  {len(found.carried_equal)} equal to the bit, {len(found.carried_different)} different")
    for label, names in (("only in A", found.only_in_a), ("only in B", found.only_in_b),
                         ("differs", found.carried_different)):  # fmt: skip
        for name in names[:_LISTED]:
            click.echo(f"{label}: {name}")
        if len(names) > _LISTED:
            click.echo(f"{label}: and {len(names) - _LISTED} more")
    if per_tensor:
        click.echo("")
        rows = [["NMSE", "shape", "name"]]
        rows += [
            [render_error(item.nmse), "x".join(map(str, item.shape)), item.name]
            for item in sorted(found.tensors, key=lambda t: -t.nmse)
        ]
        click.echo("\n".join(render_table(rows)))
    return 0 if good else 1
