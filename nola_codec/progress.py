"""The type of the function that long work calls to report its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""A function that is called as (name of the stage, steps done, steps in all).

Steps in all are 0 if nobody can know them, such as the drafts of a search. A stage that reports no steps says its name
when it begins, as (stage, 0, 0). Stages that share one count, which each goes on with, are one work: the time that is
left is then that of all of them.
"""
