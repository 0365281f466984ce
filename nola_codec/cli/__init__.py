"""The `nola-codec` command: one file a subcommand, results on stdout, everything else on stderr.

`encode_options.py` has the options of both encodes, `help.py` makes `--help`, `messages.py` adds the next step to an
error, `peft_source.py` has PEFT turn an adapter of another method into LoRA, `progress.py` shows progress with the
rates of `pace.py`, `output.py` holds the code that commands share, and `fleet_options.py` that of the commands on many
files.

Exit status: 0 done, 1 `verify`, `compare`, `eval` or `selftest` says no, 2 wrong usage, 3 input refused, 70 our own
bug; as in any program 130 when it was interrupted, 143 when it was told to end (SIGTERM), 129 when its terminal was
closed, and 141 when whoever read its output went away. Whatever ends it that way, nothing is left half written.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
from types import FrameType
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
    "report": "Write a page on what a file holds, costs and lost.",
    "view": "Show a file in the browser.",
    "verify": "Check a file: layout, checksums, hash of what it decodes to.",
    "sign": "Sign a file, so that others can check who made it.",
    "truncate": "Cut a progressive file to a coarser one.",
    "encode-many": "Encode very many adapters, with a manifest of results.",
    "decode-many": "Decode very many files.",
    "verify-many": "Check very many files.",
    "compare": "Compare two adapters by their deltas.",
    "sweep": "Show the whole curve of size against error.",
    "eval": "Measure how much of a task adapters and files keep.",
    "push": "Publish files on the Hugging Face Hub, with a model card.",
    "pull": "Get a file from the Hugging Face Hub.",
    "selftest": "Check that this machine computes the published bits.",
}
_EPILOG = """Every command takes -h, which shows its options in groups, examples, and its exit status.
Wherever a path is taken, a URL is taken too: https://, s3://, hf:// and others.

Work of more than a second shows its progress on standard error, unless -q is given: a line that is wiped at the end,
or a plain line every half minute where that is no terminal. NO_COLOR, FORCE_COLOR and TERM=dumb are honoured.

\b
Shell completion, for the file that your shell reads at its start:
  bash  eval "$(_NOLA_CODEC_COMPLETE=bash_source nola-codec)"
  zsh   eval "$(_NOLA_CODEC_COMPLETE=zsh_source nola-codec)"
  fish  _NOLA_CODEC_COMPLETE=fish_source nola-codec | source
"""
_NAME = "nola-codec:"
"""The word that a message begins with."""
_CLOSED_PIPE = 141  # as shells report a program that SIGPIPE ended
_ENDING_SIGNALS = {"SIGTERM": "told to end", "SIGHUP": "the terminal was closed"}
"""The signals that end the program as an interrupt does, with what it says then."""


class _Ended(KeyboardInterrupt):
    """A signal came that asks the program to end; all that handles an interrupt handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not stop the cleaning up
    raise _Ended(number)


def _handle_signals() -> None:
    """Let signals that ask the program to end clean up as an interrupt does. Containers send SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in _ENDING_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # `nohup` ignores SIGHUP
            signal.signal(number, _end)


def choose_color() -> bool | None:
    """Return True to colour, False not to, and None for colour on terminals only, by the usual variables."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


class _Group(click.Group):
    """A group that loads a subcommand's module only when it is called, so that `inspect` starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"nola_codec.cli.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for a name that is none of them, say which is close to it."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"The commands are {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group("nola-codec", cls=_Group, context_settings=HELP_NAMES, epilog=_EPILOG)
@click.version_option(__version__, prog_name="nola-codec")
def group() -> None:
    """LoRA adapters as small files that decode to the same bits everywhere."""
    click.get_current_context().color = choose_color()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; the one place where errors become exit statuses."""
    from nola_codec.cli.messages import STDOUT_NAME, USAGE_CODES, describe_error, describe_system_error
    from nola_codec.errors import NolaError, OutputExists
    from nola_codec.rendering import escape

    _handle_signals()
    try:
        status: Any = group.main(arguments, prog_name="nola-codec", standalone_mode=False)
        _flush_output()
    except click.exceptions.Abort as error:
        if isinstance(error.__cause__, _Ended):
            number = error.__cause__.number
            _fail(_ENDING_SIGNALS[signal.Signals(number).name], 128 + number)
        _fail("interrupted", 130)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(escape(shown.getvalue(), keep="\n"), err=True, nl=False)  # the shell may have put any name there
        sys.exit(error.exit_code)
    except SystemExit:  # click's answer to a closed pipe, with status 1, which would mean "damaged" or "different"
        sys.exit(_CLOSED_PIPE)
    except NolaError as error:
        usage = isinstance(error, OutputExists) or error.code in USAGE_CODES
        _fail(describe_error(error), 2 if usage else 3)
    except OSError as error:
        if error.errno == errno.EPIPE and error.filename == STDOUT_NAME:
            sys.exit(_CLOSED_PIPE)
        if _is_of_output(error):
            error = OSError(error.errno, error.strerror, STDOUT_NAME)
        _fail(describe_system_error(error), 3)
    except MemoryError as error:
        _fail(f"not enough memory: {error}" if str(error) else "not enough memory", 3)
    except Exception:
        import traceback

        click.echo(escape(traceback.format_exc(), keep="\n"), err=True, nl=False)
        _fail("this is a bug in nola-codec; please report it with the lines above", 70)
    sys.exit(status if isinstance(status, int) else 0)


def _flush_output() -> None:
    """Write out what standard output holds back; else the interpreter would only complain at its end."""
    from nola_codec.cli.messages import STDOUT_NAME

    try:
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT_NAME) from error


def _is_of_output(error: OSError) -> bool:
    """Return True if it was raised where text is printed."""
    import traceback

    (*_, (frame, _)) = traceback.walk_tb(error.__traceback__)
    return error.filename is None and frame.f_code is click.echo.__code__


def _fail(message: str, status: int) -> None:
    from nola_codec.cli.messages import break_lines, one_line

    text = break_lines(_NAME, one_line(message), sys.stderr).removeprefix(_NAME)
    click.echo(click.style(_NAME, fg="red") + text, err=True, color=choose_color())
    sys.exit(status)
