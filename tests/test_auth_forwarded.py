"""The client's address behind proxies."""

from __future__ import annotations

import pytest

from pylon.auth.devices import device_label
from pylon.auth.forwarded import client_address, is_loopback


@pytest.mark.parametrize(("peer", "header", "hops", "client"), [
    ("1.1.1.1", None, 0, "1.1.1.1"),
    ("1.1.1.1", "9.9.9.9", 0, "1.1.1.1"),  # nobody in front: the header proves nothing
    ("10.0.0.1", "9.9.9.9", 1, "9.9.9.9"),
    ("10.0.0.1", "6.6.6.6, 9.9.9.9", 1, "9.9.9.9"),  # the client lied on the left
    ("10.0.0.1", "6.6.6.6, 9.9.9.9, 10.0.0.2", 2, "9.9.9.9"),
    ("10.0.0.1", "9.9.9.9", 2, "10.0.0.1"),  # came around a proxy: the client wrote it all
    ("10.0.0.1", "6.6.6.6, 9.9.9.9", 3, "10.0.0.1"),
    ("10.0.0.1", None, 2, "10.0.0.1"),
    ("10.0.0.1", "unknown", 1, "10.0.0.1"),
    ("10.0.0.1", "9.9.9.9:1234", 1, "9.9.9.9"),
    ("10.0.0.1", "[2001:DB8::1]:443", 1, "2001:db8::1"),
    ("10.0.0.1", "", 1, "10.0.0.1"), ("10.0.0.1", " , ", 1, "10.0.0.1"),
    ("10.0.0.1", "9.9.9.9,", 1, "10.0.0.1"), ("10.0.0.1", "9.9.9.9,,8.8.8.8", 2, "10.0.0.1"),
    ("10.0.0.1", " 9.9.9.9\t,8.8.8.8", 2, "9.9.9.9"),
    ("10.0.0.1", "9.9.9.9;8.8.8.8", 1, "10.0.0.1"),
    ("10.0.0.1", '"9.9.9.9"', 1, "10.0.0.1"), ("10.0.0.1", "for=9.9.9.9", 1, "10.0.0.1"),
    ("10.0.0.1", "9.9.9.9, ::ffff:8.8.8.8", 1, "8.8.8.8"),
    ("10.0.0.1", "2001:db8:0:0::1", 1, "2001:db8::1"),
    ("10.0.0.1", "[2001:db8::1]", 1, "2001:db8::1"),
    ("10.0.0.1", "010.1.1.1", 1, "10.0.0.1"), ("10.0.0.1", "127.1", 1, "10.0.0.1"),
    ("::ffff:1.2.3.4", None, 0, "1.2.3.4"),
    ("", None, 0, ""),
])
def test_the_address(peer: str, header: str | None, hops: int, client: str) -> None:
    assert client_address(peer, header, hops) == client


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("")


@pytest.mark.parametrize(("agent", "label"), [
    (None, ""), ("", ""), ("x", ""), ("curl/8.0", ""),
    ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) "
     "Chrome/120.0.0.0 Safari/537.36", "Chrome on macOS"),
    ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 "
     "(KHTML, like Gecko) Version/17.0 Mobile/15E148 Safari/604.1", "Safari on iOS"),
    ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:120.0) Gecko/20100101 Firefox/120.0",
     "Firefox on Windows"),
])
def test_device_labels(agent: str | None, label: str) -> None:
    assert device_label(agent) == label
