"""Give `encode` an adapter that it can read: PEFT turns those of other methods into LoRA first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nola_codec.adapters.dialects.peft_methods import is_convertible
from nola_codec.errors import require_torch

if TYPE_CHECKING:
    from nola_codec.progress import Progress


@contextmanager
def encodable_source(source: str, base: str | None, show: Progress | None) -> Iterator[tuple[str, str]]:
    """Yield the path of an adapter that `encode` can read, and the note for the user if it was converted.

    Args:
        source: The path of the adapter. If PEFT can convert its method, the result is in a directory that is removed
            afterwards.
        base: The directory of the base model; without it, nothing is converted.
        show: Shows progress.

    Raises:
        MissingPackage, AdapterError: Those of `peft_conversion.convert`.
    """
    if base is None or not is_convertible(source):
        yield source, ""
        return
    require_torch("converting adapters of other PEFT methods")
    from nola_codec.integrations.peft_conversion import convert

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lora"
        conversion = convert(source, base, path, progress=show)
        yield str(path), conversion.note
