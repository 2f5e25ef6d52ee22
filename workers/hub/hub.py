"""The hub: the registry of connections, and the fan-out of changes to them.

Connections with equal auth contexts see the same, so the hub decides for groups of them (`groups`).
The routing plan of an entity (`pylon.policy.routing`) says how. A change for everyone needs no
decision. A change keyed by an attribute of the session touches only the groups with that value.
Only general rules are judged once for each group. `pylon.changelog.change.encode_for` always judges
whether a group sees the row, its leaving, or nothing; routing only names groups that need no
judgement.

A batch becomes one write for each connection, of frames that all receivers share. A delivery costs
that system call, so the loop around it (`_deliver`) holds nothing that can be done once for all, or
only for connections with an outbox.

Invariants: a connection gets events in seq order, each at most once. It joins when it has had
everything up to the head of the hub; one whose replay was ahead of the hub waits until the hub
reaches it. `publish` never blocks and never switches greenlets, so fan-out cannot overtake a
connection that joins after its replay. Called by `workers.hub.feed`, `replay` and `admission`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from os import write
from typing import Final

from gevent.event import Event

from pylon import limits, metrics
from pylon.auth_context import AuthContext, Caller
from pylon.changelog.change import Change, encode_for
from pylon.changelog.scope import Scope
from pylon.clock import Clock
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import NO_RELATED, RelatedRows
from pylon.policy.routing import ByAuth, Everyone, Nobody
from workers.hub.connection import Connection, Transport
from workers.hub.groups import Group, Groups
from workers.hub.memberships import KeySets, Memberships

BEAT_S: Final = 0.5  # how often some of the connections have their heartbeat

_Frames = list[tuple[int, bytes]]  # (seq, frame)


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
        self._rules = rules
        self._clock = clock
        self._groups = Groups()
        # All connections, spread evenly, so that each heartbeat looks at one partition only.
        self.partitions: list[set[Connection]] = [
            set() for _ in range(max(1, round(transport.heartbeat_s / BEAT_S)))
        ]
        self.occupied = Event()  # set while there are connections: timers wait for it
        self._open = 0
        self._opened = 0
        self._head = 0  # up to here everything has been published
        self._ahead: set[Connection] = set()  # joined, with a `last_seq` above the head
        self._sessions: dict[str, set[Connection]] = {}
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
        to which it has all changes: it is to be brought up to date, and to join again."""
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
        self._note_session(connection)
        metrics.CONNECTIONS_OPENED.inc()
        metrics.CONNECTIONS.set(self._open)

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
        self._forget_session(connection)
        connection.caller = caller
        self._note_session(connection)
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
        """Have a connection that has left brought up to date from `cursor`."""
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
        self._forget_session(connection)
        metrics.CONNECTIONS.set(self._open)
        for callback in self._on_closed:
            callback(connection)

    def _note_session(self, connection: Connection) -> None:
        session_id = connection.caller.session_id
        if session_id is not None:
            self._sessions.setdefault(session_id, set()).add(connection)

    def _forget_session(self, connection: Connection) -> None:
        session_id = connection.caller.session_id
        mates = None if session_id is None else self._sessions.get(session_id)
        if session_id is not None and mates is not None:
            mates.discard(connection)
            if not mates:
                del self._sessions[session_id]

    def session_ids(self) -> list[str]:
        """Return the sessions that have sockets here."""
        return list(self._sessions)

    def close_session(self, session_id: str, code: int, reason: str) -> int:
        """Close the sockets of a session, and return how many there were."""
        found = list(self._sessions.get(session_id, ()))
        for connection in found:
            connection.close(code, reason, awaits_peer=self.transport.expects_replies)
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

    def view(
        self, change: Change, auth: AuthContext, scope: Scope | None = None
    ) -> bytes | None:
        """Return the event as `auth` sees it in a scope, or None (spec/realtime.md §1.4)."""
        if scope is not None:
            rules = scope.find_rules(change.event.entity)
        elif auth.is_admin:
            return change.wire
        else:
            rules = self._rules.get(change.event.entity)
        return None if rules is None else encode_for(change, rules, auth, self.memberships)

    def advance(self, head: int) -> None:
        """Count everything up to `head` as published: nobody joined before."""
        self._head = max(self._head, head)

    def judged_entities(self, changes: Iterable[Change]) -> set[str]:
        """Those of the changes' entities whose rows not all clients but admins see alike."""
        found = set()
        for entity in {change.event.entity for change in changes}:
            rules = self._rules.get(entity)
            if rules is not None and not isinstance(rules.routing, Everyone | Nobody):
                found.add(entity)
        return found

    def publish(self, changes: Sequence[Change]) -> None:
        """Deliver changes in seq order to all connections that joined and may see them."""
        if not changes:
            return
        started_s = self._clock.monotonic_s()
        if self.memberships:
            self._part_concerned(changes)
        if self._groups or self._ahead:
            self._fan_out(changes)
        self._head = max(self._head, changes[-1].seq)
        if self._ahead:
            self._join_those_caught_up()
        for callback in self._on_published:
            callback(changes)
        self.spent_s = self._clock.monotonic_s() - started_s

    def _part_concerned(self, changes: Sequence[Change]) -> None:
        """Take out the connections whose callers the changes open or close other rows for.

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

    def _fan_out(self, changes: Sequence[Change]) -> None:
        started_s = self._clock.monotonic_s()
        for connection in list(self._ahead):
            self._send_ahead(connection, changes)
        common, own, everything = self._partition_changes(changes)
        # The groups that get other frames than the common ones.
        special: set[Group] = set(own)
        if len(common) < len(everything):
            special |= self._groups.admins
        compressed: dict[tuple[bytes, int], bytes] = {}  # by frame and deflate window
        sent_frames = 0
        if common:
            for deflate_window in self._groups.deflate_windows:
                rest = [
                    group.connections for group in self._groups
                    if group.deflate_window == deflate_window and group.scope is None
                    and group not in special
                ]
                if rest:
                    frames = self._compress_frames(common, deflate_window, compressed)
                    sent_frames += _deliver(chain.from_iterable(rest), frames)
        for group in special:
            if group.scope is not None:
                frames = own[group]
            elif group.auth.is_admin:
                frames = everything
            else:
                frames = sorted(common + own[group]) if common else own[group]
            frames = self._compress_frames(frames, group.deflate_window, compressed)
            sent_frames += _deliver(group.connections, frames)
        metrics.MESSAGES_SENT.inc(sent_frames)
        metrics.SYNC_DELIVERY.observe(self._clock.monotonic_s() - started_s)

    def _compress_frames(
        self, frames: _Frames, deflate_window: int, compressed: dict[tuple[bytes, int], bytes]
    ) -> _Frames:
        """Return the frames compressed. `compressed` keeps each for the other groups."""
        if not deflate_window:
            return frames
        result: _Frames = []
        for seq, frame in frames:
            found = compressed.get((frame, deflate_window))
            if found is None:
                found = self.transport.compress(frame, deflate_window)
                compressed[frame, deflate_window] = found
            result.append((seq, found))
        return result

    def _send_ahead(self, connection: Connection, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.seq > connection.last_seq:
                wire = self.view(change, connection.caller.auth, connection.scope)
                if wire is None:
                    continue
                frame = self.transport.frame(change.seq, wire)
                if connection.send(self.transport.compress(frame, connection.deflate_window)):
                    metrics.MESSAGES_SENT.inc()

    def _join_those_caught_up(self) -> None:
        for connection in [c for c in self._ahead if c.last_seq <= self._head]:
            self._ahead.discard(connection)
            self._groups.join(connection)

    def _partition_changes(
        self, changes: Sequence[Change]
    ) -> tuple[_Frames, dict[Group, _Frames], _Frames]:
        """Return the frames for everyone, those for single groups, and all frames."""
        common: _Frames = []
        own: dict[Group, _Frames] = {}
        everything: _Frames = []
        for change in changes:
            seq = change.seq
            whole = self.transport.frame(seq, change.wire)
            everything.append((seq, whole))
            made: dict[bytes, bytes] = {change.wire: whole}
            for group in self._groups.scoped_admins:
                self._add_own(own, group, seq, self.view(change, group.auth, group.scope), made)
            rules = self._rules.get(change.event.entity)
            if rules is None:  # the manifest no longer has this entity: admins only
                continue
            routing = rules.routing
            if isinstance(routing, Everyone):
                common.append((seq, whole))
                candidates: Iterable[Group] = self._groups.find_scoped(change)
            elif isinstance(routing, ByAuth):
                for group in self._groups.find_allowed(change.event.entity, rules):
                    own.setdefault(group, []).append((seq, whole))
                candidates = self._groups.find_scoped(change)
            else:
                candidates = self._groups.find_candidates(change, routing, self.memberships)
            for group in candidates:
                if group.auth.is_admin:
                    continue
                if group.scope is None:
                    wire = encode_for(change, rules, group.auth, self.memberships)
                else:
                    wire = self.view(change, group.auth, group.scope)
                self._add_own(own, group, seq, wire, made)
        return common, own, everything

    def _add_own(
        self, own: dict[Group, _Frames], group: Group, seq: int, wire: bytes | None,
        made: dict[bytes, bytes],
    ) -> None:
        """Add an event to the frames of a group. `made` keeps the frames of its texts."""
        if wire is None:
            return
        frame = made.get(wire)
        if frame is None:
            frame = made[wire] = self.transport.frame(seq, wire)
        own.setdefault(group, []).append((seq, frame))


def _deliver(connections: Iterable[Connection], frames: _Frames) -> int:
    """Send frames to each connection in one write, and return how many frames were sent in all.

    The loop must not change `connections`, and `send` may close one. So connections that did not
    take all bytes get their `send` after the loop.
    """
    data = frames[0][1] if len(frames) == 1 else b"".join([frame for _, frame in frames])
    size_bytes, count = len(data), len(frames)
    reached = 0
    behind: list[Connection] = []
    partly: list[tuple[Connection, int]] = []
    for connection in connections:
        fd = connection.direct_fd
        if fd < 0:
            behind.append(connection)
            continue
        try:
            taken_bytes = write(fd, data)
        except OSError:  # `Connection.send` handles the error
            behind.append(connection)
            continue
        reached += 1
        if taken_bytes != size_bytes:
            partly.append((connection, taken_bytes))
    for connection, taken_bytes in partly:
        connection.wrote(data, taken_bytes, count)
    for connection in behind:
        if connection.send(data, count):
            reached += 1
    return reached * count
