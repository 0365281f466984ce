"""Dataclasses that the layers hand to each other. They compute nothing but derived sizes."""
