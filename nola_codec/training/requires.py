"""Says in one line that training needs PyTorch; imported before everything else here."""

from __future__ import annotations

from nola_codec.errors import require_torch

require_torch("training")
