"""`python -m nola_codec.cli`."""

from nola_codec.cli import main

main()
