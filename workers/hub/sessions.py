"""Session watch: ends the sockets of families of sessions that were revoked or have expired.

A socket belongs to the family of its session, so it outlives the rotation of the token. A signal
(`SessionRevoked`) names a family that has ended, and signals may be lost. So the watch also
sweeps: it looks up the families of all sockets in the store. It sweeps after a commit (the version
of the store has changed), and every `_SWEEP_S`. It notes the families that expire soon, and looks
them up at that time, since use may have prolonged them.

API keys and JWTs have sockets too (`pylon.auth.api_keys`, `jwts`). They are few, and what ends them
leaves no mark of its own, so each tick looks them up.

A socket acts in the organisation and with the role that its session had when it opened
(`pylon.auth.org_roles`). After a commit the watch closes those whose role has changed, and those
who are no members any more.

Invariant: one second after a family has ended, it has no
socket. Exception: if the signal was lost, the worker has more than 20,000 sessions, and
clients write continuously, it takes longer. Bounds: a sweep costs 1.7 µs for each family; sweeps
take at most `_SHARE` of the time. Sweeps and closes run in slices, between which other greenlets
run. Called by `workers.hub.service` and `workers.hub.admission`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import gevent

from pylon import log
from pylon.auth.api_keys import family_ends, is_of_key
from pylon.auth.jwts import is_of_jwt, jwt_ends
from pylon.auth.org_roles import in_its_org
from pylon.auth_context import Caller
from pylon.clock import NS_PER_S, Clock
from pylon.errors import PylonError
from pylon.manifest.model import Manifest
from pylon.storage.interface import Reader, Store
from workers.hub.hub import Hub
from workers.hub.loop_yield import yield_to_loop

SESSION_ENDED: Final = 4401
_TICK_S: Final = 0.7
_SWEEP_S: Final = 60.0
_SOON_S: Final = 2 * _SWEEP_S
_SLICE: Final = 500
_CLOSES: Final = 100  # sockets closed before other greenlets run
_SHARE: Final = 0.05

_log = log.get_logger("sessions")


class SessionWatch:
    """Watches the sessions of one worker's sockets."""

    __slots__ = (
        "_clock", "_closed", "_forget_callers", "_has_changed", "_hubs", "_manifest", "_next_s",
        "_rested_s", "_soon", "_store", "_version",
    )

    def __init__(
        self, store: Store, manifest: Manifest, clock: Clock, forget_callers: Callable[[], None]
    ) -> None:
        """Args: `forget_callers` clears the session cache, whose callers may be outdated."""
        self._store = store
        self._manifest = manifest
        self._forget_callers = forget_callers
        self._hubs: list[Hub] = []
        self._clock = clock
        self._closed = 0  # sockets since the last yield
        self._soon: dict[str, float] = {}  # end (monotonic) of the families that expire soon
        self._version = -1  # of the store, at the last tick
        self._has_changed = False  # since the last sweep
        self._next_s = 0.0  # when to sweep even without a commit
        self._rested_s = 0.0  # no sweep before this time

    def watch(self, hub: Hub) -> None:
        """Watch the sockets of this hub too."""
        self._hubs.append(hub)

    def expires(self, family: str, at_s: float) -> None:
        """Note that the session of a new connection ends at `at_s` (monotonic)."""
        if at_s < self._clock.monotonic_s() + _SOON_S:
            self._soon[family] = at_s

    def end(self, family: str) -> None:
        """Close the sockets of a family that has ended."""
        self._end(family, "session revoked")

    def recheck(self, family: str) -> None:
        """Look a family up that may have ended, and close its sockets if it has.

        The tick looks it up again if the store cannot be read now.
        """
        if not any(hub.has_family(family) for hub in self._hubs):
            return
        try:
            self._check([family])
        except PylonError:
            self._version = -1

    def run(self) -> NoReturn:
        """Run for ever: watch while sockets are open."""
        while True:
            gevent.wait([hub.occupied for hub in self._hubs], count=1)
            gevent.sleep(_TICK_S)
            try:
                self.tick()
            except PylonError as ex:  # the store cannot be read now: the next tick tries again
                _log.warning("sessions.unread", code=ex.code, message=ex.message)
                self._version = -1

    def tick(self) -> None:
        """Close the sockets of families that have ended.

        Raises:
            StoreUnavailable, QueryTimeout: the store cannot be read now.
        """
        now_s = self._clock.monotonic_s()
        due = [family for family, at_s in self._soon.items() if at_s <= now_s]
        for first in range(0, len(due), _SLICE):
            self._check(due[first:first + _SLICE])
            for family in due[first:first + _SLICE]:  # `_check` has noted a later end
                if self._soon.get(family, now_s + 1) <= now_s:
                    del self._soon[family]
        version = self._store.point(lambda reader: reader.data_version())
        if version != self._version:
            self._version = version
            self._has_changed = True
            self._forget_callers()  # else an ended session could connect after the sweep
        if now_s >= self._rested_s and (self._has_changed or now_s >= self._next_s):
            self._has_changed = False
            self._next_s = now_s + _SWEEP_S
            self._sweep()
            ended_s = self._clock.monotonic_s()
            self._rested_s = ended_s + (ended_s - now_s) / _SHARE
        elif now_s >= self._rested_s:
            self._sweep(_has_no_session)

    def _sweep(self, wants: Callable[[str], bool] = lambda family: True) -> None:
        waiting = [
            family for hub in self._hubs for family in hub.families() if wants(family)
        ]
        for first in range(0, len(waiting), _SLICE):
            if first:
                yield_to_loop()
            self._check(waiting[first:first + _SLICE])

        if self._manifest.auth.org is not None and wants is not _has_no_session:
            self._check_tenants()

    def _check_tenants(self) -> None:
        """Close the sockets of callers whose role in their organisation has changed."""
        callers = [auth for hub in self._hubs for auth in hub.tenants()]
        for number, auth in enumerate(callers):
            if number % _SLICE == _SLICE - 1:
                yield_to_loop()
            now = self._store.point(
                partial(in_its_org, manifest=self._manifest, caller=Caller(auth))
            )
            if now.auth != auth:
                reason = "role changed" if now.auth.tenant_id else "organisation left"
                for hub in self._hubs:
                    self._closed += hub.close_tenant(auth, SESSION_ENDED, reason)

    def _check(self, families: list[str]) -> None:
        wall_s = self._clock.wall_ns() / NS_PER_S
        of_keys = [family for family in families if is_of_key(family)]
        of_jwts = [family for family in families if is_of_jwt(family)]
        of_sessions = [family for family in families if not _has_no_session(family)]

        def read(reader: Reader) -> dict[str, int]:
            ends = reader.family_ends(of_sessions) if of_sessions else {}
            return {
                **ends, **family_ends(reader, self._manifest, of_keys, wall_s),
                **jwt_ends(reader, self._manifest, of_jwts),
            }

        ends = self._store.point(read)
        now_s = self._clock.monotonic_s()
        for family in families:
            expires_at_s = ends.get(family)
            if expires_at_s is None:
                self._end(family, "session revoked")
            elif expires_at_s and expires_at_s <= wall_s:
                self._end(family, "session expired")
            elif expires_at_s:
                self.expires(family, now_s + expires_at_s - wall_s)

    def _end(self, family: str, reason: str) -> None:
        for hub in self._hubs:
            self._closed += hub.close_family(family, SESSION_ENDED, reason)
        if self._closed >= _CLOSES:
            self._closed = 0
            yield_to_loop()


def _has_no_session(family: str) -> bool:
    return is_of_key(family) or is_of_jwt(family)
