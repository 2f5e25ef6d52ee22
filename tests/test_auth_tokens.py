"""Tokens: form, hash, transport, comparison."""

from __future__ import annotations

import hashlib

import pytest

from pylon.auth.tokens import (
    bearer_token,
    is_session_token,
    new_session_token,
    same_token,
    session_id_of,
)
from pylon.clock import SeededRandom, SystemRandom


def test_a_new_token_has_the_documented_form() -> None:
    token = new_session_token(SeededRandom(1))
    assert token.startswith("pylon_")
    assert len(token) == len("pylon_") + 64
    assert is_session_token(token)
    assert token != new_session_token(SystemRandom())


def test_only_the_hash_identifies_a_session() -> None:
    token = new_session_token(SeededRandom(1))
    assert session_id_of(token) == hashlib.sha256(token.encode()).hexdigest()
    assert token[6:] not in session_id_of(token)


@pytest.mark.parametrize("text", ["", "pylon_", "pylon_" + "g" * 64, "PYLON_" + "0" * 64,
                                  "pylon_" + "0" * 65, "pylon_" + "0" * 64 + "\n"])
def test_what_is_not_a_token(text: str) -> None:
    assert not is_session_token(text)


@pytest.mark.parametrize(("header", "token"), [
    (None, None),
    ("", None),
    ("Basic abc", None),
    ("Bearer abc", "abc"),
    ("bearer abc ", "abc"),
    ("Bearer ", ""),
    ("Bearer", ""),  # HTTP servers trim values
    ("Bearerabc", None),
])
def test_the_bearer_header(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token


def test_comparison_of_tokens() -> None:
    assert same_token("abc", "abc")
    assert not same_token("abc", "abd")
    assert not same_token("", "")
    assert not same_token("abc", None)
    assert same_token("schlüssel", "schlüssel")
