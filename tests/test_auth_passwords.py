"""Passwords: the form that is hashed, and the new ones that are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.auth.password_rules import (
    PasswordRules,
    is_common,
    new_password,
    normal_password,
    password_rules,
)
from pylon.auth.stolen_passwords import StolenPasswords, open_list
from pylon.config import load
from pylon.errors import PasswordTooLong, PwnedPassword, StartRefused, WeakPassword
from pylon.manifest.model import AuthConfig, Manifest

RULES = PasswordRules(10, "pylon-chat")
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


def hash_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest().upper()


def list_of(path: Path, lines: list[str]) -> StolenPasswords:
    path.write_text("\n".join(lines) + "\n")
    return open_list(path)


@pytest.mark.parametrize("password", [
    "correct horse battery staple", "x" * 64 + "y1", "\U0001f600\U0001f680 und dann Regen",
    f"{FAMILY} wir drei zusammen", "\u2764\ufe0f immer nur weiter", "\u5bc6\u7801\u662f" * 4,
    "  spaces at the ends  ", "a\u00a0b\u3000c and so on",
])
def test_long_passwords_of_any_writing_are_accepted(password: str) -> None:
    RULES.check(new_password(password), "ann@example.com")


@pytest.mark.parametrize("password", [
    "1234567890", "qwertyuiop", "password123", "PASSWORD123", "1q2w3e4r5t", "Iloveyou123",
])
def test_the_commonest_passwords_are_refused_in_any_case(password: str) -> None:
    with pytest.raises(WeakPassword, match="most common"):
        RULES.check(new_password(password))


def test_a_part_of_a_common_password_is_not_common() -> None:
    assert is_common("password123")
    assert not is_common("password12\n1")
    assert not is_common("assword123")
    assert not is_common("")


def test_the_least_length_counts_characters_and_is_settable() -> None:
    with pytest.raises(WeakPassword, match="fewer than 10"):
        RULES.check(new_password("\U0001f600" * 9))
    RULES.check(new_password("\U0001f600" * 10))
    with pytest.raises(WeakPassword, match="fewer than 15"):
        PasswordRules(15, "app").check(new_password("vierzehn chars"))


@pytest.mark.parametrize("password", [
    "pylon-chat", "PylonChat2026", "2026!pylonchat", "pylon_chat!!",
    "ann.lee.kim", "annleekim123", "AnnLeeKim!1", "ann.lee.kim@example.com",
])
def test_the_names_of_the_app_and_of_the_account_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword, match="made of"):
        RULES.check(new_password(password), "ann.lee.kim@example.com")


def test_a_long_password_that_holds_a_name_is_accepted() -> None:
    RULES.check(new_password("the pylon-chat of ann.lee.kim"), "ann.lee.kim@example.com")
    RULES.check(new_password("jo 4711 0815 2342 9999"), "jo@example.com")


def test_two_spellings_of_one_password_have_one_form() -> None:
    assert normal_password("cafe\u0301\u00a0au lait") == normal_password("caf\u00e9 au lait")
    assert normal_password(f"e\u0301{FAMILY}\u3000") == f"\u00e9{FAMILY} "
    # No case, no width and no compatibility form is folded.
    assert normal_password("\uff41") != normal_password("a") != normal_password("A")


@pytest.mark.parametrize("password", [
    "", "\u200d", "tab\tand more text", "line\nand more text", "nul\x00and more text",
    "\u202eand more text", "\ud800and more text", "\x7fand more text",
])
def test_texts_that_no_password_can_be(password: str) -> None:
    assert normal_password(password) is None
    with pytest.raises(WeakPassword):
        new_password(password)


@pytest.mark.parametrize(("password", "fits"), [
    ("x" * 1024, True), ("x" * 1025, False), ("\u00e9" * 512, True), ("\u00e9" * 513, False),
    ("x" * 10_000_000, False),
])
def test_a_password_has_at_most_1024_bytes(password: str, fits: bool) -> None:
    if fits:
        assert new_password(password) == password
        return
    assert normal_password(password) is None
    with pytest.raises(PasswordTooLong):
        new_password(password)


@given(st.text())
def test_the_form_of_a_password_is_its_own_form(password: str) -> None:
    normal = normal_password(password)
    assert normal is None or normal_password(normal) == normal


def test_errors_never_show_the_password() -> None:
    for password in ("hunter2", "password123", "pylonchat99", "x\ty" * 5, "x" * 2000):
        with pytest.raises((WeakPassword, PasswordTooLong)) as caught:
            RULES.check(new_password(password))
        assert password not in str(caught.value.body())


@pytest.mark.parametrize("end", ["", ":1", ":123456789"])
@pytest.mark.parametrize("count", [1, 2, 3, 17, 1000])
def test_each_hash_of_the_list_is_found_and_no_other(
    tmp_path: Path, count: int, end: str
) -> None:
    known = sorted(hash_of(f"password {n}") for n in range(count))
    stolen = list_of(tmp_path / "hashes.txt", [line + end for line in known])
    for n in range(count):
        assert stolen.has_hash(bytes.fromhex(hash_of(f"password {n}")))
        assert not stolen.has_hash(bytes.fromhex(hash_of(f"other {n}")))
    assert not stolen.has_hash(bytes(20))
    assert not stolen.has_hash(bytes([255] * 20))


def test_lines_of_many_lengths_and_kinds_are_found(tmp_path: Path) -> None:
    known = sorted(hash_of(f"password {n}") for n in range(300))
    path = tmp_path / "hashes.txt"
    path.write_bytes(b"".join(
        f"{line.lower() if n % 3 else line}{':' + '7' * (n % 20 + 1) if n % 2 else ''}".encode()
        + (b"\r\n" if n % 5 else b"\n") for n, line in enumerate(known)
    ).rstrip(b"\r\n"))  # and no line break at the end
    stolen = open_list(path)
    assert all(stolen.has_hash(bytes.fromhex(line)) for line in known)
    assert not any(stolen.has_hash(bytes.fromhex(hash_of(f"other {n}"))) for n in range(300))


def test_a_stolen_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hashes.txt"
    path.write_text("\n".join(sorted(hash_of(p) for p in ("viele kleine Leute", "b", "c"))) + "\n")
    config = load({"PYLON_PWNED_FILE": str(path)}).config
    rules = password_rules(config, Manifest("app", "1", (), auth=AuthConfig()))
    with pytest.raises(PwnedPassword):
        rules.check(new_password("viele kleine Leute"))
    rules.check(new_password("viele kleine Orte"))


@pytest.mark.parametrize(("text", "says"), [
    ("", "no list"), ("hello\n", "no list"), (f"{'F' * 40}\n{'0' * 40}\n", "not sorted"),
    (f"{'0' * 40}\nnothing\n", "no list"),
])
def test_a_file_that_is_no_sorted_list_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "hashes.txt"
    path.write_text(text)
    with pytest.raises(StartRefused, match=says):
        open_list(path)
    with pytest.raises(StartRefused, match="cannot be read"):
        open_list(tmp_path / "missing.txt")
