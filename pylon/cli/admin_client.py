"""Admin client: sends HTTP requests to the running server with the admin token.

It keeps one connection to the HTTP port of this machine. The server treats its writes as those of
any client: it checks the values, logs the changes and publishes them.

Invariants: an error response of the server is raised as the `PylonError` that the server raised.
Only `send` tries again, because its idempotency key makes a repetition harmless. A request waits
at most `_TIMEOUT_S` for the next bytes. Called by the verbs `seed`, `data`, `export`,
`import` and `shards`.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from http.client import HTTPMessage
from types import TracebackType
from typing import Any, Final

import orjson

from pylon.cli.running import require_running
from pylon.config import Config
from pylon.errors import AuthRequired, NotRunning, PylonError, Unavailable

_TIMEOUT_S: Final = 120.0
_TRIES: Final = 5
_PAUSE_S: Final = 0.2  # after the first failed try; each further pause is twice as long
_PIECE_BYTES: Final = 65_536
_REPLAYED: Final = "Idempotency-Replayed"
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # nosec B104 # it connects, and binds nothing


class AdminClient:
    """One connection to the server. A context manager; not thread-safe."""

    def __init__(self, config: Config, token: str | None, role: str = "http") -> None:
        """
        Args:
            token: replaces PYLON_ADMIN_TOKEN.
            role: whose port it connects to.

        Raises:
            NotRunning: no server runs on this data directory.
            AuthRequired: neither the argument nor the setting has a token.
        """
        port = require_running(config).ports.get(role)
        if port is None:
            raise NotRunning(
                f"the node of this data directory does not have the role {role} (PYLON_ROLES)",
                hint=f"run the command on a node with the role {role}",
            )
        token = token or config.admin_token
        if not token:
            raise AuthRequired("no token: set PYLON_ADMIN_TOKEN, or give --token")
        self._conn = http.client.HTTPConnection(
            _ANY.get(config.bind, config.bind), port, timeout=_TIMEOUT_S
        )
        self._headers = {"Authorization": f"Bearer {token}"}

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._conn.close()

    def send(self, path: str, body: bytes, key: str) -> tuple[Any, bool]:
        """Post JSON with an Idempotency-Key. Tries again after errors that may pass.

        Returns: the decoded response, and whether the server repeated an earlier response.

        Raises:
            PylonError: the error that the server returned.
            Unavailable: the server cannot be reached.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        pause_s = _PAUSE_S
        for tries_left in reversed(range(_TRIES)):
            try:
                answer = self._call("POST", path, body, headers)
                return orjson.loads(answer.read()), answer.headers[_REPLAYED] == "true"
            except PylonError as error:
                if not error.retryable or not tries_left:
                    raise
            except (OSError, http.client.HTTPException) as ex:
                self._conn.close()
                if not tries_left:
                    raise Unavailable(f"the server's answer was cut off: {ex!r}") from ex
            time.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("the last try returns or raises")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request and return the decoded response. Raises: as `request_with_headers`."""
        return self.request_with_headers(method, path, body)[0]

    def request_with_headers(
        self, method: str, path: str, body: Any = None
    ) -> tuple[Any, HTTPMessage]:
        """Send one request and return the decoded response, and its headers.

        Raises:
            PylonError: the error that the server returned.
            Unavailable: the server cannot be reached.
        """
        sent = None if body is None else orjson.dumps(body)
        answer = self._call(method, path, sent, {"Content-Type": "application/json"})
        try:
            return orjson.loads(answer.read()), answer.headers
        except (OSError, http.client.HTTPException) as ex:
            self._conn.close()
            raise Unavailable(f"the server's answer was cut off: {ex!r}") from ex

    def stream_lines(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], *,
        is_endless: bool = False,
    ) -> Iterator[bytes]:
        """Yield the lines of a streamed response as they arrive, without line ends.

        Args:
            is_endless: the response is a stream of events: a line is yielded at once, and an end
                without an error is a cut.

        Raises:
            PylonError: the error that the server returned, before the first line.
            Unavailable: the server cannot be reached, or the response was cut off.
        """
        answer = self._call(method, path, body, headers)
        rest = b""
        try:
            # `readline` would return normally where the connection was cut.
            read = answer.read1 if is_endless else answer.read
            while piece := read(_PIECE_BYTES):
                *whole, rest = (rest + piece).split(b"\n")
                yield from whole
        except (OSError, http.client.HTTPException) as ex:
            self._conn.close()
            raise Unavailable(f"the server's answer was cut off: {ex!r}") from ex
        if is_endless:
            raise Unavailable("the server ended the stream")
        if rest:
            raise Unavailable("the server's answer was cut off in a line")

    def _call(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        try:
            self._conn.request(method, path, body, {**self._headers, **headers})
            answer = self._conn.getresponse()
            if answer.status < 400:
                return answer
            raw = answer.read()
        except (OSError, http.client.HTTPException) as ex:
            self._conn.close()
            raise Unavailable(f"the server does not answer: {ex!r}") from ex
        raise _refusal(answer.status, raw)


def _refusal(status: int, raw: bytes) -> PylonError:
    try:
        error = dict(orjson.loads(raw)["error"])
        code, message = str(error.pop("code")), str(error.pop("message"))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Unavailable(f"the server answered {status} without saying why")
    hint = error.pop("hint", None)
    return PylonError.from_wire(code, message, hint, {str(k): v for k, v in error.items()})
