"""Run the command line as `python -m nola_codec`."""

from nola_codec.cli import main

main()
