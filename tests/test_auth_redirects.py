"""pylon.auth.redirects: pages that a sign-in may return to, and every trick (attack 32)."""

from __future__ import annotations

import pytest

from pylon.auth.origin import Origins
from pylon.auth.redirects import check_redirect, with_parameters
from pylon.errors import UntrustedRedirect

ORIGINS = Origins(frozenset({"https://ok.example", "https://ok.example:8443"}))
DEV = Origins(frozenset({"https://ok.example"}), any_loopback=True)


@pytest.mark.parametrize("url", [
    "/", "/done", "/done?a=1&b=%20", "/a//b", "/@x", "/a:b", "/.//evil.example",
    "https://ok.example", "https://ok.example/", "https://ok.example/x?next=https://evil.example",
    "https://OK.example/x", "HTTPS://ok.example/", "https://ok.example:443/x",
    "https://ok.example:8443/x", "/%2fevil.example", "https://ok.example/%5cevil",
])
def test_paths_and_trusted_origins(url: str) -> None:
    assert check_redirect(url, ORIGINS) == url


@pytest.mark.parametrize("url", [
    "", " ", "//evil.example", "///evil.example", "/\\evil.example", "\\/evil.example",
    "\\\\evil.example", "/\t/evil.example", "/\n/evil.example", "\t//evil.example",
    " https://ok.example", "https://ok.example@evil.example/", "https://ok.example:x@evil.example",
    "https://evil.example\\@ok.example/", "https://ok.example.evil.example/",
    "https://evil.example/ok.example", "https://evilok.example/", "https://ok.example:444/",
    "http://ok.example/", "https:ok.example", "https:/ok.example", "https:///ok.example",
    "javascript:alert(1)", "JavaScript:alert(1)//ok.example", "data:text/html,x",
    "vbscript:x", "file:///etc/passwd", "ok.example", "done", "?x", "#x",
    "https://ok.example/#x", "/done#access_token=x", "/%0d%0aSet-Cookie:a=b", "/%0D%0Ax",
    "/\r\nSet-Cookie: a=b", "/%00", "/\x00", "/a%7f", "https://ok.example/\u2028", "/ü",
    "https://ok。example/", "https://ok.example\u3002evil.example/", "https://[::1/",
    "https://ok.example:port/", "http://localhost:3000/", "http://127.0.0.1/", "/" + "a" * 3_000,
    "https://ok.example%2eevil.example/", "https://ok.example%00.evil.example/", "/<script>",
])
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(UntrustedRedirect) as refused:
        check_redirect(url, ORIGINS, "error_callback")
    assert '"error_callback"' in refused.value.message


@pytest.mark.parametrize("url", [
    "http://localhost:3000/x", "http://127.0.0.1:5173", "http://[::1]:8000/", "http://app.localhost/",
])
def test_loopback_is_trusted_in_dev_mode_only(url: str) -> None:
    assert check_redirect(url, DEV) == url
    with pytest.raises(UntrustedRedirect):
        check_redirect(url, ORIGINS)
    for trick in ("http://localhost.evil.example/", "http://127.0.0.1.evil.example/",
                  "http://localhost@evil.example/", "http://evil.example/?localhost"):
        with pytest.raises(UntrustedRedirect):
            check_redirect(trick, DEV)


def test_parameters_are_added_and_encoded() -> None:
    assert with_parameters("/x", {}) == "/x"
    assert with_parameters("/x", {"oauth_error": "A B&c"}) == "/x?oauth_error=A+B%26c"
    assert with_parameters("https://ok.example/x?y=1", {"z": "ü"}) == (
        "https://ok.example/x?y=1&z=%C3%BC"
    )
