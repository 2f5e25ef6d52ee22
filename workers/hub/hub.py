"""The hub: the registry of connections, in which each has its place in the order of changes.

Connections with equal auth contexts see the same, so the hub decides for groups of them (`groups`),
and `fan_out` sends each group its frames. A connection whose replay has gone beyond the head of the
hub is *ahead*: it gets its changes by itself until the hub has reached its cursor.

Invariants: a connection gets events in seq order, each at most once. It joins when it has had
everything up to the head of the hub; one whose replay was ahead of the hub waits until the hub
reaches it. `publish` never blocks and never switches greenlets, so fan-out cannot overtake a
connection that joins after its replay. Called by `workers.hub.feed`, `replay` and `admission`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Final

from gevent.event import Event

from pylon import limits, metrics
from pylon.auth_context import AuthContext, Caller
from pylon.changelog.change import Change
from pylon.changelog.scope import Scope
from pylon.clock import Clock
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import NO_RELATED, RelatedRows
from workers.hub.connection import Connection, Transport
from workers.hub.fan_out import FanOut
from workers.hub.groups import Groups
from workers.hub.memberships import KeySets, Memberships

BEAT_S: Final = 0.5  # how often some of the connections have their heartbeat


class Hub:
    """The connections of one worker."""

    def __init__(
        self, rules: Mapping[str, EntityRules], transport: Transport, clock: Clock,
        related: RelatedRows = NO_RELATED,
    ) -> None:
        """
        Args:
            rules: those of each entity of the manifest.
            related: the rows that read rules ask, as stored; it never switches greenlets.
        """
        self.memberships = Memberships(
            {name: each.related for name, each in rules.items() if each.related.checks}, related
        )
        self.transport = transport
        self.spent_s = 0.0  # on the last changes
        self._clock = clock
        self._groups = Groups()
        self.fan_out = FanOut(rules, transport, self._groups, self.memberships)
        # All connections, spread evenly, so that each heartbeat looks at one partition only.
        self.partitions: list[set[Connection]] = [
            set() for _ in range(max(1, round(transport.heartbeat_s / BEAT_S)))
        ]
        self.occupied = Event()  # set while there are connections: timers wait for it
        self._open = 0
        self._opened = 0
        self._head = 0  # up to here everything has been published
        self._ahead: set[Connection] = set()  # joined, with a `last_seq` above the head
        self._families: dict[str, set[Connection]] = {}
        self._tenants: dict[AuthContext, set[Connection]] = {}  # callers in organisations
        self._closing: dict[Connection, float] = {}  # since when, monotonic seconds
        self._on_closed: list[Callable[[Connection], None]] = []
        self._on_behind: Callable[[Connection, int], None] | None = None
        self._on_concerned: list[Callable[[Collection[AuthContext]], None]] = []
        self._on_published: list[Callable[[Sequence[Change]], None]] = []

    # --- Connections ---------------------------------------------------------------------

    def __len__(self) -> int:
        """The number of open sockets, closing ones included."""
        return self._open

    @property
    def connections(self) -> list[Connection]:
        """A copy of all connections."""
        return list(chain.from_iterable(self.partitions))

    @property
    def opened(self) -> int:
        """The number of the newest connection, which counts all that there have been."""
        return self._opened

    @property
    def head(self) -> int:
        """The seq up to which everything has been published."""
        return self._head

    @property
    def contexts(self) -> int:
        """The number of distinct auth contexts that receive events."""
        return self._groups.contexts

    def on_closed(self, callback: Callable[[Connection], None]) -> None:
        """Call `callback` for each connection whose socket is closed."""
        self._on_closed.append(callback)

    def on_published(self, callback: Callable[[Sequence[Change]], None]) -> None:
        """Call `callback` with all changes of each batch, after their delivery.

        It must neither block nor switch greenlets.
        """
        self._on_published.append(callback)

    def on_behind(self, callback: Callable[[Connection, int], None]) -> None:
        """Call `callback` for each connection that the fan-out no longer serves, with the seq up
        to which it has all changes. The callback brings it up to date, and lets it join again."""
        self._on_behind = callback

    def on_concerned(self, callback: Callable[[Collection[AuthContext]], None]) -> None:
        """Call `callback` with the callers for whom the next changes may open or close rows.

        It must neither block nor switch greenlets.
        """
        self._on_concerned.append(callback)

    def add(self, connection: Connection) -> None:
        """Count a new connection. It gets no events until it joins."""
        self._opened += 1
        connection.number = self._opened
        self.partitions[self._opened % len(self.partitions)].add(connection)
        self._open += 1
        if self._open == 1:
            self.occupied.set()
        self._note_family(connection)
        metrics.CONNECTIONS_OPENED.inc()
        metrics.CONNECTIONS.inc()  # of all hubs of the worker

    def join(self, connection: Connection, sets: KeySets | None = None) -> None:
        """Deliver events after its `last_seq` to a connection from now on.

        Args:
            sets: those of the caller at `last_seq`, if its rules ask other rows and they are not
                held yet.
        """
        if not connection.is_open:
            return
        if self._is_asking(connection):
            self.memberships.hold(connection.caller.auth, sets)
        self._deliver_to(connection)

    def _deliver_to(self, connection: Connection) -> None:
        if connection.last_seq > self._head:
            self._ahead.add(connection)
        else:
            self._groups.join(connection)

    def _is_asking(self, connection: Connection) -> bool:
        """Whether the read rules of the connection's caller ask other rows."""
        return bool(self.memberships) and not connection.caller.auth.is_admin

    def left(self, connection: Connection) -> None:
        """Deliver no more events to a connection (`workers.hub.connection.Owner`)."""
        self._closing[connection] = self._clock.monotonic_s()
        self._leave(connection)

    def change_caller(self, connection: Connection, caller: Caller) -> None:
        """Set the caller of an open connection, from the next change on."""
        cursor = max(connection.last_seq, self._head)
        had_joined = self._leave(connection)
        self._forget_family(connection)
        connection.caller = caller
        self._note_family(connection)
        if had_joined and self._is_asking(connection):
            self._send_behind(connection, cursor)
        elif had_joined:
            self.join(connection)

    def change_scope(self, connection: Connection, scope: Scope | None) -> None:
        """Set the scope of an open connection, from the next change on.

        Raises:
            LimitExceeded: there are too many scopes of this kind; the connection keeps its own.
        """
        if scope is not None and scope != connection.scope:
            self._groups.check_scope(scope)
        cursor = max(connection.last_seq, self._head)
        had_joined = self._leave(connection)
        connection.scope = scope
        if had_joined and self._is_asking(connection):
            self._send_behind(connection, cursor)
        elif had_joined:
            self.join(connection)

    def delivered_seq(self, connection: Connection) -> int:
        """Return the seq up to which a connection has been sent every event that it may see.

        A connection that wants no changes has missed none up to the head of the hub.
        """
        if not connection.wants_changes or self._groups.has_joined(connection):
            return self._head
        return connection.last_seq

    def _leave(self, connection: Connection) -> bool:
        """Remove a connection from its group; False if it had not joined."""
        had_joined = connection in self._ahead or self._groups.leave(connection)
        self._ahead.discard(connection)
        if had_joined and self._is_asking(connection):
            self.memberships.release(connection.caller.auth)
        return had_joined

    def _send_behind(self, connection: Connection, cursor: int) -> None:
        """Start to bring a connection that has left up to date from `cursor`."""
        assert self._on_behind is not None, "a hub whose rules ask other rows needs a replay"
        self._on_behind(connection, cursor)

    def closed(self, connection: Connection) -> None:
        """Remove a connection whose socket is closed (`workers.hub.connection.Owner`)."""
        self._closing.pop(connection, None)
        share = self.partitions[connection.number % len(self.partitions)]
        if connection in share:
            share.discard(connection)
            self._open -= 1
            if not self._open:
                self.occupied.clear()
            metrics.CONNECTIONS.dec()
        self._forget_family(connection)
        for callback in self._on_closed:
            callback(connection)

    def _note_family(self, connection: Connection) -> None:
        family, auth = connection.caller.family, connection.caller.auth
        if family is not None:
            self._families.setdefault(family, set()).add(connection)
        if auth.tenant_id is not None:
            self._tenants.setdefault(auth, set()).add(connection)

    def _forget_family(self, connection: Connection) -> None:
        family = connection.caller.family
        mates = None if family is None else self._families.get(family)
        if family is not None and mates is not None:
            mates.discard(connection)
            if not mates:
                del self._families[family]
        auth = connection.caller.auth
        colleagues = None if auth.tenant_id is None else self._tenants.get(auth)
        if colleagues is not None:
            colleagues.discard(connection)
            if not colleagues:
                del self._tenants[auth]

    def families(self) -> list[str]:
        """Return the families of sessions that have sockets here."""
        return list(self._families)

    def has_family(self, family: str) -> bool:
        """Return whether the family has sockets here."""
        return family in self._families

    def close_family(self, family: str, code: int, reason: str) -> int:
        """Close the sockets of a family of sessions, and return how many there were.

        What waits in their outboxes is dropped: the session may read it no more.
        """
        found = list(self._families.get(family, ()))
        for connection in found:
            connection.close(
                code, reason, awaits_peer=self.transport.expects_replies, drops_outbox=True
            )
        return len(found)

    def tenants(self) -> list[AuthContext]:
        """Return the callers with a tenant that have sockets here."""
        return list(self._tenants)

    def close_tenant(self, auth: AuthContext, code: int, reason: str) -> int:
        """Close the sockets of a caller with a tenant, and return how many there were.

        What waits in their outboxes is dropped, as with `close_family`.
        """
        found = list(self._tenants.get(auth, ()))
        for connection in found:
            connection.close(
                code, reason, awaits_peer=self.transport.expects_replies, drops_outbox=True
            )
        return len(found)

    def close_all(self, code: int, reason: str) -> None:
        """Close every socket with a close frame."""
        for connection in self.connections:
            connection.close(code, reason, awaits_peer=self.transport.expects_replies)

    def end_overdue(self) -> None:
        """Abort the connections whose close has taken longer than limits.SOCKET_CLOSE_S."""
        since_s = self._clock.monotonic_s() - limits.SOCKET_CLOSE_S
        for connection in [c for c, at_s in self._closing.items() if at_s <= since_s]:
            connection.abort()

    # --- Events --------------------------------------------------------------------------

    def advance(self, head: int) -> None:
        """Count everything up to `head` as published: nobody joined before."""
        self._head = max(self._head, head)

    def publish(self, changes: Sequence[Change], committed_s: float = 0.0) -> None:
        """Deliver changes in seq order to all connections that joined and may see them.

        Args:
            committed_s: when the first of them was committed (`ChangeBatch`); 0 if unknown.
        """
        if not changes:
            return
        started_s = self._clock.monotonic_s()
        if self.memberships:
            self._remove_concerned(changes)
        if self._groups or self._ahead:
            self._deliver(changes, committed_s)
        self._head = max(self._head, changes[-1].seq)
        if self._ahead:
            self._join_those_caught_up()
        for callback in self._on_published:
            callback(changes)
        self.spent_s = self._clock.monotonic_s() - started_s

    def _remove_concerned(self, changes: Sequence[Change]) -> None:
        """Remove the connections of callers for whom the changes may open or close other rows.

        Their replay delivers these changes, as one difference.
        """
        concerned = self.memberships.find_concerned(changes)
        if not concerned:
            return
        for callback in self._on_concerned:
            callback(concerned)
        joined = [
            connection for auth in concerned for group in self._groups.find_of_auth(auth)
            for connection in group.connections
        ]
        ahead = [each for each in self._ahead if each.caller.auth in concerned]
        for connection in (*joined, *ahead):
            cursor = max(connection.last_seq, self._head)
            self._leave(connection)
            self._send_behind(connection, cursor)

    def _deliver(self, changes: Sequence[Change], committed_s: float) -> None:
        started_s = self._clock.monotonic_s()
        for connection in list(self._ahead):
            self.fan_out.send_to(connection, changes)
        metrics.MESSAGES_SENT.inc(self.fan_out.send_to_groups(changes))
        now_s = self._clock.monotonic_s()
        metrics.FAN_OUT.observe(now_s - started_s)
        if committed_s:
            metrics.SYNC_DELIVERY.observe(max(0.0, now_s - committed_s))

    def _join_those_caught_up(self) -> None:
        for connection in [c for c in self._ahead if c.last_seq <= self._head]:
            self._ahead.discard(connection)
            self._groups.join(connection)
