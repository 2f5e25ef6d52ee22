"""Responses: from what the app returns to bytes (RFC 9112 §4 to §7, PEP 3333).

Status lines with the date are made once a second. Header lines whose values repeat are made once
and kept. An app may have header lines ready as bytes: it puts them into ``environ["pylon.head"]``.

Invariants: no value with a control character reaches the wire. This server alone writes hop-by-hop
fields and the framing (Content-Length, Transfer-Encoding). Used by `wsgi`, `sending` and
`connection`.
"""

from __future__ import annotations

import re
import time
from typing import Final

from pylon.errors import Unavailable
from workers.net.head import RequestError
from workers.net.response import error_response, request_error_body, status_text

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE: Final = b"connection: close\r\n"
KEEP: Final = b"connection: keep-alive\r\n"  # for clients of HTTP/1.0 only
CHUNKED: Final = b"transfer-encoding: chunked\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)
_LINES_KEPT: Final = 1_024
_FRAMING: Final = frozenset({
    "connection", "content-length", "keep-alive", "proxy-authenticate", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade", "date",
})
_REPEATED: Final = frozenset({"content-type", "Content-Type", "cache-control", "vary", "allow"})
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS: Final = re.compile(r"[1-9]\d\d [\t\x20-\x7e\x80-\xff]*", re.ASCII)

Headers = list[tuple[str, str]]

_lines: dict[tuple[str, str], bytes] = {}  # of headers whose values repeat
_beginnings: dict[str, bytes] = {}  # by name; empty for fields that the app may not set


class Prefixes:
    """The status line and the date field of a response, encoded once a second for each status."""

    __slots__ = ("_by_status", "_second")

    def __init__(self) -> None:
        self._by_status: dict[str, bytes] = {}
        self._second = 0

    def tick(self) -> None:
        """Drop the lines if the second has changed. Call it often."""
        # The date field has the machine's time, not that of the app's clock.
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._by_status.clear()

    def encode_for(self, status: str) -> bytes:
        """Return the lines for a status (code and phrase, as start_response gets them)."""
        made = self._by_status.get(status)
        if made is None:
            if _STATUS.fullmatch(status) is None:
                raise ValueError(f"invalid status {status!r}")
            text = f"HTTP/1.1 {status}\r\ndate: {http_date(self._second)}\r\n"
            made = text.encode("latin-1")
            self._by_status[status] = made
        return made


def http_date(second: int) -> str:
    """Return Unix seconds in the form of RFC 9110 §5.6.7, whatever the locale."""
    at = time.gmtime(second)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04d} "
        f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} GMT"
    )


def lines(headers: Headers) -> bytes:
    """Return the header lines that the app may set itself.

    Raises:
        ValueError: a name or a value would break the response.
    """
    out = b""
    for pair in headers:
        line = _lines.get(pair)
        if line is not None:
            out += line
        elif pair[0] not in _FRAMING:  # PERF: falcon sets Content-Length each time
            out += _line(pair)
    return out


def declared(headers: Headers, name: str) -> str | None:
    """Return the value of a header that the app set; names have no case."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


def length(size_bytes: int) -> bytes:
    """Return the header line with the length of the body."""
    return b"content-length: %d\r\n" % size_bytes


def chunk(part: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(part), part)


def refusal(
    prefixes: Prefixes, refused: RequestError, lines_of_all: bytes, *, with_body: bool = True
) -> bytes:
    """Return the server's own response to a request that it refuses; the connection ends then.

    Args:
        lines_of_all: header lines of every response, so that a page can read this one too.
    """
    return error_response(
        prefixes.encode_for(status_text(refused.status)), request_error_body(refused), lines_of_all,
        retry_after_s=1 if refused.status == Unavailable.status else None, with_body=with_body,
        lower_case=True,
    )


def _line(pair: tuple[str, str]) -> bytes:
    name, value = pair
    beginning = _beginnings.get(name)
    if beginning is None:
        beginning = _remember_beginning(name)
    if not beginning:
        return b""
    # PERF: this recognises plain text, which most values are, sooner than the pattern does.
    if not (value.isascii() and value.isprintable()) and _VALUE.fullmatch(value) is None:
        raise ValueError(f"invalid value of header {name}: {value!r}")
    line = b"%b%b\r\n" % (beginning, value.encode("latin-1"))
    if name in _REPEATED:
        if len(_lines) >= _LINES_KEPT:
            _lines.clear()
        _lines[pair] = line
    return line


def _remember_beginning(name: str) -> bytes:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"invalid header name {name!r}")
    if len(_beginnings) >= _LINES_KEPT:
        _beginnings.clear()
    made = b"" if name.lower() in _FRAMING else f"{name}: ".encode("latin-1")
    _beginnings[name] = made
    return made
