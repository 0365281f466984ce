"""Two dialects that number their modules, so that only the program that trained an adapter knows the modules.

sam_lora     w_a_000 (r, in), w_b_000 (out, r), numbered in the order of the layers (Sam_LoRA, SAMed)
cloneofsimo  unet:0:down, unet:0:up, text_encoder:0:...; ranks and classes in the metadata; embeddings called <token>

Such adapters can be read and written, but neither converted nor merged.
"""

from __future__ import annotations

import re

from nola_codec.adapters.dialects.pair_dialect import PairDialect
from nola_codec.adapters.dialects.pairs import PairKeys
from nola_codec.errors import AdapterError, mismatch


class NumberedPairs(PairDialect):
    """A dialect in which the names of modules are numbers."""

    is_for_images = True

    def path_of(self, name: str) -> str:
        """Raise AdapterError ``not-expressible``."""
        message = f"{self.name} numbers its modules, and only the program that trained them knows their paths; " \
                  "decode it to its own dialect, for that program"  # fmt: skip
        raise AdapterError(message, code="not-expressible", where=name)


def _number_of(name: str) -> int:
    """Return the number of a module of Sam_LoRA. Raises AdapterError ``not-expressible`` for another name."""
    if re.fullmatch(r"w[0-9]{1,3}", name) is None:
        message = mismatch("name of a module", "w and a number below 1000", repr(name[:80]))
        raise AdapterError(message, code="not-expressible", where=name)
    return int(name[1:])


SAM_LORA = NumberedPairs(
    "sam_lora",
    "SAM LoRA (w_a_/w_b_)",
    PairKeys(
        re.compile(r"w_(?:(?P<a>a)|(?P<b>b))_(?P<stem>\d{3})"),
        lambda name: f"w_a_{_number_of(name):03d}",
        lambda name: f"w_b_{_number_of(name):03d}",
        module=lambda digits: f"w{int(digits)}",
    ),
    carried=re.compile(r"(?:prompt_encoder|mask_decoder)\..+"),
)

CLONEOFSIMO = NumberedPairs(
    "cloneofsimo",
    "cloneofsimo lora",
    PairKeys.of_suffixes(":down", ":up", stem=r"[a-z_0-9]+:\d+"),
    carried=re.compile(r"<[^<>]+>"),
)
