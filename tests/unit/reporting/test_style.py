"""Text has the contrast that WCAG 2 asks for at level AA, in both colour schemes and on paper."""

from __future__ import annotations

import re

import pytest

from nola_codec.reporting.style import STYLE
from nola_codec.reporting.svg import STEPS

SCHEMES = [dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", block)) for block in re.findall(r":root\{(.*?)\}", STYLE)]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_there_are_a_light_and_a_dark_scheme_and_paper() -> None:
    light, dark, paper = SCHEMES
    assert light == paper
    assert luminance(light["paper"]) > 0.9
    assert luminance(dark["paper"]) < 0.1


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark", "paper"])
def test_contrast(scheme: dict[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text in ("ink", "soft"):
        assert contrast(scheme[text], scheme["paper"]) >= 4.5
    for drawn in ("first", "second", "soft"):
        assert contrast(scheme[drawn], scheme["paper"]) >= 3
    brightness = [abs(luminance(scheme[f"s{step}"]) - luminance(scheme["paper"])) for step in range(STEPS)]
    assert brightness == sorted(brightness)  # the stronger the value, the further from the paper
