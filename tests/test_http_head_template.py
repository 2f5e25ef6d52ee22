"""workers.http.request: the environ of requests whose head repeats that of one before."""

from __future__ import annotations

from typing import Any

from workers.http.request import HeadTemplate, base_environ, make_head_template, parse

BASE = base_environ(("127.0.0.1", 80), ("127.0.0.2", 4_000), 1)


def head(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: h\r\nX: 1\r\n\r\n".encode()


def template_of(path: str) -> HeadTemplate:
    data = head(path)
    request = parse(data, BASE)
    assert request is not None
    template = make_head_template(data, request)
    assert template is not None
    return template


def repeated(template: HeadTemplate, path: str) -> dict[str, Any]:
    request = template.parse_repeat(head(path) + b"more")
    assert request is not None
    assert request.consumed == len(head(path))
    return request.environ


def test_a_head_that_repeats_has_the_environ_that_parsing_gives() -> None:
    template = template_of("/a%2Fb?q=1")
    for path in ("/a%2Fb?q=1", "/c?q=2", "/a%2Fb?q=1", "/d%20e", "/"):
        parsed = parse(head(path), BASE)
        assert parsed is not None
        assert repeated(template, path) == parsed.environ


def test_requests_share_no_environ() -> None:
    template = template_of("/a")
    repeated(template, "/a")["pylon.caller"] = "someone"
    assert "pylon.caller" not in repeated(template, "/a")
    assert "pylon.caller" not in repeated(template, "/b")


def test_another_header_line_is_no_repeat() -> None:
    data = b"GET /a HTTP/1.1\r\nHost: h\r\nX: 2\r\n\r\n"
    assert template_of("/a").parse_repeat(data) is None
