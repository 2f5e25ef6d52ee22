"""Cache of recently resolved sessions, API keys and JWTs, by credentials; and the notes of their
use.

Invariants: an entry expires `limits.SESSION_CACHE_S` after the store was read, and at the session's
end. So a revoked session ends everywhere within a second, even if its signal was lost. The cache
has no entry for unknown credentials. It has none for the administrator either: the admin token
needs no look-up, and a cookie with that token must not find the entry of a header.

Bound: `limits.SESSION_CACHE_ENTRIES` entries. The cache is cleared when it is full, and on the
first look-up after the oldest entry has expired. One for each process. Called by
`pylon.api.http.callers` and `workers.hub.admission`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from pylon import limits
from pylon.app import App
from pylon.auth.api_keys import caller_of_key, find_api_key, id_of, is_api_key
from pylon.auth.jwts import JwtClaims, caller_of_jwt, invalid_jwt
from pylon.auth.org_roles import in_its_org
from pylon.auth.session_life import ROTATION_GRACE_S, is_over, session_life
from pylon.auth.sessions import count_again, count_jwt, count_key, resolve
from pylon.auth.tokens import UnprivilegedToken, is_jwt
from pylon.auth.verified_jwts import VerifiedJwts
from pylon.auth_context import Caller
from pylon.clock import NS_PER_S, Clock
from pylon.storage.interface import Reader, Store, read_settled
from pylon.storage.records import SessionRow

Credentials = TypeVar("Credentials")  # the key: header values, or a token


class UsedSessions:
    """Sessions and API keys whose use is to be noted in the store, since the last heartbeat.

    The sessions are guests that presented their token for the first time, and those whose last
    noted use is old (`SessionLife.needs_note`). The heartbeat reports them to the supervisor, whose
    flusher writes the notes. Bound: `limits.USED_SESSIONS`. A session beyond the bound, or of a
    lost heartbeat, is noted with its next request.
    """

    __slots__ = ("_session_ids",)

    def __init__(self) -> None:
        self._session_ids: set[str] = set()

    def add(self, session_id: str) -> None:
        if len(self._session_ids) < limits.USED_SESSIONS:
            self._session_ids.add(session_id)

    def take_all(self) -> list[str]:
        """Return the session ids since the last call, and forget them."""
        taken, self._session_ids = self._session_ids, set()
        return list(taken)


class SessionCache(Generic[Credentials]):
    """The cache of one process."""

    __slots__ = ("_clock", "_config", "_ends", "_forgotten", "_jwts", "_known", "_life",
                 "_manifest", "_stale_s", "_store", "_used_sessions")

    def __init__(
        self, app: App, store: Store, clock: Clock,
        ends: Callable[[str, float], None] | None = None, used_sessions: UsedSessions | None = None,
        verify_jwt: Callable[[str], JwtClaims] | None = None,
    ) -> None:
        """
        Args:
            ends: called for each session with an end that is looked up: its family, and its
                end in monotonic seconds.
            used_sessions: receives the sessions whose use is to be noted.
            verify_jwt: has the identity process check a JWT; raises InvalidJwt or Unavailable. It
                switches greenlets. None: there are no JWTs.
        """
        self._jwts = None if verify_jwt is None else VerifiedJwts(verify_jwt, clock)
        self._used_sessions = UsedSessions() if used_sessions is None else used_sessions
        self._config = app.config
        self._manifest = app.manifest
        self._life = session_life(app.manifest.auth)
        self._store = store
        self._clock = clock
        self._ends = ends
        self._known: dict[Credentials, tuple[Caller, float]] = {}  # until when, monotonic
        self._forgotten = 0  # how often the cache was cleared by `forget`
        self._stale_s = 0.0  # the first look-up after this time clears the cache

    def find(self, carried: Credentials) -> Caller | None:
        """Return the cached caller of these credentials, or None."""
        known = self._known.get(carried)
        if known is None or known[1] <= self._clock.monotonic_s():
            return None
        count_again(known[0])
        return known[0]

    def look_up(
        self, carried: Credentials, token: str | None,
        on_prolonged: Callable[[], None] | None = None,
    ) -> Caller:
        """Resolve `token` in the store, and cache the caller under `carried`.

        Args:
            on_prolonged: called if this use prolongs the session, so that its cookie lasts longer.

        Switches greenlets as `Store.point` does. From its return to the caller's next switch no
        revocation that this process has seen is missing.

        Raises:
            StoreUnavailable, QueryTimeout: the store cannot tell; the caller is not anonymous then.
            InvalidApiKey: the token begins as API keys do, and is no live one.
            InvalidJwt: the token has the form of a JWT, and does not count.
            Unavailable: a JWT cannot be checked now.
        """
        if token and is_jwt(token) and not isinstance(token, UnprivilegedToken):
            return self._look_up_jwt(carried, token)
        if token and is_api_key(token) and not isinstance(token, UnprivilegedToken):
            return self._look_up_key(carried, token)
        clock = self._clock
        now_s = clock.monotonic_s()
        until_s = now_s + limits.SESSION_CACHE_S

        def session_of(session_id: str) -> SessionRow | None:
            nonlocal until_s
            session = self._read(session_id)
            if session is not None:
                self._note_use(session, on_prolonged)
            if session is not None and session.rotated_at_s:
                grace_s = session.rotated_at_s + ROTATION_GRACE_S - clock.wall_ns() / NS_PER_S
                until_s = min(until_s, now_s + grace_s)
            if session is not None and session.expires_at_s:
                left_s = (session.expires_at_s * NS_PER_S - clock.wall_ns()) / NS_PER_S
                until_s = min(until_s, now_s + left_s)
                if self._ends is not None:
                    self._ends(session.family, now_s + left_s)
            return session

        caller = resolve(token, self._config, session_of, clock)
        if caller.auth.tenant_id is not None and self._manifest.auth.org is not None:
            caller = self._store.point(
                partial(in_its_org, manifest=self._manifest, caller=caller)
            )
        if caller.session_id is not None:
            self._keep(carried, caller, now_s, until_s)
        return caller

    def _look_up_key(self, carried: Credentials, token: str) -> Caller:
        """Return the caller of an API key. Raises as `look_up`."""
        clock = self._clock
        now_s, wall_s = clock.monotonic_s(), clock.wall_ns() / NS_PER_S
        key_id = id_of(token)
        key = read_settled(
            self._store, lambda reader: find_api_key(reader, self._manifest, key_id, wall_s),
            lambda: self._forgotten,
        )
        caller, ends_at_s = caller_of_key(token, key, wall_s)
        until_s = now_s + limits.SESSION_CACHE_S
        if ends_at_s:
            until_s = min(until_s, now_s + ends_at_s - wall_s)
            if self._ends is not None and caller.family is not None:
                self._ends(caller.family, now_s + ends_at_s - wall_s)
        if key is not None and wall_s - key.last_used_at_s >= limits.KEY_USE_NOTE_S:
            self._used_sessions.add(key_id)
        self._keep(carried, caller, now_s, until_s)
        count_key()
        return caller

    def _look_up_jwt(self, carried: Credentials, token: str) -> Caller:
        """Return the caller of a JWT. Raises as `look_up`."""
        if self._jwts is None:
            raise invalid_jwt()
        claims = self._jwts.verify(token)
        clock, manifest = self._clock, self._manifest
        now_s, wall_s = clock.monotonic_s(), clock.wall_ns() / NS_PER_S

        def read(reader: Reader) -> Caller:
            caller = caller_of_jwt(reader, manifest, claims, wall_s)
            return caller if manifest.auth.org is None else in_its_org(reader, manifest, caller)

        caller = read_settled(self._store, read, lambda: self._forgotten)
        ends_s = now_s + claims.ends_at_s - wall_s
        if self._ends is not None and caller.family is not None:
            self._ends(caller.family, ends_s)
        self._keep(carried, caller, now_s, min(now_s + limits.SESSION_CACHE_S, ends_s))
        count_jwt()
        return caller

    def _keep(
        self, carried: Credentials, caller: Caller, now_s: float, until_s: float
    ) -> None:
        if len(self._known) >= limits.SESSION_CACHE_ENTRIES or now_s >= self._stale_s:
            self._known.clear()
            self._stale_s = now_s + limits.SESSION_CACHE_S
        self._known[carried] = (caller, until_s)

    def forget(self) -> None:
        """Clear the cache, because a session may have been revoked."""
        self._known.clear()
        self._forgotten += 1

    def _note_use(self, session: SessionRow, on_prolonged: Callable[[], None] | None) -> None:
        now_s = self._clock.wall_ns() // NS_PER_S
        if is_over(session, now_s):
            return
        needs_note = self._life.needs_note(session, now_s)
        if needs_note or session.is_unused:
            self._used_sessions.add(session.session_id)
        if needs_note and on_prolonged is not None and self._life.can_prolong(session, now_s):
            on_prolonged()

    def _read(self, session_id: str) -> SessionRow | None:
        """Return the session as no revocation that was seen meanwhile can have changed it."""
        def read(reader: Reader) -> SessionRow | None:
            return reader.session(session_id)

        return read_settled(self._store, read, lambda: self._forgotten)
