"""`nola-codec view`."""

from __future__ import annotations

import click

from nola_codec.cli.help import PATH, option
from nola_codec.cli.help import command as helpful_command
from nola_codec.cli.messages import echo
from nola_codec.cli.output import limits_option, print_notes
from nola_codec.remote import local_path, shown_url

_SERVER = "Server"


@helpful_command(
    examples=[
        ("Look at a file in the browser", "nola-codec view my.nola"),
        (
            "On another machine: open the printed address after `ssh -L 8765:127.0.0.1:8765`",
            "nola-codec view my.nola --no-browser --port 8765",
        ),
    ]
)
@click.argument("file", type=PATH)
@option("--reference", "references", group="Reference", type=PATH, multiple=True, metavar="PATH",
        help="An earlier version that FILE needs, as a .nola file. May be repeated.")  # fmt: skip
@option("--no-browser", group=_SERVER, is_flag=True, help="Print the address, and open no browser.")
@option("--port", group=_SERVER, type=click.IntRange(0, 65535), default=0, help="The port  [default: any free one].")
@limits_option
def command(file: str, references: tuple[str, ...], no_browser: bool, port: int) -> None:
    """Show FILE in the browser: header, tensors, histograms, and all checks; it can be saved as safetensors.

    The page and FILE come from a server on 127.0.0.1, which ends with Ctrl-C. It gives nothing else, and only to who
    knows the printed address. The page does all the work, and sends nothing.
    """
    from nola_codec.api.inspecting import inspect
    from nola_codec.viewer.server import Viewer

    verdict = inspect(file).verdict
    with Viewer([local_path(each) for each in (file, *references)], port) as viewer:
        try:
            echo(f"{shown_url(file)}: {verdict}", err=True)
            echo("Ctrl-C ends the server", err=True)
            echo(viewer.url)
            if not no_browser:
                _open_browser(viewer.url)
            viewer.serve()
        except KeyboardInterrupt as interrupt:
            if type(interrupt) is not KeyboardInterrupt:  # a signal that asks the program to end
                raise


def _open_browser(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        print_notes(["no browser could be opened here: open the address yourself"])
