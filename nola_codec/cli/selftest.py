"""`nola-codec selftest`."""

from __future__ import annotations

from dataclasses import asdict

from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import device_option, json_option, print_json, quiet_option
from nola_codec.cli.progress import show_progress


@helpful_command(
    examples=[
        ("NumPy, and PyTorch where it is installed", "nola-codec selftest"),
        ("A GPU", "nola-codec selftest --device cuda"),
    ],
    says_no="this machine computes other bits",
)
@device_option
@quiet_option
@json_option
def command(device: str, quiet: bool, as_json: bool) -> int:
    """Check that generators, bases and decoding give the published bits on this machine.

    On the CPU it checks NumPy, and PyTorch too if that is installed. The device "numpy" checks NumPy alone.
    """
    from nola_codec.api.selftest import selftest

    with show_progress(quiet, "checking"):
        checks = selftest(device)
    good = all(check.passed for check in checks)
    if as_json:
        print_json({"ok": good, "device": device, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            echo(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}  {check.found[:16]}")
    return 0 if good else 1
