"""E-mail addresses of sign-in: which are accepted, and which of them are one mailbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pylon.auth.email_address import parse_email
from pylon.errors import InvalidEmail

CORPUS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "corpora" / "email_addresses.json").read_text()
)
VALID = [entry for entry in CORPUS if entry["key"] is not None]


@pytest.mark.parametrize("entry", CORPUS, ids=lambda e: ascii(e["typed"])[:60])
def test_each_typed_address_has_the_forms_of_the_corpus(entry: dict[str, Any]) -> None:
    is_dev = entry.get("dev", False)
    if entry["key"] is None:
        with pytest.raises(InvalidEmail):
            parse_email(entry["typed"], is_dev=is_dev)
        return
    address = parse_email(entry["typed"], is_dev=is_dev)
    assert (address.key, address.text) == (entry["key"], entry["text"])


@pytest.mark.parametrize("entry", VALID, ids=lambda e: ascii(e["typed"])[:60])
def test_a_form_of_an_address_is_the_same_address(entry: dict[str, Any]) -> None:
    is_dev = entry.get("dev", False)
    address = parse_email(entry["typed"], is_dev=is_dev)
    assert parse_email(address.key, is_dev=is_dev) == address
    assert parse_email(address.text, is_dev=is_dev) == address


@pytest.mark.parametrize("typed", [
    ("a@b\u00fccher.example", "a@bu\u0308cher.example", "A@XN--BCHER-KVA.EXAMPLE"),
    ("e\u0301@example.com", "\u00e9@example.com"),
    ("\u212aay@example.com", "kay@example.com", "KAY@example.com"),
])
def test_spellings_of_one_mailbox_have_one_key(typed: tuple[str, ...]) -> None:
    assert len({parse_email(text).key for text in typed}) == 1


@pytest.mark.parametrize("typed", [
    ("stra\u00dfe@example.com", "strasse@example.com"),
    ("\u0130@example.com", "i@example.com", "\u0131@example.com"),
    ("\u00e9@example.com", "\u00c9@example.com", "e@example.com"),
    ("\ufb01@example.com", "fi@example.com"),
    ("a.b@example.com", "ab@example.com", "ab+c@example.com"),
    ("a@stra\u00dfe.de", "a@strasse.de"),
])
def test_mailboxes_that_differ_have_different_keys(typed: tuple[str, ...]) -> None:
    assert len({parse_email(text).key for text in typed}) == len(typed)


def test_no_valid_address_can_break_a_header_of_a_mail() -> None:
    for number in (*range(0x80), 0x85, 0xA0, 0x2028, 0x2029, 0x200B, 0xFEFF):
        for text in (f"a{chr(number)}b@example.com", f"a@ex{chr(number)}ample.com"):
            try:
                address = parse_email(text)
            except InvalidEmail:
                continue
            for form in (address.key, address.text):
                assert form.count("@") == 1
                assert form.isprintable() and not set(form) & set(' \t\r\n,;:<>()[]"\\')


def test_an_address_of_254_bytes_is_accepted_and_one_of_255_is_not() -> None:
    domain = ".".join(["b" * 50] * 4) + ".com"
    local = "a" * (254 - len(domain) - 1)
    assert len(parse_email(f"{local}@{domain}").key) == 254
    with pytest.raises(InvalidEmail):
        parse_email(f"a{local}@{domain}")


def test_a_long_text_is_refused_at_once() -> None:
    with pytest.raises(InvalidEmail, match="254 bytes"):
        parse_email("a" * 10_000_000 + "@example.com")


def test_localhost_and_test_are_domains_in_dev_mode_only() -> None:
    for text in ("ann@localhost", "ann@app.test"):
        assert parse_email(text, is_dev=True).key == text
        with pytest.raises(InvalidEmail):
            parse_email(text)
