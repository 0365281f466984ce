"""`nola-codec selftest`."""

from __future__ import annotations

from dataclasses import asdict

from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import device_option, json_option, print_json, quiet_option
from nola_codec.cli.progress import show_progress


@helpful_command(
    examples=[
        ("The kernels, NumPy, and PyTorch where it is installed", "nola-codec selftest"),
        ("A GPU", "nola-codec selftest --device cuda"),
    ],
    says_no="this machine computes other bits",
)
@device_option
@quiet_option
@json_option
def command(device: str, quiet: bool, as_json: bool) -> int:
    """Check that generators, bases and decoding give the published bits on this machine.

    On the CPU it checks the compiled kernels, NumPy without them, and PyTorch if that is installed. The device "numpy"
    checks NumPy alone. A line says which kernels are in use, or why there are none.
    """
    from nola_codec.api.selftest import kernels_in_use, selftest

    with show_progress(quiet, "checking"):
        checks = selftest(device)
    good = all(check.passed for check in checks)
    if as_json:
        print_json(
            {"ok": good, "device": device, "kernels": kernels_in_use(), "checks": [asdict(check) for check in checks]}
        )
    else:
        used = kernels_in_use()
        echo(f"kernels: {used['variant'] or 'none, NumPy computes: ' + str(used['reason'])}")
        for check in checks:
            echo(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}  {check.found[:16]}")
    return 0 if good else 1
