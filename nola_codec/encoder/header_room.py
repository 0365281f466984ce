"""Refuse a configuration or metadata that no header may hold, before the work of an encode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nola_codec.container import canonical
from nola_codec.container.limits import DEFAULT_LIMITS
from nola_codec.entropy.frames import compress
from nola_codec.errors import EncodeError, FormatError, mismatch

_ADVICE = "remove it from the adapter's files first"


def require_header_room(config: Mapping[str, Any] | None, metadata: Mapping[str, str]) -> None:
    """Check that a header may hold a configuration and metadata.

    Args:
        config: The configuration of an adapter, or None.
        metadata: The metadata of its file.

    Raises:
        EncodeError: ``limit``: They are larger than a reader accepts; ``bad-config``: They hold a value that has no
            form in MessagePack, such as an integer of more than 64 bits.
    """
    limits = DEFAULT_LIMITS
    for key, text in metadata.items():
        if len(text) > limits.metadata:
            what = mismatch(f"metadata {key[:80]!r}", f"at most {limits.metadata} characters", len(text))
            raise EncodeError(f"{what}; {_ADVICE}", code="limit")
    try:
        plain = canonical.pack({"config": config, "metadata": dict(metadata)})
        canonical.unpack(plain)
    except FormatError as error:
        code = "limit" if error.code == "limit" else "bad-config"
        raise EncodeError(f"configuration and metadata: a file cannot hold them: {error}", code=code) from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        message = f"configuration and metadata: a file cannot hold a value of them ({error})"
        raise EncodeError(message, code="bad-config") from error
    stored = len(compress(plain)) if len(plain) > limits.header_stored else 0
    for found, most, what in ((len(plain), limits.header_plain, ""), (stored, limits.header_stored, ", compressed")):
        if found > most:
            text = mismatch(f"configuration and metadata{what}", f"at most {most} bytes", found)
            raise EncodeError(f"{text}; {_ADVICE}", code="limit")
