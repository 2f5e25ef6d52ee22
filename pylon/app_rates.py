"""App rates: counts what the manifest's `rateLimits` limit (spec/identity.md §4).

A rule counts the writes of an entity, on whatever path they come, the requests below a path, or the
messages of WebSockets. Administrators do not count. A rule per user counts a caller without a user
by its address, and so does one per tenant where the caller has neither.

Invariants: a request that is refused has no effect. Of a list of writes that need not be done
together, those before the first refused one are counted and may be written. Called by the API and
by `workers.ws`, one `AppRates` for each process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pylon.auth_context import AuthContext
from pylon.errors import LimitExceeded, RateLimited
from pylon.limiter import RateLimiter, rate_limited
from pylon.manifest.model import RateLimit
from pylon.manifest.rate_limits import is_below
from pylon.rates import Rate, address_subject, user_subject
from pylon.storage.ops import DeleteRow, InsertRow, PushDocument, UpdateRow

Address = Callable[[], str]
CountedWrite = InsertRow | UpdateRow | DeleteRow | PushDocument

_VERBS: Final = {
    InsertRow: "insert", UpdateRow: "update", PushDocument: "update", DeleteRow: "delete",
}


@dataclass(frozen=True, slots=True)
class AllowedWrites:
    """How many writes of a list a client may make, and the error of the next one."""

    count: int
    error: RateLimited | None = None


class AppRates:
    """The rates that the app sets, in one process. `has_routes`: whether one is of a path."""

    __slots__ = ("_limiter", "_messages", "_routes", "_writes", "has_routes")

    def __init__(self, rules: Sequence[RateLimit], limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._messages: list[tuple[RateLimit, Rate]] = []
        self._routes: list[tuple[RateLimit, Rate]] = []
        self._writes: dict[tuple[str, str], list[tuple[RateLimit, Rate]]] = defaultdict(list)
        for rule in rules:
            rate = Rate(f"app.{rule.name}", rule.limit, rule.window_s, rule.burst)
            if rule.kind == "route":
                self._routes.append((rule, rate))
            elif rule.kind == "ws":
                self._messages.append((rule, rate))
            else:
                for verb in set(_VERBS.values()) if rule.verb == "write" else {rule.verb}:
                    self._writes[rule.target, verb].append((rule, rate))
        self.has_routes = bool(self._routes)

    def of_path(
        self, path: str, auth: Callable[[], AuthContext], address: Address
    ) -> Iterator[tuple[Rate, int]]:
        """Yield the rates that count a request for a path, and the caller's key of each.

        Raises:
            PylonError: of `auth`, which is called where a rule counts by user or tenant.
        """
        for rule, rate in self._routes:
            if is_below(path, rule.target):
                of = auth() if rule.per in ("user", "tenant") else None
                yield rate, self._limiter.key(rate, _subject(rule, of, address))

    def require_writes(self, auth: AuthContext, address: Address, ops: Sequence[object]) -> None:
        """Count writes that are done all together or not at all.

        Raises:
            RateLimited: a rate has too little left for them.
            LimitExceeded: a rate never has enough for them.
        """
        if not self._writes or auth.is_admin:
            return
        units: dict[tuple[str, str], int] = defaultdict(int)
        for op in ops:
            if isinstance(op, CountedWrite):
                units[op.entity, _VERBS[type(op)]] += 1
        for thing, count in units.items():
            for rule, rate in self._writes.get(thing, ()):
                if count > rate.quota:
                    raise LimitExceeded(
                        f"{count} writes of {thing[0]} in one request exceed the app's rate limit "
                        f"{rule.name}, {rate.quota:g} at once"
                    )
                self._limiter.require(rate, _subject(rule, auth, address), count)

    def admit_writes(
        self, auth: AuthContext, address: Address, ops: Sequence[CountedWrite]
    ) -> AllowedWrites:
        """Count the writes of a list in order, up to the first that a rate does not allow."""
        if not self._writes or auth.is_admin:
            return AllowedWrites(len(ops))
        for number, op in enumerate(ops):
            for rule, rate in self._writes.get((op.entity, _VERBS[type(op)]), ()):
                wait_s = self._limiter.take(rate, _subject(rule, auth, address))
                if wait_s > 0:
                    return AllowedWrites(number, rate_limited(rate, wait_s))
        return AllowedWrites(len(ops))

    def require_message(self, auth: AuthContext, address: str) -> None:
        """Count a message of a WebSocket.

        Raises:
            RateLimited: a rate is spent.
        """
        if self._messages and not auth.is_admin:
            for rule, rate in self._messages:
                self._limiter.require(rate, _subject(rule, auth, lambda: address))


def _subject(rule: RateLimit, auth: AuthContext | None, address: Address) -> str:
    if rule.per == "global":
        return "all"
    if rule.per == "tenant" and auth is not None and auth.tenant_id is not None:
        return f"tenant:{auth.tenant_id}"
    if rule.per != "ip" and auth is not None and auth.user_id is not None:
        return user_subject(auth.user_id)
    return address_subject(address())
