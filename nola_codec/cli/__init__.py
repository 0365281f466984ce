"""The `nola-codec` command: one file a subcommand, results on stdout, everything else on stderr.

`encode_options.py` has the options of both encodes, `help.py` makes `--help`, and `output.py` is what commands share.

Exit status: 0 done, 1 `verify`, `compare` or `selftest` says no, 2 wrong usage, 3 input refused, 70 our own bug.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from nola_codec.cli.help import HELP_NAMES
from nola_codec.version import __version__

COMMANDS = {
    "encode": "Encode an adapter as a .nola file.",
    "encode-delta": "Encode what a training changed in a whole model.",
    "decode": "Decode to an adapter, or into a model's weights.",
    "merge": "Merge one or several files into a model's weights.",
    "inspect": "Show what a file holds, without decoding it.",
    "verify": "Check a file: layout, checksums, hash of what it decodes to.",
    "truncate": "Cut a progressive file to a coarser one.",
    "compare": "Compare two adapters by their deltas.",
    "sweep": "Show the whole curve of size against error.",
    "selftest": "Check that this machine computes the published bits.",
}
_EPILOG = """Every command takes -h, which shows its options in groups, examples, and its exit status.

\b
Shell completion, for the file that your shell reads at its start:
  bash  eval "$(_NOLA_CODEC_COMPLETE=bash_source nola-codec)"
  zsh   eval "$(_NOLA_CODEC_COMPLETE=zsh_source nola-codec)"
  fish  _NOLA_CODEC_COMPLETE=fish_source nola-codec | source
"""
_LONGEST_MESSAGE = 800  # characters


class _Group(click.Group):
    """A group that loads a subcommand's module only when it is called, so that `inspect` starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"nola_codec.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group("nola-codec", cls=_Group, context_settings=HELP_NAMES, epilog=_EPILOG)
@click.version_option(__version__, prog_name="nola-codec")
def group() -> None:
    """LoRA adapters as small files that decode to the same bits everywhere."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; the one place where errors become exit statuses."""
    from nola_codec.errors import NolaError, OutputExists

    try:
        status: Any = group.main(arguments, prog_name="nola-codec", standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except click.ClickException as error:
        error.show(sys.stderr)
        sys.exit(error.exit_code)
    except OutputExists as error:
        _fail(f"{error}; -f overwrites it" if str(error).endswith("already exists") else str(error), 2)
    except NolaError as error:
        _fail(str(error) if error.code == "option" else f"{error} [{error.code}]", 2 if error.code == "option" else 3)
    except FileNotFoundError as error:
        _fail(f"{error.filename}: no such file or directory", 3)
    except OSError as error:
        _fail(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), 3)
    except Exception:
        import traceback

        traceback.print_exc()
        _fail("this is a bug in nola-codec; please report it with the lines above", 70)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    click.echo(f"nola-codec: {_one_line(message)}", err=True)
    sys.exit(status)


def _one_line(message: str) -> str:
    """Make a message one short line: names that strangers gave may hold new lines, terminal escapes, or a megabyte."""
    message = message.replace(":\n  ", ": ").replace("\n  ", "; ")  # our own lists
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message)
