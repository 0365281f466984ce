"""A configuration or metadata that no file may hold is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
from odd_files import CONFIG, GOOD

import nola_codec
from nola_codec.encoder.header_room import require_header_room
from nola_codec.errors import EncodeError
from nola_codec.stores.safetensors_writer import dump


def test_what_fits_is_accepted() -> None:
    require_header_room({"r": 8, "nested": [{"a": None, "b": -0.5}], "x": float("inf")}, {"format": "pt"})
    require_header_room(None, {})


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"a": "x" * ((64 << 20) + 1)}, "limit"),
        ({"a": [0] * (1 << 21)}, "limit"),
        ({"a": 1 << 64}, "bad-config"),
        ({"a": "\ud800"}, "bad-config"),
    ],
    ids=["bytes", "values", "integer", "text"],
)
def test_a_configuration_without_room_is_refused(config: dict[str, Any], code: str) -> None:
    with pytest.raises(EncodeError) as caught:
        require_header_room(config, {})
    assert caught.value.code == code


def test_an_encode_refuses_large_metadata_before_its_work() -> None:
    stages: list[str] = []
    data = dump(GOOD, {"notes": "x" * 20_000_000})
    with pytest.raises(EncodeError, match="metadata 'notes': expected at most 16777216 characters") as caught:
        nola_codec.encode(data, config=CONFIG, progress=lambda stage, done, total: stages.append(stage))
    assert caught.value.code == "limit"
    assert stages == []
