"""`nola-codec push`."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from nola_codec.cli.help import PATH, option, options
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import OUTPUT, json_option, limits_option, print_json, print_notes, quiet_option

_PLACE = "Repository"
_CARD = "Card"

revision_option = option("--revision", "--branch", "revision", group=_PLACE, metavar="NAME",
                         help="Branch, which is made if it is not there  [default: main].")  # fmt: skip
endpoint_option = option("--endpoint", group=_PLACE, metavar="URL",
                         help="Address of the Hub  [default: $HF_ENDPOINT, else the public one].")  # fmt: skip


@helpful_command(
    examples=[
        ("Publish a file with a model card", "nola-codec push my.nola me/my-lora"),
        ("What would be sent, and the card", "nola-codec push my.nola me/my-lora --dry-run"),
        ("Two files, for members of the repository alone", "nola-codec push a.nola b.nola me/my-loras --private"),
        (
            "With the losses that were measured on held-out rows",
            "nola-codec push my.nola me/my-lora --metrics eval.json",
        ),
    ]
)
@click.argument("files", nargs=-1, type=PATH, metavar="FILE...")
@click.argument("repo", metavar="REPO")
@options(
    option("--private", group=_PLACE, is_flag=True, help="Make a new repository private; refuse one that is public."),
    revision_option,
    option("--path-in-repo", group=_PLACE, metavar="PATH",
           help="A name that ends in .nola, or a folder  [default: the file's name]."),
    option("--message", group=_PLACE, metavar="TEXT", help="Title of the commit."),
    endpoint_option,
    option("--no-card", "card", group=_CARD, is_flag=True, flag_value=False, default=True,
           help="Leave the README alone."),
    option("--metrics", group=_CARD, type=PATH, metavar="JSON",
           help="Losses for the card: what `eval --json` or `encode --fit task --json` printed."),
    option("--base-model", group=_CARD, metavar="NAME",
           help="Name of the base model on the Hub, where the file names none."),
    option("--license", group=_CARD, metavar="NAME", help="Licence, such as apache-2.0."),
    option("--pipeline-tag", group=_CARD, metavar="NAME", help="Task, such as text-generation."),
    option("-n", "--dry-run", group=OUTPUT, is_flag=True, help="Send nothing; print what would be sent."),
    limits_option,
    quiet_option,
    json_option,
)  # fmt: skip
def command(files: tuple[str, ...], repo: str, quiet: bool, as_json: bool, **values: Any) -> None:
    """Publish each FILE with a model card in the repository REPO (owner/name) of the Hugging Face Hub.

    The repository is made if it is not there, and all goes into one commit. A README that is there is kept: only the
    section of each file is written again, and front matter that is missing is added.

    The token is that of `hf auth login` or of HF_TOKEN.
    """
    if not files:
        said = f"nola-codec push {shlex.quote(repo)} owner/name"
        raise click.UsageError(f"give a file and the name of a repository: {said}")
    from nola_codec.integrations.hub.publishing import push_to_hub

    if quiet or as_json or not sys.stderr.isatty():
        hide_bars()
    report = push_to_hub(list(files), repo, **values)
    if as_json:
        print_json(report.to_dict())
        return
    echo(str(report))
    if report.dry_run and report.card is not None:
        echo(f"\nREADME.md:\n\n{report.card}", nl=False)
    print_notes(report.notes)


def hide_bars() -> None:
    """Have the Hub's client show no progress."""
    from nola_codec.errors import require_package

    require_package("nola-codec push and pull", "huggingface_hub", "hub")
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
