"""`nola-codec selftest`."""

from __future__ import annotations

from dataclasses import asdict

import click

from nola_codec.cli.output import json_option, print_json, usable_device


@click.command()
@click.option("--device", default="cpu", show_default=True, callback=usable_device,
              help='A torch device, or "numpy" for the reference alone.')  # fmt: skip
@json_option
def command(device: str, as_json: bool) -> int:
    """Check on this machine that generators, bases and decoding give the published bits."""
    from nola_codec.api.selftest import selftest

    checks = selftest(device)
    good = all(check.passed for check in checks)
    if as_json:
        print_json({"ok": good, "device": device, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            click.echo(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}  {check.found[:16]}")
    return 0 if good else 1
