"""Commands whose `--help` teaches: options in groups, examples, and the exit status.

@command(examples=[("The coarsest file", "nola-codec truncate a.nola -o b.nola --rung 0")])
@click.argument("file")
@option("--rung", group="Target", type=int, help="Number of the rung.")
def command_function(...): ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import click

EXIT_STATUS = {
    0: "done",
    1: "the answer is no",
    2: "wrong usage",
    3: "the input is refused, with the reason",
    70: "a bug in nola-codec",
    130: "interrupted, as by Ctrl-C; nothing is left half written",
}
HELP_NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
OTHER = "Other"
PATH = click.Path(readable=False)
"""A path that the command checks when it reads it: click would call a file that may not be read wrong usage."""
STREAM_OR_PATH = click.Path(readable=False, allow_dash=True)
"""The same, or ``-`` for standard output."""

OptionValues = TypeVar("OptionValues")
Function = TypeVar("Function", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *arguments: Any, group: str = OTHER, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.group = group


class HelpfulCommand(click.Command):
    """A command whose help has a section for each group of options, examples and the exit status.

    Attributes:
        examples: Pairs of a sentence, which may be empty, and a command line.
        says_no: Meaning of exit status 1; empty for a command that never ends with it.
        alternatives: Options of which at most one may be given, as the names of their parameters; options that belong
            together are one name, with a slash between them.
    """

    def __init__(
        self, *arguments: Any, examples: Sequence[tuple[str, str]] = (), says_no: str = "",
        alternatives: Sequence[str] = (), **attributes: Any,
    ) -> None:  # fmt: skip
        super().__init__(*arguments, **attributes)
        self.alternatives = alternatives
        self.examples = examples
        self.says_no = says_no

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; a refusal of several files names the command that takes many, if there is one."""
        try:
            left = super().parse_args(ctx, args)
            if not ctx.resilient_parsing:  # a shell asks for completions of a line that is not finished
                self._require_one_alternative(ctx)
            return left
        except click.UsageError as error:
            many = f"{ctx.info_name}-many"
            group = ctx.parent and ctx.parent.command
            is_extra = error.message.startswith("Got unexpected extra argument")
            if is_extra and ctx.parent and isinstance(group, click.Group) and many in group.list_commands(ctx.parent):
                message = f"{ctx.info_name} takes one name. `nola-codec {many}` takes many."
                raise click.UsageError(message, ctx) from error
            raise

    def _require_one_alternative(self, ctx: click.Context) -> None:
        typed = {parameter.name: parameter.opts[0] for parameter in self.params}
        given = []
        for names in self.alternatives:
            found = [typed[name] for name in names.split("/") if ctx.params[name] is not None]
            if found:
                given.append("/".join(found))
        if len(given) > 1:
            raise click.UsageError(f"Give only one of {', '.join(given)}.", ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group, in the order in which the groups first occur."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                groups.setdefault(getattr(parameter, "group", OTHER), []).append(record)
        groups[OTHER] = groups.pop(OTHER, [])
        for name, records in groups.items():
            with formatter.section(f"{name} options"):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, the exit status and the epilog."""
        if self.examples:
            with formatter.section("Examples"):
                for sentence, line in self.examples:
                    if sentence:
                        indent = f"{'':>{formatter.current_indent}}# "  # each line is a comment, also when it is copied
                        formatter.write(f"{click.formatting.wrap_text(sentence, formatter.width, indent, indent)}\n")
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        with formatter.section("Exit status"):
            meanings = EXIT_STATUS | {1: self.says_no}
            formatter.write_dl([(str(status), meaning) for status, meaning in meanings.items() if meaning])
        super().format_epilog(ctx, formatter)


def command(
    *, examples: Sequence[tuple[str, str]], says_no: str = "", alternatives: Sequence[str] = (), **attributes: Any
) -> Callable[[Callable[..., Any]], HelpfulCommand]:
    """A decorator like `click.command` that makes a `HelpfulCommand`."""
    return click.command(
        cls=HelpfulCommand, examples=examples, says_no=says_no, alternatives=alternatives,
        context_settings=HELP_NAMES, **attributes,
    )  # fmt: skip


def option(*names: str, group: str, **attributes: Any) -> Callable[[Function], Function]:
    """A decorator like `click.option` that puts the option into a group."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def options(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """One decorator that adds several options, listed in the order given."""

    def add(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def take(group: type[OptionValues], values: dict[str, Any]) -> OptionValues:
    """Move the fields of a dataclass out of a command's values, and make one of them."""
    return group(**{field.name: values.pop(field.name) for field in fields(group)})  # type: ignore[arg-type]
