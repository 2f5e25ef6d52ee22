"""CORS and CSRF."""

from __future__ import annotations

import pytest

from pylon import config as settings
from pylon.auth.origin import Origins, check_body_type, origin_of, origins
from pylon.auth.response_headers import fixed_headers, socket_headers, unread_headers
from pylon.errors import CsrfRejected
from pylon.manifest.model import AuthConfig, Manifest

PRODUCTION = {
    "PYLON_CORS_ORIGIN": "https://app.example.com",
    "PYLON_CSRF_ORIGINS": "https://admin.example.com, http://localhost:3000/",
}


def made(environ: dict[str, str], *trusted: str) -> Origins:
    manifest = Manifest("app", "1", (), auth=AuthConfig(trusted_origins=trusted))
    return origins(settings.load(environ).config, manifest)


@pytest.mark.parametrize("origin", [
    "https://app.example.com", "https://admin.example.com",
    "http://localhost:3000", "https://trusted.example.com",
])
def test_listed_origins_pass(origin: str) -> None:
    allowed = made(PRODUCTION, "https://trusted.example.com")
    allowed.check("POST", origin, None, has_bearer=False)
    assert origin in allowed.allowed


@pytest.mark.parametrize("origin", [
    "http://evil.example", "null", "", "https://app.example.com.evil.example",
    "http://app.example.com", "https://app.example.com:444", "https://APP.example.com",
    "https://app.example.com/", "https://evil.example/https://app.example.com",
    "https://app.example.com, https://evil.example", "https://xapp.example.com",
    "https://app.example.com\r\nx: y", "https://user@app.example.com", "*",
])
def test_other_origins_are_refused(origin: str) -> None:
    with pytest.raises(CsrfRejected, match="CSRF gate rejected origin"):
        made(PRODUCTION).check("DELETE", origin, None, has_bearer=False)


def test_the_referer_stands_in_for_a_missing_origin() -> None:
    made(PRODUCTION).check("POST", None, "https://app.example.com/page?x", has_bearer=False)
    with pytest.raises(CsrfRejected, match=r'"http://evil\.example"'):
        made(PRODUCTION).check("POST", None, "http://evil.example/page", has_bearer=False)
    with pytest.raises(CsrfRejected):
        made(PRODUCTION).check("POST", None, "about:blank", has_bearer=False)


@pytest.mark.parametrize(("method", "origin", "bearer"), [
    ("GET", "http://evil.example", False), ("HEAD", "http://evil.example", False),
    ("OPTIONS", "http://evil.example", False), ("POST", "http://evil.example", True),
    ("POST", None, False),
])
def test_what_needs_no_check(method: str, origin: str | None, bearer: bool) -> None:
    allowed = made(PRODUCTION)
    allowed.check(method, origin, None, has_bearer=bearer)
    assert not allowed.any_loopback


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site", " cross-site "])
def test_a_cross_site_request_without_origin_and_referer_is_refused(site: str) -> None:
    allowed = made(PRODUCTION)
    with pytest.raises(CsrfRejected, match="Sec-Fetch-Site"):
        allowed.check("POST", None, None, has_bearer=False, fetch_site=site)
    with pytest.raises(CsrfRejected):
        allowed.check("POST", None, "https://evil.example/", has_bearer=False, fetch_site=site)
    page = "https://app.example.com"
    allowed.check("POST", page, None, has_bearer=False, fetch_site=site)
    allowed.check("POST", None, f"{page}/page", has_bearer=False, fetch_site=site)
    allowed.check("POST", None, None, has_bearer=True, fetch_site=site)
    allowed.check("GET", None, None, has_bearer=False, fetch_site=site)


@pytest.mark.parametrize("site", [None, "same-origin", "same-site", "none"])
def test_other_requests_that_name_no_page_pass(site: str | None) -> None:
    made(PRODUCTION).check("POST", None, None, has_bearer=False, fetch_site=site)


DEV = {"PYLON_DEV_MODE": "1", "PYLON_ADMIN_TOKEN": "x"}


@pytest.mark.parametrize("origin", [
    "http://localhost", "http://localhost:5173", "https://localhost:1", "http://127.0.0.1:3000",
    "http://127.9.9.9", "http://[::1]:8080", "http://app.localhost:4321",
])
def test_in_dev_mode_every_loopback_origin_is_trusted(origin: str) -> None:
    allowed = made(DEV)
    allowed.check("POST", origin, None, has_bearer=False)
    assert allowed.cors(origin)[0] == ("access-control-allow-origin", origin)
    assert not made(PRODUCTION).allows("http://localhost:5173")


@pytest.mark.parametrize("origin", [
    "http://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.evil.example",
    "http://evillocalhost", "http://localhost:3000.evil.example", "http://localhost@evil.example",
    "http://127.0.0.1:", "http://10.0.0.1:3000", "file://", "http://LOCALHOST",
])
def test_in_dev_mode_no_other_origin_is(origin: str) -> None:
    allowed = made(DEV)
    with pytest.raises(CsrfRejected):
        allowed.check("POST", origin, None, has_bearer=False)
    assert allowed.cors(origin) == ()
    with pytest.raises(CsrfRejected):
        allowed.check("POST", None, None, has_bearer=False, fetch_site="cross-site")


def test_the_manifest_names_pages_for_cors_and_csrf_alike() -> None:
    allowed = made(PRODUCTION, "https://trusted.example.com")
    for origin in ("https://app.example.com", "https://admin.example.com",
                   "https://trusted.example.com", "http://localhost:3000"):
        assert dict(allowed.cors(origin))["access-control-allow-origin"] == origin
        allowed.check("POST", origin, None, has_bearer=False)
        assert allowed.allows_cookie(origin, None)


@pytest.mark.parametrize(("origin", "site", "counts"), [
    ("https://app.example.com", "cross-site", True), (None, "same-origin", True),
    (None, None, False), (None, "same-site", False), (None, "cross-site", False),
    (None, "none", False), ("null", "same-origin", False), ("https://evil.example", None, False),
    ("https://evil.example", "same-origin", False),
])
def test_when_the_cookie_of_a_stream_counts(
    origin: str | None, site: str | None, counts: bool
) -> None:
    assert made(PRODUCTION).allows_cookie(origin, site) is counts


@pytest.mark.parametrize("kind", [
    "application/json", "application/json; charset=utf-8", "Application/JSON",
    "application/x-ndjson", "application/problem+json", "application/octet-stream",
])
def test_bodies_that_no_form_can_send(kind: str) -> None:
    check_body_type(kind)


@pytest.mark.parametrize("kind", [
    None, "", "text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x", "text/plain; x=application/json", "application/jsonx",
    "text/json", "image/png",
])
def test_bodies_that_a_form_can_send(kind: str | None) -> None:
    with pytest.raises(CsrfRejected, match="Content-Type: application/json"):
        check_body_type(kind)


@pytest.mark.parametrize(("url", "origin"), [
    ("https://a.b/c?d#e", "https://a.b"), ("http://a:1", "http://a:1"), ("", "null"),
    ("about:blank", "null"), ("http://[::1", "null"), ("/path", "null"),
])
def test_the_origin_of_a_url(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_the_fixed_headers_name_no_origin_and_all_that_clients_send() -> None:
    headers = dict(fixed_headers(settings.load(PRODUCTION).config))
    assert "access-control-allow-origin" not in headers
    assert headers["vary"] == "Origin"
    assert "PUT" in headers["access-control-allow-methods"]
    assert "X-Filename" in headers["access-control-allow-headers"]
    assert "X-Pylon-Change-Seq, ETag" in headers["access-control-expose-headers"]


def test_an_answer_to_an_unread_request_is_for_the_first_origin() -> None:
    two = {**PRODUCTION, "PYLON_CORS_ORIGIN": "https://app.example.com,https://b.example.com"}
    config, two_origins = settings.load(two).config, made(two)
    headers = dict(unread_headers(config, two_origins))
    assert headers["access-control-allow-origin"] == "https://app.example.com"
    assert headers["cache-control"] == "no-store"
    assert ("access-control-allow-origin", "https://app.example.com") in socket_headers(
        config, two_origins
    ).of(None)
    assert two_origins.cors(None) == two_origins.cors("https://app.example.com")
    dev = unread_headers(settings.load(DEV).config, made(DEV))
    assert "access-control-allow-origin" not in dict(dev)


@pytest.mark.parametrize(("url", "value"), [
    ("https://api.example.com", "max-age=31536000"),
    ("HTTPS://api.example.com", "max-age=31536000"),
    ("http://api.example.com", None), ("", None),
])
def test_hsts_only_where_the_public_url_is_https(url: str, value: str | None) -> None:
    config = settings.load({**PRODUCTION, "PYLON_PUBLIC_URL": url}).config
    assert dict(fixed_headers(config)).get("strict-transport-security") == value
