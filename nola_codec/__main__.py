"""Run the command line: as `nola-codec`, and as `python -m nola_codec`."""

import sys


def main() -> None:
    """Run the command line; an interrupt while it is still being imported ends it without a traceback, too."""
    try:
        from nola_codec.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("nola-codec: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
