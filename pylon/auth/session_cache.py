"""SessionCache: whom the credentials of the last requests and sockets stand for.

Invariants: nobody is remembered for longer than limits.CALLER_S after the session was read from
the store, so that a revoked session is dead everywhere within a second even where the signal was
lost; nor beyond the session's own end. Credentials without a caller are not remembered at all. Nor
is the admin, who costs no look-up: a cookie that holds the admin's token would find what a header
left. At limits.CALLERS entries all are forgotten, and likewise with the first one that is looked
up when the oldest have had their time. One for each process, used by `pylon.api.http.callers` and
`workers.hub.admission`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from pylon import limits
from pylon.auth.sessions import count_again, resolve
from pylon.auth_context import Caller
from pylon.clock import Clock
from pylon.config import Config
from pylon.storage.interface import SessionRow, Store

_NS_PER_S: Final = 1_000_000_000

Credentials = TypeVar("Credentials")  # what credentials come in: headers, or a token


class UsedGuests:
    """Guests whose tokens were presented for the first time, until the next heartbeat tells.

    Bound: limits.USED_GUESTS; one that finds no place is noted when it comes again, as is one
    whose heartbeat was lost.
    """

    __slots__ = ("_session_ids",)

    def __init__(self) -> None:
        self._session_ids: set[str] = set()

    def add(self, session_id: str) -> None:
        if len(self._session_ids) < limits.USED_GUESTS:
            self._session_ids.add(session_id)

    def take_all(self) -> list[str]:
        """The guests that were noted since the last call."""
        taken, self._session_ids = self._session_ids, set()
        return list(taken)


class SessionCache(Generic[Credentials]):
    """See the module."""

    __slots__ = ("_clock", "_config", "_ends", "_known", "_stale_s", "_store", "_used_guests")

    def __init__(
        self, config: Config, store: Store, clock: Clock,
        ends: Callable[[str, float], None] | None = None, used_guests: UsedGuests | None = None,
    ) -> None:
        """
        Args:
            ends: told of each session that is looked up and has an end: its id, and that end
                in monotonic seconds.
            used_guests: gets the guests that the store takes for unused.
        """
        self._used_guests = UsedGuests() if used_guests is None else used_guests
        self._config = config
        self._store = store
        self._clock = clock
        self._ends = ends
        self._known: dict[Credentials, tuple[Caller, float]] = {}  # until when, monotonic
        self._stale_s = 0.0  # then all are forgotten, with the next one that is looked up

    def find(self, carried: Credentials) -> Caller | None:
        """Who is remembered."""
        known = self._known.get(carried)
        if known is None or known[1] <= self._clock.monotonic_s():
            return None
        count_again()
        return known[0]

    def look_up(self, carried: Credentials, token: str | None) -> Caller:
        """Whom `token` stands for, and remember it as `carried`.

        Raises:
            StoreUnavailable, QueryTimeout: who cannot be checked is not anonymous.
        """
        clock = self._clock
        now_s = clock.monotonic_s()
        until_s = now_s + limits.CALLER_S

        def session_of(session_id: str) -> SessionRow | None:
            nonlocal until_s
            session = self._store.point(lambda reader: reader.session(session_id))
            if session is not None and session.is_unused:
                self._used_guests.add(session_id)
            if session is not None and session.expires_at_s:
                left_s = (session.expires_at_s * _NS_PER_S - clock.wall_ns()) / _NS_PER_S
                until_s = min(until_s, now_s + left_s)
                if self._ends is not None:
                    self._ends(session_id, now_s + left_s)
            return session

        caller = resolve(token, self._config, session_of, clock)
        if caller.session_id is not None:
            if len(self._known) >= limits.CALLERS or now_s >= self._stale_s:
                self._known.clear()
                self._stale_s = now_s + limits.CALLER_S
            self._known[carried] = (caller, until_s)
        return caller

    def forget(self) -> None:
        """A session may have been revoked: look all of them up again."""
        self._known.clear()
