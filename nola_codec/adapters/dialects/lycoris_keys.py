"""The names of the parts of a LyCORIS delta; apart from its arithmetic, since `inspect` asks for nothing else."""

from __future__ import annotations

import re

PART = re.compile(
    r"(?P<stem>.+)\.(?P<part>lora_(?:down|mid|up)\.weight|hada_(?:w[12](?:_[ab])?|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"
)
"""The name of a part: the name of a product (``X.hada_w1``), or the key of a tensor (``X.hada_w1_a``)."""

PRODUCTS = ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2")
"""The parts that may be low-rank products; their factors are ``_a`` (out, r) and ``_b`` (r, in)."""
