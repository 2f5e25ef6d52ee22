"""Replay: what a client missed, before anything newer (spec/realtime.md §1.7).

A new connection begins at the cursor that the client names, else at the cursor note of its key,
else a little before the head. Pages come from the tail, or from the log where the tail does not
reach; between pages the outbox must empty, so a long replay goes at the client's own pace and
never counts as overflow. The last page and the joining of the hub happen without a switch of
greenlets: what the feed publishes afterwards is exactly what the replay did not have.

Invariants: a client that named its cursor gets every event after it, or `ResyncRequired`. A
cursor note that no longer reaches is treated the same way, since its client believes in it.
Called in the handshake's greenlet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pylon import limits, metrics
from pylon.changelog.change import Change
from pylon.changelog.notes import CursorNotes, note_key
from pylon.errors import ResyncRequired
from workers.hub.connection import Connection
from workers.hub.feed import Feed
from workers.hub.history import History
from workers.hub.hub import Hub

_PAGE_BYTES: Final = limits.OUTBOX_BYTES // 2
_WAIT_S: Final = 1.0  # how often a stuck replay looks whether its connection still lives


class Replay:
    """Starts connections. One for each hub."""

    __slots__ = ("_feed", "_history", "_hub", "_notes")

    def __init__(self, hub: Hub, feed: Feed, history: History, notes: CursorNotes) -> None:
        self._hub = hub
        self._feed = feed
        self._history = history
        self._notes = notes

    def start_cursor(self, named: int | None, session_id: str | None, address: str) -> int:
        """Where a client's events begin.

        Args:
            named: the cursor that the client gave, if it gave one.

        Raises:
            ResyncRequired: that cursor, or the noted one, can no longer be served.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        cursor = named
        if cursor is None:
            cursor = self._notes.get(note_key(session_id, address))
        if cursor is None:
            metrics.RECOVERIES.labels("newest").inc()
            return self._before_newest()
        try:
            self._history.check(cursor)
        except ResyncRequired:
            metrics.RECOVERIES.labels("resync").inc()
            raise
        metrics.RECOVERIES.labels("note" if named is None else "cursor").inc()
        return cursor

    def run(self, connection: Connection, cursor: int) -> None:
        """Send what came after `cursor`, then join the hub. Returns early if it closes.

        Raises:
            ResyncRequired: the log was pruned past the replay while it ran.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        while connection.is_open:
            missed = self._feed.tail.after(cursor)
            page = None if missed is None else _head_of(missed)
            if missed is not None and page is not None and len(page) == len(missed):
                self._send(connection, page)
                connection.last_seq = max(cursor, self._feed.tail.last_seq)
                self._hub.join(connection)
                return
            if page is None:
                page = _head_of(self._history.page(cursor, limits.REPLAY_PAGE_EVENTS))
            if page:
                self._send(connection, page)
                cursor = page[-1].seq
            else:  # the log has nothing more, and the feed will have heard of that soon
                cursor = max(cursor, self._feed.tail.first_covered)
            while connection.is_open and not connection.wait_drained(_WAIT_S):
                continue

    def _send(self, connection: Connection, page: Sequence[Change]) -> None:
        auth = connection.caller.auth
        frames: list[bytes] = []
        for change in page:
            wire = self._hub.view(change, auth)
            if wire is not None:
                frames.append(self._hub.transport.frame(change.seq, wire))
        if frames and connection.send(b"".join(frames), len(frames)):
            metrics.MESSAGES_SENT.inc(len(frames))

    def _before_newest(self) -> int:
        """A cursor that leaves the newest `REPLAY_WITHOUT_NOTE_EVENTS` to be sent."""
        tail = self._feed.tail
        wanted = limits.REPLAY_WITHOUT_NOTE_EVENTS
        newest = tail.after(tail.first_covered) or []
        if len(newest) < wanted:
            return tail.first_covered
        return newest[-wanted].seq - 1


def _head_of(changes: Sequence[Change]) -> Sequence[Change]:
    """As many changes as go in one page: by count, and by bytes (at least one)."""
    size_bytes = 0
    for count, change in enumerate(changes):
        size_bytes += len(change.wire)
        if count == limits.REPLAY_PAGE_EVENTS or (count and size_bytes > _PAGE_BYTES):
            return changes[:count]
    return changes
