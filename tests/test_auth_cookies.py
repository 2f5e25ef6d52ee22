"""The session cookie."""

from __future__ import annotations

import pytest

from pylon import config as settings
from pylon.auth.cookies import (
    SessionCookie,
    cookie_name,
    cookie_value,
    has_conflict,
    session_cookie,
)
from pylon.manifest.model import AuthConfig, Manifest


def cookie(environ: dict[str, str], expires_in_s: int = 2_592_000) -> SessionCookie:
    manifest = Manifest("bench-app", "1", (), auth=AuthConfig(session_expires_in_s=expires_in_s))
    return session_cookie(settings.load(environ).config, manifest)


def test_the_default_cookie_of_a_server() -> None:
    assert cookie({}).set("T") == (
        "bench-app_session=T; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=2592000"
    )
    assert cookie({}).cleared() == (
        "bench-app_session=; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=0"
    )


def test_every_setting_shows() -> None:
    made = cookie({
        "PYLON_COOKIE_NAME": "sid", "PYLON_COOKIE_DOMAIN": "example.com",
        "PYLON_COOKIE_SECURE": "0", "PYLON_COOKIE_SAME_SITE": "strict",
    }, expires_in_s=60)
    assert made.set("T") == (
        "sid=T; Path=/; Domain=example.com; HttpOnly; SameSite=Strict; Max-Age=60"
    )


def test_same_site_none_forces_secure() -> None:
    made = cookie({"PYLON_COOKIE_SECURE": "0", "PYLON_COOKIE_SAME_SITE": "none"})
    assert "; Secure; SameSite=None" in made.set("T")


def test_a_session_without_end_has_the_longest_cookie() -> None:
    assert cookie({}, expires_in_s=0).max_age_s == 34_560_000


@pytest.mark.parametrize(("app", "name"), [
    ("Pylon Cloud", "Pylon_Cloud_session"), ("bench-app", "bench-app_session"),
    ("", "pylon_session"), ("ä;=b", "___b_session"),
])
def test_names(app: str, name: str) -> None:
    assert cookie_name(app) == name


@pytest.mark.parametrize(("header", "value"), [
    (None, None), ("", None), ("other=1", None), ("sid=abc", "abc"),
    ("other=1; sid=abc; sid=def", None), ('sid="abc"; sid=abc', "abc"), ("sid=abc; sid=", None),
    ('sid="abc"', "abc"), ("xsid=1;sid=2", "2"),
    ("sid", None), ("sid=a=b", "a=b"),
])
def test_reading(header: str | None, value: str | None) -> None:
    assert cookie_value(header, "sid") == value


@pytest.mark.parametrize(("header", "conflict"), [
    ("sid=abc", False), ("sid=abc; sid=abc", False), ("sid=abc; sid=def", True),
    ("xsid=abc; sid=def", False), ("other=sid; sid=1", False), ("sid=; sid=1", True),
])
def test_two_cookies_that_differ_are_a_conflict(header: str, conflict: bool) -> None:
    assert has_conflict(header, "sid") is conflict


def test_clearing_names_every_domain_and_path_that_the_cookies_can_have() -> None:
    lines = cookie({}).cleared_everywhere("api.example.com:4321", "/api/auth/me")
    flags = "HttpOnly; Secure; SameSite=Lax; Max-Age=0"
    for domain in ("", "; Domain=api.example.com", "; Domain=example.com"):
        for path in ("/", "/api", "/api/auth"):
            assert f"bench-app_session=; Path={path}{domain}; {flags}" in lines
    assert not any("Domain=com" in line for line in lines)
    assert len(lines) <= 20


@pytest.mark.parametrize("host", [None, "", "localhost:4321", "127.0.0.1", "[::1]:80", "a b.c;d"])
def test_clearing_names_no_domain_that_is_none(host: str | None) -> None:
    lines = cookie({}).cleared_everywhere(host, "/api/\r\nX: 1/;")
    assert lines
    for line in lines:
        assert "Domain" not in line
        assert line.isprintable()
