"""`nola-codec compare`."""

from __future__ import annotations

from dataclasses import asdict

import click

from nola_codec.cli.output import error_share, json_option, print_json, table

_LISTED = 10


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--per-tensor", is_flag=True, help="List every delta, the worst first.")
@click.option("--max-nmse", type=float, help="Say no (exit status 1) above this error.")
@json_option
def command(a: str, b: str, per_tensor: bool, max_nmse: float | None, as_json: bool) -> int:
    """Compare the deltas of adapter B with those of adapter A, the reference; either may be a .nola file.

    Exit status 1: weights are missing on one side, carried tensors differ, or --max-nmse is passed.
    """
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
        click.echo(f"NMSE     {error_share(found.nmse)}  over {len(found.tensors)} deltas")
        worst = max(found.tensors, key=lambda t: t.nmse)
        click.echo(f"worst    {error_share(worst.nmse)}  {worst.name}")
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
            [error_share(item.nmse), "x".join(map(str, item.shape)), item.name]
            for item in sorted(found.tensors, key=lambda t: -t.nmse)
        ]
        table(rows)
    return 0 if good else 1
