"""Another import path of `nola_codec.training.NolaCallback`, the callback for the `Trainer` of Transformers.

    from nola_codec.integrations.trainer import NolaCallback

Transformers is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nola_codec.training.callback import NolaCallback

__all__ = ["NolaCallback"]


def __getattr__(name: str) -> Any:
    if name != "NolaCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nola_codec.training.callback import NolaCallback

    return NolaCallback
