"""What is fuzzed: how what a stranger wrote is read, one target for each kind of it.

A target has inputs to begin with (seeds), a way to change one, and the calls that read it. Whatever the bytes are,
these calls may only end with a result or with a NolaError. `file_targets.py` has the targets of `.nola` files,
`adapter_targets.py` those of adapters, and `caller_targets.py` those of what is typed.
"""

from __future__ import annotations

from adapter_targets import adapter_targets
from caller_targets import caller_targets
from file_targets import file_targets
from target import Target


def all_targets() -> dict[str, Target]:
    """Return all targets by name."""
    return {target.name: target for target in [*file_targets(), *adapter_targets(), *caller_targets()]}
