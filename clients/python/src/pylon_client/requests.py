"""Requests: headers, retries, the token and its refresh, errors.

A request is tried again after connection errors, after 408, 425, 429 and 5xx (not 501), and after
any answer with ``Retry-After``. The pauses double from 0.5 s to 8 s with full jitter;
``Retry-After`` replaces them, and ends the tries where it is above a minute. A request that must
not happen twice is tried again only if the server has not seen it, or has refused it before doing
anything (429, 503). Writes of rows carry an ``Idempotency-Key``, so they may be repeated.

A token from a function of the application is asked for once more after a 401. A session token with
a known end is refreshed when a tenth of its life, at most an hour, is left.

Invariant: a token is never logged. Called by all operations of the core.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from pylon_client.effects import Answer, AskToken, EffectFailed, Pause, Request, Send, Steps, Wake
from pylon_client.entities import encode
from pylon_client.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    ClosedError,
    status_error,
)
from pylon_client.options import Options, Token, log

USER_AGENT: Final = "pylon-client-python/0.1.0"
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
_LONGEST_RETRY_AFTER_S: Final = 60.0
_TRIED_AGAIN: Final = frozenset({408, 425, 429})
_UNDONE: Final = frozenset({425, 429, 503})  # refused before anything was done
_REFRESH_LEFT_S: Final = 3600.0
_REFRESH_PART: Final = 0.1


class Session:
    """The identity of a client. Copies of a client made by `with_options` share it."""

    def __init__(self, token: Token) -> None:
        self.source: Token = token
        self.token: str | None = token if isinstance(token, str) else None
        self.expires_at_s: float | None = None  # Unix time
        self.refresh_at_s: float | None = None
        self.refreshing = False
        self.generation = 0  # counts the tokens, so that sockets notice a new one

    def set(self, token: str | None, expires_at_s: float | None = None) -> None:
        """Take a new token. `expires_at_s`: Unix time, if known."""
        self.token = token
        self.source = token
        self.expires_at_s = expires_at_s
        self.refresh_at_s = None
        if expires_at_s is not None:
            left_s = expires_at_s - time.time()
            self.refresh_at_s = expires_at_s - min(_REFRESH_LEFT_S, left_s * _REFRESH_PART)
        self.generation += 1

    @property
    def is_refresh_due(self) -> bool:
        return (
            self.refresh_at_s is not None and not self.refreshing
            and time.time() >= self.refresh_at_s
        )


class Lifetime:
    """Whether a client is closed, and how to wake those who wait when it closes."""

    def __init__(self) -> None:
        self.is_closed = False
        self._wakes: list[Wake] = []
        self._lock = threading.Lock()

    def add(self, wake: Wake) -> None:
        """Wake this one when the client closes."""
        with self._lock:
            self._wakes.append(wake)

    def remove(self, wake: Wake) -> None:
        """Wake this one no longer."""
        with self._lock:
            self._wakes.remove(wake)

    def close(self) -> None:
        """Close, and wake everybody."""
        with self._lock:
            self.is_closed = True
            for wake in self._wakes:
                wake.set()

    def check(self) -> None:
        """Raises: ClosedError: the client is closed."""
        if self.is_closed:
            raise ClosedError("the client is closed")


class Core:
    """The state that the operations of a client share: its options, its session and its end."""

    __slots__ = ("addresses", "lifetime", "options", "session")

    def __init__(self, options: Options, session: Session, lifetime: Lifetime) -> None:
        self.options = options
        self.session = session
        self.lifetime = lifetime
        self.addresses: Mapping[str, str] | None = None  # of `GET /api/client-config`

    def with_options(self, **changed: Any) -> Core:
        """Return a core with other options, and the same session and end."""
        return Core(replace(self.options, **changed), self.session, self.lifetime)


def current_token(core: Core, *, anew: bool = False) -> Steps[str | None]:
    """Return the token of the next request. `anew`: ask the application's function again."""
    session = core.session
    if callable(session.source):
        if anew or session.token is None:
            token = yield AskToken(session.source)
            if token != session.token:
                session.token = token
                session.generation += 1
    elif session.is_refresh_due:
        session.refreshing = True
        try:
            yield from refresh(core)
        except APIError as error:
            log.warning("token.refresh_failed error=%s", error)
            session.refresh_at_s = time.time() + _LONGEST_RETRY_AFTER_S
        finally:
            session.refreshing = False
    return session.token


def refresh(core: Core) -> Steps[Mapping[str, Any]]:
    """Take a new token for the session (``POST /api/auth/refresh``).

    Raises:
        AuthenticationError: the session has ended.
    """
    request = Request("POST", "/api/auth/refresh", b"{}", is_repeatable=False)
    answer = yield from perform(core, request, with_refresh=False)
    body = decode_object(answer)
    core.session.set(str(body["token"]), body.get("expires_at"))
    return body


def perform(core: Core, request: Request, *, with_refresh: bool = True) -> Steps[Answer]:
    """Send a request, and again where that is right.

    Raises:
        APIConnectionError: no answer came.
        APIStatusError: the answer has an error status.
    """
    options = core.options
    url = request.path if "://" in request.path else options.url + request.path
    timeout_s = options.timeout_s if request.timeout_s is None else request.timeout_s
    has_asked = False
    tries = 0
    while True:
        core.lifetime.check()
        token = (
            (yield from current_token(core)) if with_refresh else core.session.token
        )
        headers = headers_of(options, request, token)
        send = Send(request.method, url, headers, request.body, timeout_s)
        try:
            answer: Answer = yield send
        except EffectFailed as failed:
            if tries >= options.max_retries or (failed.was_sent and not request.is_repeatable):
                kind = APITimeoutError if failed.is_timeout else APIConnectionError
                raise kind(
                    f"{request.method} {url}: {failed}", idempotency_key=request.key
                ) from failed
            pause_s = _pause_s(tries)
            log.info("request.failed method=%s url=%s error=%s retry_in_s=%.2f",
                     request.method, url, failed, pause_s)
        else:
            log.debug("request.answered method=%s url=%s status=%d request_id=%s", request.method,
                      url, answer.status, answer.headers.get("x-request-id"))
            if answer.status < 400:
                return answer
            if answer.status == 401 and callable(core.session.source) and not has_asked:
                has_asked = True
                yield from current_token(core, anew=True)
                continue
            wait_s = _wait_s(answer, request, tries)
            if wait_s is None or tries >= options.max_retries:
                asked = f"{request.method} {request.path}"
                raise status_error(answer.status, answer.headers, answer.content, asked)
            pause_s = wait_s
        yield Pause(pause_s)
        tries += 1


def headers_of(options: Options, request: Request, token: str | None) -> dict[str, str]:
    """Return the headers of a request."""
    headers = {"Accept": "application/json", "User-Agent": USER_AGENT, **options.headers}
    if request.body is not None:
        headers["Content-Type"] = "application/json"
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if request.key is not None:
        headers["Idempotency-Key"] = request.key
    headers.update(request.headers)
    return headers


def may_pass(error: APIStatusError) -> bool:
    """Return whether a connection that is meant to last goes on after this error."""
    return error.status >= 500 or error.status in _TRIED_AGAIN


def _wait_s(answer: Answer, request: Request, tries: int) -> float | None:
    """Return how long to wait before the next try; None: there is none."""
    status = answer.status
    after_s = _retry_after_s(answer.headers)
    may_pass = status in _TRIED_AGAIN or (status >= 500 and status != 501) or after_s is not None
    if not may_pass or not (request.is_repeatable or status in _UNDONE):
        return None
    if after_s is None:
        return _pause_s(tries)
    return after_s if after_s <= _LONGEST_RETRY_AFTER_S else None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    given = headers.get("retry-after")
    if given is None:
        return None
    try:
        return max(float(given), 0.0)
    except ValueError:
        return None  # a date; the server sends seconds


def _pause_s(tries: int) -> float:
    return random.uniform(0, min(_FIRST_PAUSE_S * 2**tries, _LONGEST_PAUSE_S))


def send_json(
    core: Core, method: str, path: str, body: object = None, *,
    headers: Mapping[str, str] | None = None, key: str | None = None, is_repeatable: bool = True,
) -> Steps[Answer]:
    """Send a body as JSON (None: no body), and return the answer. Raises: as `perform`."""
    raw = None if body is None else encode(body)
    request = Request(
        method, path, raw, headers or {}, is_repeatable=is_repeatable or key is not None, key=key
    )
    return perform(core, request)


def decode(answer: Answer) -> Any:
    """Return the decoded JSON of an answer. Raises: APIError: it is no JSON."""
    try:
        return msgspec.json.decode(answer.content)
    except msgspec.DecodeError as ex:
        raise APIError(f"the answer is no JSON: {ex}") from ex


def decode_object(answer: Answer) -> dict[str, Any]:
    """Return the decoded JSON object of an answer. Raises: APIError: it is none."""
    decoded = decode(answer)
    if not isinstance(decoded, dict):
        raise APIError("the answer is no JSON object")
    return decoded
