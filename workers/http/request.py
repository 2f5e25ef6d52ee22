"""Requests: from the bytes of a connection to a WSGI environ (RFC 9112, PEP 3333).

The head is parsed by `gunicorn_h1c`; what that lets pass and we do not is refused here: bare
line feeds, folded lines, a target that is no URI, any transfer coding but `chunked`, HTTP/1.1
without one sound Host. Fields whose names hold an underscore are dropped, since their WSGI
names could not be told from those of a proxy's own fields.

A connection mostly repeats its header block. `Template` keeps the environ of the last one; as
long as the block is the same, byte for byte, `again` needs to read the request line only.

Invariant: a head is either taken whole, or refused and its connection closed. Used by
`connection`.
"""

from __future__ import annotations

import io
import re
import sys
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from gunicorn_h1c import (
    IncompleteError,
    InvalidHTTPVersion,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseError,
    parse_request,
)

from pylon import limits

CHUNKED: Final = -1
_EMPTY: Final = io.BytesIO()
_KEYS_KEPT: Final = 1_024
_LENGTH_DIGITS: Final = 18
# Printable ASCII, as RFC 3986 wants it, but for the `#` of a fragment, which is never sent.
_LINE: Final = re.compile(r'([A-Z]{3,20}) (/[!"$->@-~]*)(?:\?([!"$-~]*))? HTTP/1\.1')
_TARGET: Final = re.compile(r'[!"$-~]+')
_ABSOLUTE: Final = re.compile(r"https?://([^/?@]+)(/[^?]*)?(?:\?(.*))?", re.IGNORECASE)
_HOST: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+;=%:\-\[\]]*")

Environ = dict[str, Any]

_keys: dict[bytes, str | None] = {b"Content-Type": "CONTENT_TYPE"}


class Refused(Exception):
    """A request that is answered by the server itself; its connection is closed then."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Request:
    """A head that is complete. `length` is the body's in bytes, or CHUNKED."""

    __slots__ = ("consumed", "environ", "expects", "keep", "length", "minor")

    def __init__(
        self, environ: Environ, consumed: int, length: int, minor: int, keep: bool, expects: bool
    ) -> None:
        self.environ = environ
        self.consumed = consumed  # bytes of the input that were the head
        self.length = length
        self.minor = minor  # of HTTP/1.x
        self.keep = keep  # the connection may be used again
        self.expects = expects  # 100-continue


class Template:
    """The header block of a connection's last request, and what it meant."""

    __slots__ = ("_block", "_environ", "_expects", "_keep", "_length")

    def __init__(self, block: bytes, request: Request) -> None:
        self._block = block  # from the end of the request line
        self._environ = request.environ.copy()
        self._length = request.length
        self._keep = request.keep
        self._expects = request.expects

    def again(self, data: bytes) -> Request | None:
        """The request that `data` begins with, if its header block is the same."""
        end = data.find(b"\r\n")
        if not data.startswith(self._block, end) or end > limits.HTTP_LINE_BYTES:
            return None
        line = _LINE.fullmatch(str(data[:end], "latin-1"))
        if line is None:
            return None
        environ = self._environ.copy()
        environ["REQUEST_METHOD"], path, query = line.groups("")
        environ["PATH_INFO"] = _decoded(path) if "%" in path else path
        environ["QUERY_STRING"] = query
        return Request(
            environ, end + len(self._block), self._length, 1, self._keep, self._expects
        )


def parse(data: bytes, base: Environ) -> Request | None:
    """Read a head.

    Args:
        data: what the connection has sent, from the beginning of a request.
        base: the part of the environ that every request of the connection has.

    Returns:
        None while the head is not complete.

    Raises:
        Refused: it is none that we take, or too long.
    """
    try:
        parsed = parse_request(
            data,
            limit_request_line=limits.HTTP_LINE_BYTES,
            limit_request_fields=limits.HTTP_FIELDS,
            limit_request_field_size=limits.HTTP_FIELD_BYTES,
        )
    except IncompleteError:
        _check_beginning(data)
        return None
    except LimitRequestLine as ex:
        raise Refused(414, f"The request line exceeds {limits.HTTP_LINE_BYTES} bytes") from ex
    except LimitRequestHeaders as ex:
        raise _too_large() from ex
    except InvalidHTTPVersion as ex:
        raise Refused(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here") from ex
    except ParseError as ex:
        if data.count(b"\r\n") > limits.HTTP_FIELDS + 2:
            raise _too_large() from ex
        raise Refused(400, str(ex)) from ex
    consumed: int = parsed["consumed"]
    if consumed > limits.HTTP_HEAD_BYTES:
        raise _too_large()
    head = data[:consumed]
    lines = head.count(b"\r\n")
    if head.count(b"\n") != lines or head.count(b"\r") != lines:
        raise Refused(400, "A line does not end with CR LF")
    environ = base.copy()
    _add_fields(environ, parsed["headers"])
    minor: int = parsed["minor_version"]
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if minor else "HTTP/1.0"
    method = parsed["method"].decode("latin-1")
    environ["REQUEST_METHOD"] = method
    _add_target(environ, method, parsed["path"].decode("latin-1"))
    # The parser takes more than one space between the parts of the line.
    if not head.lstrip(b"\r\n").startswith(b"%b %b HTTP/" % (parsed["method"], parsed["path"])):
        raise Refused(400, "Invalid request line")
    host = environ.get("HTTP_HOST")
    if (host is None and minor) or (host is not None and not _HOST.fullmatch(host)):
        raise Refused(400, "HTTP/1.1 needs one valid Host field")
    named = environ.get("HTTP_CONNECTION", "").lower()
    tokens = {token.strip() for token in named.split(",")} if named else ()
    return Request(
        environ, consumed, _length(environ), minor,
        keep="close" not in tokens and (bool(minor) or "keep-alive" in tokens),
        expects=bool(minor) and _expects(environ),
    )


def template_of(data: bytes, request: Request) -> Template | None:
    """What is worth to be kept of the request that `data` begins with."""
    end = data.find(b"\r\n")
    # Any other line may have changed what the fields mean (an absolute target, HTTP/1.0).
    if _LINE.fullmatch(str(data[:end], "latin-1")) is None:
        return None
    return Template(data[end:request.consumed], request)


def base_environ(server: tuple[str, int], client: tuple[str, int], workers: int) -> Environ:
    """What is the same for every request of a connection.

    Args:
        workers: how many processes serve.
    """
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.input": _EMPTY,
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": workers > 1,
        "wsgi.run_once": False,
        "SCRIPT_NAME": "",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "pylon.head": b"",  # header lines of the answer that the app has ready as bytes
        "pylon.body": b"",  # the request's body, which has arrived as a whole
    }


def _add_fields(environ: Environ, fields: list[tuple[bytes, bytes]]) -> None:
    for name, value in fields:
        if not name:
            raise Refused(400, "Folded header lines are obsolete")
        try:
            key = _keys[name]
        except KeyError:
            key = _remember_key(name)
        if key is None:
            continue
        text = value.decode("latin-1")
        if key in environ:
            separator = "; " if key == "HTTP_COOKIE" else ","
            environ[key] = f"{environ[key]}{separator}{text}"
        else:
            environ[key] = text


def _remember_key(name: bytes) -> str | None:
    if len(_keys) >= _KEYS_KEPT:
        _keys.clear()  # somebody makes names up
    upper = name.decode("latin-1").upper()
    key = None
    if "_" not in upper:
        key = upper.replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
    _keys[name] = key
    return key


def _add_target(environ: Environ, method: str, target: str) -> None:
    if method == "CONNECT":
        raise Refused(405, "This is no proxy")
    if _TARGET.fullmatch(target) is None:
        raise Refused(400, "The request target holds a character that must be percent-encoded")
    path, _, query = target.partition("?")
    if not target.startswith("/") and target != "*":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise Refused(400, "The request target is neither a path nor an http URL")
        # RFC 9112 §3.2.2: what the target says counts, not the Host field.
        environ["HTTP_HOST"], path, query = absolute.groups("")
        path = path or "/"
    environ["PATH_INFO"] = _decoded(path) if "%" in path else path
    environ["QUERY_STRING"] = query


def _length(environ: Environ) -> int:
    coding = environ.get("HTTP_TRANSFER_ENCODING")
    declared: str | None = environ.get("CONTENT_LENGTH")
    if coding is not None:
        if declared is not None:
            raise Refused(400, "Content-Length and Transfer-Encoding exclude each other")
        if coding.lower() != "chunked":
            raise Refused(501, "The only transfer coding that is understood is chunked")
        if environ["SERVER_PROTOCOL"] != "HTTP/1.1":
            raise Refused(400, "HTTP/1.0 has no transfer codings")
        return CHUNKED
    if declared is None:
        return 0
    if not (declared.isascii() and declared.isdigit() and len(declared) <= _LENGTH_DIGITS):
        raise Refused(400, "Content-Length is not a number of bytes")
    return int(declared)


def _expects(environ: Environ) -> bool:
    expected = environ.get("HTTP_EXPECT")
    if expected is None:
        return False
    if expected.lower() != "100-continue":
        raise Refused(417, "The only expectation that is understood is 100-continue")
    return True


def _check_beginning(data: bytes) -> None:
    """Refuse at once what cannot become a head, however long one waits."""
    if data.find(b"\r\n", 2) < 0 and len(data) > limits.HTTP_LINE_BYTES + 2:
        raise Refused(414, f"The request line exceeds {limits.HTTP_LINE_BYTES} bytes")
    if len(data) > limits.HTTP_HEAD_BYTES:
        raise _too_large()
    if data.count(b"\n") != data.count(b"\r\n"):
        raise Refused(400, "A line does not end with CR LF")


def _too_large() -> Refused:
    return Refused(
        431,
        f"At most {limits.HTTP_FIELDS} header fields of {limits.HTTP_FIELD_BYTES} bytes each "
        f"and {limits.HTTP_HEAD_BYTES} bytes together are taken",
    )


def _decoded(path: str) -> str:
    return unquote_to_bytes(path).decode("latin-1")
