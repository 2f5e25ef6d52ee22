"""Proxies: probes the URL that clients use, through whatever stands in front of the server.

The probes are what clients do: a request, a WebSocket, an event stream. The answers of Pylon show
whether a proxy has dropped the upgrade, gathered the stream, or hidden what it should pass on. The
probes send the admin token, if there is one, to the given URL only.

Bound: each probe waits `_TIMEOUT_S`; an open socket is watched as long as the operator says. Called
by `pylonctl doctor --url`.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from pylon.config import Config
from pylon.doctor.findings import ERROR, OK, WARNING, Finding

_TIMEOUT_S: Final = 10.0
_STREAM_S: Final = 3.0  # the first bytes of an event stream come at once
_CLOCK_S: Final = 5.0
_DAY_S: Final = 86_400
_CERTIFICATE_DAYS: Final = 14
_HEAD_BYTES_MAX: Final = 65_536
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class _Answer(msgspec.Struct, frozen=True):
    """The head of a response, and the bytes that came behind it."""

    status: int
    headers: dict[str, str]
    rest: bytes


class _Probe:
    """One connection to a URL."""

    def __init__(self, url: str) -> None:
        """Raises: OSError (also ssl.SSLError): it cannot be opened."""
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme in ("https", "wss")
        port = parts.port or _PORTS[parts.scheme]
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.authority = parts.netloc.rpartition("@")[2]
        sock: socket.socket = socket.create_connection((host, port), timeout=_TIMEOUT_S)
        self.certificate_end_s: float | None = None
        if secure:
            try:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            except OSError:
                sock.close()
                raise
            end = (sock.getpeercert() or {}).get("notAfter")
            if isinstance(end, str):
                self.certificate_end_s = ssl.cert_time_to_seconds(end)
        self.sock = sock

    def __enter__(self) -> _Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, headers: dict[str, str], path: str | None = None) -> _Answer:
        """Send a GET request and read the head of the answer.

        Raises: OSError, ValueError: no HTTP came.
        """
        lines = [f"GET {path or self.path} HTTP/1.1", f"Host: {self.authority}",
                 "User-Agent: pylonctl-doctor", *(f"{k}: {v}" for k, v in headers.items())]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65_536)
            if not piece or len(data) > _HEAD_BYTES_MAX:
                raise ValueError("the connection was closed without an HTTP answer")
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *others = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in others)
        return _Answer(int(first.split()[1]), {k.strip().lower(): v.strip() for k, _, v in pairs},
                       rest)

    def read_all(self, answer: _Answer) -> bytes:
        """Return the body of an answer after which the server closes."""
        data = answer.rest
        while piece := self.sock.recv(65_536):
            data += piece
        if answer.headers.get("transfer-encoding", "").lower() == "chunked":
            data = _join_chunks(data)
        return data

    def has_input(self, wait_s: float) -> bool:
        """Whether bytes, or the end, come within the time."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return True
        return bool(select.select([self.sock], [], [], wait_s)[0])


def check_proxies(config: Config, url: str, watch_s: float) -> Iterator[Finding]:
    """Probe the public URL of the HTTP port, and the URLs that the server gives to clients.

    Args:
        watch_s: how long to keep a socket and a stream open, to find timeouts of proxies.
    """
    url = url.rstrip("/")
    try:
        with _Probe(url + "/api/client-config") as probe:
            began_s = time.time()
            answer = probe.ask({"Connection": "close"})
            body = probe.read_all(answer)
            yield from _judge_certificate(probe, began_s)
        urls: Any = json.loads(body)["urls"]
    except (OSError, ValueError, KeyError, TypeError) as ex:
        yield Finding(
            ERROR, "proxy.http", f"GET {url}/api/client-config: {_text(ex)}",
            "clients do not reach the server by this URL",
            "look whether name, port, certificate and the proxy's upstream are right; the "
            "proxy's error log says more",
        )
        return
    yield Finding(OK, "proxy.http", f"{url} answers")
    yield from _judge_head(config, answer, began_s)
    yield from _judge_urls(url, urls)
    headers = {"Authorization": f"Bearer {config.admin_token}"} if config.admin_token else {}
    yield from _check_socket(url + "/api/sync/ws", headers, watch_s)
    if urls.get("sse"):
        yield from _check_stream(_inside(url, urls["sse"]), headers, watch_s)


def _judge_certificate(probe: _Probe, now_s: float) -> Iterator[Finding]:
    if probe.certificate_end_s is None:
        return
    days = (probe.certificate_end_s - now_s) / _DAY_S
    if days < _CERTIFICATE_DAYS:
        yield Finding(
            WARNING, "proxy.certificate", f"the certificate ends in {days:.0f} days",
            "then every client refuses the connection",
            "see why it is not renewed (systemctl status certbot.timer; Caddy's log)",
        )
    else:
        yield Finding(OK, "proxy.certificate", f"the certificate is good for {days:.0f} days")


def _judge_head(config: Config, answer: _Answer, now_s: float) -> Iterator[Finding]:
    proxy = answer.headers.get("via") or answer.headers.get("server")
    if proxy and not config.trust_proxy_hops:
        yield Finding(
            WARNING, "proxy.forwarded",
            f"a proxy answers ({proxy}), and PYLON_TRUST_PROXY_HOPS is 0",
            "all clients count as one address: they share its rates and its "
            "PYLON_SOCKETS_PER_IP",
            "set PYLON_TRUST_PROXY_HOPS to the number of proxies; each must set X-Forwarded-For",
        )
    if "date" in answer.headers:
        from email.utils import parsedate_to_datetime

        ahead_s = parsedate_to_datetime(answer.headers["date"]).timestamp() - now_s
        if abs(ahead_s) > _CLOCK_S:
            yield Finding(
                WARNING, "proxy.clock",
                f"the clock behind the URL differs by {ahead_s:+.0f} s from this machine's",
                "sessions and codes end early or late", "set both clocks (timedatectl)",
            )


def _judge_urls(url: str, urls: dict[str, Any]) -> Iterator[Finding]:
    """The URLs that clients get must lead to the same host, with TLS if they came with TLS."""
    wanted = urlsplit(url)
    wrong = []
    for role, given in urls.items():
        if given is None:
            continue
        found = urlsplit(given)
        if found.hostname != wanted.hostname:
            wrong.append(f"{role} at {given}, another host: the proxy must pass on Host")
        elif (wanted.scheme == "https") != (found.scheme in ("https", "wss")):
            wrong.append(f"{role} at {given} without TLS: the proxy must set X-Forwarded-Proto, "
                         "and PYLON_TRUST_PROXY_HOPS must count it")
    for text in wrong:
        yield Finding(
            WARNING, "proxy.urls", f"clients are sent to {text}",
            "browsers refuse it, or it leads nowhere",
            "pass on Host and X-Forwarded-Proto, or set PYLON_WS_URL, PYLON_SSE_URL and "
            "PYLON_SHARD_URL",
        )
    if not wrong:
        yield Finding(OK, "proxy.urls", "the URLs for clients have the host and scheme of this one")


def _check_socket(url: str, headers: dict[str, str], watch_s: float) -> Iterator[Finding]:
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": key, **headers}
    try:
        with _Probe(url) as probe:
            answer = probe.ask(upgrade)
            if answer.status == 101:
                yield Finding(OK, "proxy.websocket", f"{url} upgrades to a WebSocket")
                yield from _watch(probe, watch_s, "websocket")
                return
            shown = f"{url} answers {answer.status} to an upgrade"
    except (OSError, ValueError) as ex:
        shown = f"{url}: {_text(ex)}"
    yield Finding(
        ERROR, "proxy.websocket", shown, "no client gets changes over WebSocket",
        "pass on Upgrade and Connection: nginx needs proxy_http_version 1.1 and both "
        "proxy_set_header lines (nginx/pylon.conf has them)",
    )


def _check_stream(url: str, headers: dict[str, str], watch_s: float) -> Iterator[Finding]:
    try:
        with _Probe(url) as probe:
            answer = probe.ask({"Accept": "text/event-stream", **headers})
            if answer.status != 200:
                yield Finding(
                    ERROR, "proxy.stream", f"{url} answers {answer.status} to an event stream",
                    "no client gets changes by SSE", "route the path to the SSE port",
                )
                return
            if not answer.rest and not probe.has_input(_STREAM_S):
                yield _gathered(f"{url}: the first event did not come within {_STREAM_S:g} s")
                return
            yield Finding(OK, "proxy.stream", f"{url} streams events as they come")
            yield from _watch(probe, watch_s, "stream")
    except (OSError, ValueError) as ex:
        yield Finding(
            ERROR, "proxy.stream", f"{url}: {_text(ex)}", "no client gets changes by SSE",
            "route the path to the SSE port; an answer must come at once, so no buffering",
        )


def _gathered(what: str) -> Finding:
    return Finding(
        ERROR, "proxy.stream", what,
        "the proxy gathers the stream, and changes arrive minutes late",
        "switch buffering off: proxy_buffering off in nginx, flush_interval -1 in Caddy; no gzip "
        "on this path",
    )


def _watch(probe: _Probe, watch_s: float, name: str) -> Iterator[Finding]:
    """Keep the connection open, and find out whether somebody closes it."""
    began_s = time.monotonic()
    while (left_s := began_s + watch_s - time.monotonic()) > 0:
        if probe.has_input(left_s) and not probe.sock.recv(65_536):
            yield Finding(
                WARNING, "proxy.timeout",
                f"the {name} was cut after {time.monotonic() - began_s:.0f} s",
                "clients connect again and again, and miss nothing but time",
                "raise the proxy's read timeout above 60 s (proxy_read_timeout 1h in nginx)",
            )
            return
    if watch_s > 0:
        yield Finding(OK, "proxy.timeout", f"the {name} stayed open for {watch_s:g} s")


def _inside(url: str, given: str) -> str:
    """Return the URL that clients get, reached by the host of the given one: a server that knows
    no public URL may name a port that only this machine has."""
    wanted, found = urlsplit(url), urlsplit(given)
    if found.hostname == wanted.hostname:
        return given
    return f"{wanted.scheme}://{wanted.netloc}{found.path}"


def _join_chunks(data: bytes) -> bytes:
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size.partition(b";")[0] or b"0", 16)
        if not length:
            break
        out, data = out + data[:length], data[length + 2:]
    return out


def _text(ex: Exception) -> str:
    if isinstance(ex, TimeoutError):
        return f"no answer within {_TIMEOUT_S:g} s"
    return str(getattr(ex, "strerror", None) or ex or type(ex).__name__)
