"""Dataclasses that the layers hand to each other; no behaviour beyond derived sizes."""
