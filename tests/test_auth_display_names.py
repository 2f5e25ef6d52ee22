"""Names for people to read."""

from __future__ import annotations

import pytest

from pylon.auth.display_names import clean_name
from pylon.errors import InvalidName


@pytest.mark.parametrize(("typed", "stored"), [
    ("Ann", "Ann"), ("  Ann Lee  ", "Ann Lee"), ("Zoe\u0308", "Zo\u00eb"),
    ("\u5f20\u4f1f", "\u5f20\u4f1f"), ("\u05d3\u05d5\u05d3", "\u05d3\u05d5\u05d3"),
    ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    ("a" * 100, "a" * 100), ("<b>Ann</b>", "<b>Ann</b>"),
    ("e\u0301" * 100, "\u00e9" * 100),
])
def test_names_are_stored_composed_and_trimmed(typed: str, stored: str) -> None:
    assert clean_name(typed) == stored


@pytest.mark.parametrize("typed", [
    "", " ", "\u200d", "\u3164", "\u200b\u200b", "\u00a0", "a" * 101, "a" * 1_000_000,
    "Ann\nLee", "Ann\r\nBcc: x", "Ann\x00", "Ann\x1b[31m", "Ann\u2028Lee", "Ann\u2029Lee",
    "\u202eeel", "Ann\u2066", "Ann\x85Lee", "Ann\ud800",
])
def test_other_names_are_refused(typed: str) -> None:
    with pytest.raises(InvalidName) as caught:
        clean_name(typed, "displayName")
    assert "displayName" in caught.value.message
