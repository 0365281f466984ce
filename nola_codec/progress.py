"""The type of the function that long work calls to report its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""A function that is called as (name of the stage, steps done, steps in all)."""
