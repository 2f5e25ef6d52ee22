"""Calls to the identity process: requests of sign-in that an HTTP worker has checked.

    HTTP worker DEALER -> identity ROUTER   IdentityCall     (`pylon.bus.calls`)
    identity ROUTER -> HTTP worker DEALER   IdentityAnswer

An HTTP worker reads and checks the body, finds the caller, and hands over the facts of the request
that a flow needs. It keeps no password, code or token afterwards.

Invariants: the identity process carries out no call after its deadline. A call ends in its answer,
in the error that the flow raised, or in Unavailable; then the flow may have been carried out or
not. The folder of the sockets is private, and nothing of a call reaches a log or a metric. Called
by `pylon.api.identity` and `workers.identity`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pylon import limits
from pylon.auth.jwts import JwtClaims
from pylon.auth_context import ANONYMOUS, AuthContext
from pylon.bus.calls import Caller
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, RandomSource
from pylon.errors import Unavailable

CHANNEL: Final = "identity"
VERIFY_JWT: Final = "verify_jwt"  # an action without a route


class CallFacts(msgspec.Struct, frozen=True, array_like=True):
    """The facts that an HTTP worker knows of a request, besides its body."""

    auth: AuthContext = ANONYMOUS
    session_id: str | None = None  # None: anonymous, or known by another credential
    family: str | None = None  # of the session's tokens
    auth_time_s: int = 0  # when the caller has last proved who they are; Unix time
    is_by_cookie: bool = False  # the session came as a cookie, not in a header
    address: str = ""  # of the client, as the trusted proxies report it
    device: str = ""  # the label of its user agent
    origin: str | None = None
    is_trusted_origin: bool = False  # only then the answer may set cookies, except on redirects
    cookies: dict[str, str] = {}  # those of sign-in, by the short names of `pylon.auth.cookies`
    is_form: bool = False  # the body is a form of one of our own pages
    is_cross_site: bool = False  # a page of another site sent it or led here (Sec-Fetch-Site)
    traceparent: str | None = None  # for requests that this one causes (`pylon.trace_context`)

    def __repr__(self) -> str:
        return f"CallFacts(user_id={self.auth.user_id!r})"


class IdentityCall(msgspec.Struct, frozen=True, array_like=True):
    """A request of sign-in."""

    action: str  # a key of `workers.identity.actions.ACTIONS`
    body: bytes  # JSON of the type of the route's body; empty without one
    params: dict[str, str]  # of the path and the query
    facts: CallFacts
    deadline_s: float  # on the monotonic clock of the machine

    def __repr__(self) -> str:
        return f"IdentityCall(action={self.action!r})"


class IdentityAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The answer that the HTTP worker sends. With a `session_token` it also sets the session
    cookie, if the origin is trusted or the answer is a redirect."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    session_token: str | None = None
    clears_session: bool = False  # clear the session cookie
    ends_sessions: bool = False  # the HTTP worker forgets the callers that it has cached
    cookies: tuple[str, ...] = ()  # further Set-Cookie values
    location: str | None = None  # of a redirect
    headers: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"IdentityAnswer(status={self.status})"


calls: Final = msgspec.msgpack.Decoder(IdentityCall)
_answers: Final = msgspec.msgpack.Decoder(IdentityAnswer)
_claims: Final = msgspec.msgpack.Decoder(JwtClaims)
encode: Final = msgspec.msgpack.Encoder().encode


class IdentityClient:
    """A worker's client of the identity process; socket workers use it for JWTs only. Connects with
    the first call; `close` it at the end."""

    def __init__(
        self, runtime: Runtime, clock: Clock, random: RandomSource, *, is_on: bool
    ) -> None:
        """Args: `is_on`: this node has an identity process."""
        self._is_on = is_on
        self._runtime = runtime
        self._clock = clock
        self._random = random
        self._caller: Caller | None = None

    def call(
        self, action: str, body: bytes, params: dict[str, str], facts: CallFacts
    ) -> IdentityAnswer:
        """Have the identity process carry out an action; return its answer. Blocks this greenlet.

        Raises:
            Unavailable: too many calls are in flight, or the process does not answer.
            PylonError: the error that the flow raised.
        """
        if not self._is_on:
            raise Unavailable(
                "This server signs nobody in (PYLON_IDENTITY_WORKERS is 0)",
                hint="Set PYLON_IDENTITY_WORKERS to 1",
            )
        if self._caller is None:
            self._caller = Caller(
                self._runtime.identity, CHANNEL, self._random,
                timeout_s=limits.IDENTITY_CALL_S, connect_s=limits.IDENTITY_CONNECT_S,
            )
        deadline_s = self._clock.monotonic_s() + limits.IDENTITY_CALL_S
        command = encode(IdentityCall(action, body, params, facts, deadline_s))
        return _answers.decode(self._caller.call(command))

    def verify_jwt(self, token: str) -> JwtClaims:
        """Have the identity process check a JWT; return what it says. Blocks this greenlet.

        Raises:
            InvalidJwt: it does not count.
            Unavailable: the process does not answer, or cannot check it now.
        """
        answer = self.call(VERIFY_JWT, token.encode("utf-8", "replace"), {}, CallFacts())
        return _claims.decode(answer.body)

    def close(self) -> None:
        """Close the connection."""
        if self._caller is not None:
            self._caller.close()


def json_answer(
    value: Any, status: int = 200, *, session_token: str | None = None,
    cookies: tuple[str, ...] = (), headers: tuple[tuple[str, str], ...] = (),
    ends_sessions: bool = False,
) -> IdentityAnswer:
    """Return an answer with a JSON body: a dict, or the struct that the route declares."""
    return IdentityAnswer(
        msgspec.json.encode(value, order="sorted"), status, session_token=session_token,
        cookies=cookies, headers=headers, ends_sessions=ends_sessions,
    )
