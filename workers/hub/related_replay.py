"""Replay for callers whose read rules ask other rows (``exists(...)``).

It brings one connection from its cursor to the head of the log, in steps that are each a read of
one commit (`pylon.changelog.readable_changes`): a page of the log, or a difference.

A connection joins the hub by a last short step that switches no greenlets: it sends what is left,
and brings the caller's sets of keys (`workers.hub.memberships`). With local reads it reads both at
one commit. Without, it has the sets of the commit that it read last, and takes the changes since
then from the feed's tail; a related change among them needs another read first.

Invariants: as for `replay`. Bounds: those of a difference; a client that is further behind must
resync. Called by `workers.hub.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.changelog.readable_changes import has_related_change, read_changes, visible_changes
from pylon.changelog.scope import Scope
from pylon.policy.rules import RuleSet
from pylon.rates import subject_of
from pylon.storage.interface import Reader, Store
from workers.hub.connection import Connection
from workers.hub.feed import Feed
from workers.hub.hub import Hub
from workers.hub.loop_yield import yield_to_loop
from workers.hub.memberships import KeySets

_LAST_EVENTS: Final = 50  # that the step which switches no greenlets reads
_PAGE_BYTES: Final = limits.OUTBOX_BYTES // 2
_PAGE_FRAMES: Final = limits.OUTBOX_FRAMES // 2
_WAIT_S: Final = 1.0  # between two checks of a waiting replay that its connection is open

_Frame = tuple[int, bytes]  # seq, text
T = TypeVar("T")


class _Step(NamedTuple):
    """The next frames of a connection, and the cursor behind them.

    The caller had no related change up to `checked_to`, or the step has it. `sets` are those of
    the step's commit, if it read them.
    """

    texts: list[_Frame]
    cursor: int
    checked_to: int
    sets: KeySets | None = None


class RelatedReplay:
    """Starts and restarts the connections of one hub whose callers' rules ask other rows."""

    __slots__ = ("_feed", "_hub", "_rules", "_store")

    def __init__(self, hub: Hub, rules: RuleSet, store: Store, feed: Feed) -> None:
        self._hub = hub
        self._rules = rules
        self._store = store
        self._feed = feed

    def is_for(self, auth: AuthContext) -> bool:
        """Whether the caller's rules ask other rows."""
        return bool(self._rules.related) and not auth.is_admin

    def finish_at_once(
        self, connection: Connection, cursor: int, sets: KeySets | None = None
    ) -> bool:
        """Send what came after `cursor` and join the hub, if that is little. Never switches.

        Args:
            sets: those at `cursor`, if they were read.

        Returns:
            Whether the connection has joined, or is closed.
        """
        if not self._store.local_reads:
            return self._finish_from_memory(connection, cursor, sets)
        rules = self._rules_of(connection)
        read = partial(self._read_last, rules, connection.caller.auth, cursor, sets)
        step = self._store.point_inline(partial(_at_one_commit, read=read))
        if step is None or (step.texts and connection.outbox_bytes):
            return False
        self._send(connection, step.texts)
        if connection.is_open:
            connection.last_seq = step.cursor
            connection.is_cursor_exact = True
            self._hub.join(connection, step.sets)
        return True

    def _finish_from_memory(
        self, connection: Connection, cursor: int, sets: KeySets | None
    ) -> bool:
        """See `finish_at_once`. Reads nothing: the tail has what came after `cursor`."""
        auth, memberships = connection.caller.auth, self._hub.memberships
        if sets is None and not memberships.has_sets(auth):
            return False
        tail = self._feed.tail
        missed = tail.changes_after(cursor, limits.REPLAY_PAGE_EVENTS + 1, _PAGE_BYTES)
        if (
            missed is None or (missed and connection.outbox_bytes)
            or tail.changes_after(missed[-1].seq if missed else cursor, 1)
            or memberships.is_concerned(auth, missed)
            or memberships.lacks_set(auth, missed, sets)
        ):
            return False
        tail.relate()
        memberships.hold(auth, sets)  # what follows is judged by these sets
        try:
            self._send(connection, [
                (change.seq, text) for change in missed
                if (text := self._hub.fan_out.view(change, auth, connection.scope)) is not None
            ])
            if connection.is_open:
                connection.last_seq = max(cursor, tail.last_seq)
                connection.is_cursor_exact = True
                self._hub.join(connection)
        finally:
            memberships.release(auth)
        return True

    def run(self, connection: Connection, cursor: int) -> None:
        """Send what came after `cursor`, then join the hub. Returns early if it closes.

        Raises:
            ResyncRequired: the log no longer reaches back, or the difference is too large.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        viewer = _viewer_of(connection)
        checked_to = cursor
        sets: KeySets | None = None
        while connection.is_open:
            if viewer != _viewer_of(connection):
                # The socket has another identity or scope now: what was read was for the old one.
                viewer, checked_to, sets = _viewer_of(connection), cursor, None
            if self.finish_at_once(connection, cursor, sets):
                return
            auth = connection.caller.auth
            read = partial(
                self._read, self._rules_of(connection), auth, cursor, checked_to,
                connection.is_cursor_exact,
            )
            step = self._store.scan(
                partial(_at_one_commit, read=read), caller=subject_of(auth, connection.address)
            )
            if viewer != _viewer_of(connection):
                continue
            cursor, checked_to, sets = step.cursor, step.checked_to, step.sets
            for page in _pages(step.texts):
                self._send(connection, page)
                while connection.is_open and not connection.wait_drained(_WAIT_S):
                    continue
            yield_to_loop()

    def _read(
        self, rules: RuleSet, auth: AuthContext, cursor: int, checked_to: int, is_exact: bool,
        reader: Reader,
    ) -> _Step:
        """Read one step, with the caller's sets at the last one."""
        found = read_changes(
            reader, rules, auth, cursor, limits.REPLAY_PAGE_EVENTS, checked_to, is_exact
        )
        if found.is_difference:
            metrics.RECOVERIES.labels("difference").inc()
        is_last = found.cursor == found.head
        sets = self._hub.memberships.read(reader, auth, limits.MEMBERSHIP_KEYS) if is_last else None
        return _Step(_texts(found.changes), found.cursor, found.head, sets)

    def _read_last(
        self, rules: RuleSet, auth: AuthContext, cursor: int, sets: KeySets | None,
        reader: Reader,
    ) -> _Step | None:
        """Read the step after which a connection joins; None if it is too long for that."""
        events = reader.events_after(cursor, _LAST_EVENTS + 1)
        if len(events) > _LAST_EVENTS or has_related_change(reader, rules, auth, cursor):
            return None
        texts = _texts(visible_changes(reader, rules, auth, list(map(Change, events))))
        if sum(len(text) for _, text in texts) > _PAGE_BYTES:
            return None
        memberships = self._hub.memberships
        if sets is None and not memberships.has_sets(auth):
            sets = memberships.read(reader, auth, limits.MEMBERSHIP_KEYS_INLINE)
            if sets is None:
                return None
        head = max(reader.head_seq(), cursor)
        return _Step(texts, head, head, sets)

    def _rules_of(self, connection: Connection) -> RuleSet:
        """Return the rules of the part of the data that the connection asks for."""
        return self._rules if connection.scope is None else connection.scope.rules

    def _send(self, connection: Connection, texts: Sequence[_Frame]) -> None:
        transport = self._hub.transport
        frames = [
            transport.compress(transport.frame(seq, text), connection.deflate_window)
            for seq, text in texts
        ]
        if frames and connection.send(b"".join(frames), len(frames)):
            metrics.MESSAGES_SENT.inc(len(frames))


def _viewer_of(connection: Connection) -> tuple[AuthContext, Scope | None]:
    return connection.caller.auth, connection.scope


def _texts(changes: Sequence[Change]) -> list[_Frame]:
    return [(change.seq, change.wire) for change in changes]


def _at_one_commit(reader: Reader, read: Callable[[Reader], T]) -> T:
    return reader.at_one_commit(lambda: read(reader))


def _pages(texts: Sequence[_Frame]) -> list[list[_Frame]]:
    """Return the texts in pieces that an empty outbox takes."""
    pages: list[list[_Frame]] = []
    size_bytes = 0
    for frame in texts:
        if not pages or size_bytes > _PAGE_BYTES or len(pages[-1]) == _PAGE_FRAMES:
            pages.append([])
            size_bytes = 0
        pages[-1].append(frame)
        size_bytes += len(frame[1])
    return pages
