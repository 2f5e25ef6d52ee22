"""C23: URLs of sign-in providers that lead into the server's own network (identity.md, attack 23).

A hostile issuer, or an operator's mistake, must not make the server reach loopback, the metadata
service of a cloud, or a private host; nor hold it with endless or trickled answers.
"""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler

import gevent
import pytest

from pylon import limits
from tests.support.issuers import Issuer, raw_answer, serve_issuer
from workers.identity.providers.addresses import is_public
from workers.identity.providers.fetch import Fetcher, FetchFailed, make_tls_context

PUBLIC = "93.184.215.14"
TLS = make_tls_context()  # reading the authorities takes 0.1 s


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serve_issuer() as made:
        yield made


def fixed(*addresses: str) -> Fetcher:
    """A fetcher of production, whose resolver has these addresses for every name."""
    return Fetcher(
        allows_private=False, tls=TLS, resolve=lambda host, port: list(addresses), timeout_s=2
    )


def local(timeout_s: float = limits.PROVIDER_REQUEST_S) -> Fetcher:
    """A fetcher of dev mode, which reaches the issuers of these tests."""
    return Fetcher(allows_private=True, tls=TLS, timeout_s=timeout_s)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254",
    "ff02::1", "fec0::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::", "not an address", "",
])
def test_an_address_that_is_not_public_is_never_connected_to(address: str) -> None:
    assert not is_public(address)
    for listed in ((address,), (PUBLIC, address), (address, PUBLIC)):
        with pytest.raises(FetchFailed, match="not public"):
            fixed(*listed).fetch("https://id.example/.well-known/openid-configuration")


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700::1111"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", [
    "https://127.0.0.1/", "https://[::1]/", "https://localhost/", "https://2130706433/",
    "https://0x7f.1/", "https://017700000001/", "https://127.1/", "https://[::ffff:7f00:1]/",
    "https://0/",
])
def test_each_notation_of_loopback_is_refused(url: str) -> None:
    with pytest.raises(FetchFailed):
        Fetcher(allows_private=False, tls=TLS, timeout_s=2).fetch(url)


@pytest.mark.parametrize("url", [
    "http://id.example/", "ftp://id.example/", "file:///etc/passwd", "gopher://id.example/",
    "//id.example/", "id.example", "", "https://", "https:///x", "https://user@id.example/",
    "https://user:pw@id.example/", "https://id.example:0/", "https://id.example:99999/",
    "https://id.example/#x", "https://id.example\\@evil.example/", "https://id.example/ x",
    "https://id.example/\r\nX: 1", "https://ïd.example/", "https://[::1/",
])
def test_no_other_url_is_fetched_in_production(url: str) -> None:
    with pytest.raises(FetchFailed):
        fixed(PUBLIC).fetch(url)


def test_a_name_is_resolved_once_and_the_checked_address_is_used(issuer: Issuer) -> None:
    """DNS rebinding: whatever the name resolves to a moment later does not matter."""
    port = int(issuer.url.rsplit(":", 1)[1])
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        assert len(asked) == 1, "it resolved again"
        return ["127.0.0.1"]

    fetcher = Fetcher(allows_private=True, tls=TLS, resolve=resolve)
    response = fetcher.fetch(f"http://rebinding.invalid:{port}/jwks")
    assert response.status == 200 and asked == ["rebinding.invalid"]
    assert issuer.seen[-1].headers["host"] == f"rebinding.invalid:{port}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(issuer: Issuer, status: int) -> None:
    issuer.answers["/jwks"] = raw_answer(b"", status, Location=f"{issuer.url}/secret")
    with pytest.raises(FetchFailed, match="redirect"):
        local().fetch(f"{issuer.url}/jwks")
    assert issuer.paths() == ["/jwks"]


@pytest.mark.parametrize("announced", [True, False])
def test_ten_gigabytes_are_cut(issuer: Issuer, announced: bool) -> None:
    sent = [0]

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if announced:
            handler.send_header("content-length", str(10 * 1024**3))
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65_536)
            sent[0] += 65_536

    issuer.answers["/jwks"] = flood
    with pytest.raises(FetchFailed, match="more than"):
        local().fetch(f"{issuer.url}/jwks")
    assert sent[0] < 32 * limits.PROVIDER_BODY_BYTES  # the rest of it was in the kernel's buffers


def test_a_compressed_answer_is_not_unpacked(issuer: Issuer) -> None:
    body = gzip.compress(b"{" + b" " * 50_000_000 + b"}")
    issuer.answers["/jwks"] = raw_answer(body, 200, "application/json", **{
        "content-encoding": "gzip"
    })
    response = local().fetch(f"{issuer.url}/jwks")
    assert len(response.body) == len(body)
    with pytest.raises(FetchFailed, match="no JSON"):
        response.json_object()


@pytest.mark.parametrize("part", ["nothing", "head", "body"])
def test_a_trickle_is_cut_in_time(issuer: Issuer, part: str) -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        if part == "head":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        elif part == "body":
            handler.send_response(200)
            handler.end_headers()
        while True:
            time.sleep(0.05)
            if part != "nothing":
                handler.wfile.write(b"x")
                handler.wfile.flush()
            elif stopped:
                return

    stopped: list[bool] = []
    issuer.answers["/jwks"] = trickle
    began = time.monotonic()
    with pytest.raises(FetchFailed, match="took longer"):
        local(0.5).fetch(f"{issuer.url}/jwks")
    stopped.append(True)
    assert time.monotonic() - began < 5


def test_a_host_that_does_not_answer_is_given_up_in_time() -> None:
    with closing(socket.socket()) as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(FetchFailed):
            local(0.5).fetch(f"http://127.0.0.1:{port}/")
        assert time.monotonic() - began < 5


def test_a_certificate_counts_for_the_name_and_not_for_the_address(issuer: Issuer) -> None:
    """A server without TLS, or with an unknown authority, gets no request."""
    port = int(issuer.url.rsplit(":", 1)[1])
    with pytest.raises(FetchFailed):
        local(2).fetch(f"https://127.0.0.1:{port}/jwks")
    assert issuer.seen == []


def test_no_proxy_of_the_environment_is_used(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert local().fetch(f"{issuer.url}/jwks").status == 200


def test_other_greenlets_go_on_while_a_provider_is_slow(issuer: Issuer) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        raw_answer(b"{}", 200, "application/json")(handler)

    issuer.answers["/jwks"] = slow
    beats: list[float] = []

    def beat() -> None:
        while True:
            beats.append(time.monotonic())
            gevent.sleep(0.01)

    beating = gevent.spawn(beat)
    local().fetch(f"{issuer.url}/jwks")
    beating.kill()
    assert len(beats) > 10


def test_no_text_of_an_error_has_what_a_url_carries(issuer: Issuer) -> None:
    for url in (
        "http://127.0.0.1:1/?code=c0de", f"{issuer.url}/missing\x00?code=c0de",
        "https://user:c0de@id.example/", "http://c0de.invalid./",
    ):
        with pytest.raises(FetchFailed) as failed:
            local(2).fetch(url)
        assert "code=" not in str(failed.value) and "user" not in str(failed.value)
