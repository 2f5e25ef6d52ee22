"""CORS and CSRF."""

from __future__ import annotations

import pytest

from pylon import config as settings
from pylon.auth.origin import Origins, cors_headers, origin_of, origins
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
    "https://app.example.com", "https://APP.example.com", "https://admin.example.com",
    "http://localhost:3000", "https://trusted.example.com",
])
def test_listed_origins_pass(origin: str) -> None:
    allowed = made(PRODUCTION, "https://trusted.example.com")
    allowed.check("POST", origin, None, has_bearer=False)
    assert origin.lower() in allowed.allowed


@pytest.mark.parametrize("origin", [
    "http://evil.example", "null", "", "https://app.example.com.evil.example",
    "http://app.example.com", "https://app.example.com:444",
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
    assert not allowed.any_origin


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


def test_in_dev_mode_every_origin_passes() -> None:
    allowed = made({"PYLON_DEV_MODE": "1", "PYLON_ADMIN_TOKEN": "x"})
    allowed.check("POST", "http://evil.example", None, has_bearer=False)
    assert allowed.any_origin


@pytest.mark.parametrize(("url", "origin"), [
    ("https://a.b/c?d#e", "https://a.b"), ("http://a:1", "http://a:1"), ("", "null"),
    ("about:blank", "null"), ("http://[::1", "null"), ("/path", "null"),
])
def test_the_origin_of_a_url(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_cors_headers_name_one_origin_and_all_we_need() -> None:
    headers = dict(cors_headers(settings.load(PRODUCTION).config))
    assert headers["access-control-allow-origin"] == "https://app.example.com"
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["vary"] == "Origin"
    assert "PUT" in headers["access-control-allow-methods"]
    assert "X-Filename" in headers["access-control-allow-headers"]
    assert "X-Pylon-Change-Seq, ETag" in headers["access-control-expose-headers"]


def test_a_star_carries_no_credentials() -> None:
    headers = dict(cors_headers(settings.load({"PYLON_DEV_MODE": "1"}).config))
    assert headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in headers
