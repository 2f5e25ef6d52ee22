"""Replay: sends a client what it missed, before anything newer (spec/realtime.md §1.7).

A new connection begins at the cursor that the client names, else at the one of `start_cursors`.
Pages come from the tail, or from the log where the tail does not reach. The outbox must empty
between pages, so a long replay goes at the client's own pace and never counts as overflow. No
greenlet switch lies between the last page and the entry into the hub, so the feed publishes exactly
the events that the replay did not have.

After a worker's death all of its clients reconnect at once, with the same few cursors. So `_Shared`
keeps what was read, judged and encoded for one of them, as long as nothing new is published. Pages
of the log that all clients see alike do not change; `_Frames` keeps their frames longer. Each has a
bound of limits.REPLAY_CACHE_BYTES.

An image that a client may read as it was, but not as the row is now, is left out: the event that
took the row out of its view follows (`pylon.changelog.change`).

Invariants: a client that named its cursor gets every event after it, or `ResyncRequired`. So does a
client with a cursor hint that the log no longer reaches, because the client relies on it. Called by
`workers.hub.admission`: `run_at_once` in the hub's greenlet, `run` in a greenlet of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.changelog.hints import hint_key
from pylon.changelog.scope import Scope
from pylon.errors import ResyncRequired
from workers.hub.connection import Connection
from workers.hub.feed import Feed
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.hub.loop_yield import yield_to_loop
from workers.hub.related_replay import RelatedReplay
from workers.hub.start_cursors import StartCursors

_PAGE_BYTES: Final = limits.OUTBOX_BYTES // 2
_PAGES_AT_ONCE: Final = 4  # more would delay other clients
_ENTRY_BYTES: Final = 200  # of an entry of a dictionary with its keys, about
_Viewer = tuple[AuthContext, Scope | None]

_WAIT_S: Final = 1.0  # between two checks of a waiting replay that its connection is open


class _Shared:
    """Pages and frames that replays share while the head of the feed stands still."""

    __slots__ = ("_bytes", "_encoded", "_head", "_pages", "_reachable")

    def __init__(self) -> None:
        self._head = -1
        self._clear()

    def _clear(self) -> None:
        self._bytes = 0
        self._reachable: set[int] = set()
        self._pages: dict[int, Sequence[Change]] = {}
        self._encoded: dict[tuple[int, int, _Viewer | None, int], tuple[bytes, int]] = {}

    def at(self, head: int) -> _Shared:
        """Itself, without what another head had."""
        if head != self._head or self._bytes > limits.REPLAY_CACHE_BYTES:
            self._clear()
            self._head = head
        return self

    def is_reachable(self, cursor: int) -> bool:
        """Return whether the log is known to reach back to `cursor`."""
        return cursor in self._reachable

    def reached(self, cursor: int) -> None:
        """Note that the log reaches back to `cursor`."""
        self._bytes += _ENTRY_BYTES
        self._reachable.add(cursor)

    def page(self, cursor: int) -> Sequence[Change] | None:
        """Return the page of the log that follows `cursor`."""
        return self._pages.get(cursor)

    def keep_page(self, cursor: int, page: Sequence[Change]) -> None:
        """Keep a page that was read from the log."""
        self._bytes += _ENTRY_BYTES + sum(change.size_bytes for change in page)
        self._pages[cursor] = page

    def encoded(
        self, page: Sequence[Change], viewer: _Viewer | None, deflate_window: int
    ) -> tuple[bytes, int] | None:
        """Return the frames of a page for a viewer, or for all but admins, and their number."""
        return self._encoded.get((page[0].seq, page[-1].seq, viewer, deflate_window))

    def keep_encoded(
        self, page: Sequence[Change], viewer: _Viewer | None, deflate_window: int, data: bytes,
        frames: int,
    ) -> None:
        """Keep the frames of a page."""
        self._bytes += _ENTRY_BYTES + len(data)
        self._encoded[page[0].seq, page[-1].seq, viewer, deflate_window] = data, frames


class _Page(msgspec.Struct, frozen=True):
    """The frames of a page of the log."""

    data: bytes
    frames: int
    last_seq: int


class _Frames:
    """Pages of the log that do not depend on the reader or the time, except for admins."""

    __slots__ = ("_bytes", "_pages")

    def __init__(self) -> None:
        self._bytes = 0
        self._pages: dict[tuple[int, int, bool], _Page] = {}

    def find(self, cursor: int, deflate_window: int, *, is_admin: bool) -> _Page | None:
        """Return the page that follows `cursor`."""
        return self._pages.get((cursor, deflate_window, is_admin))

    def keep(self, cursor: int, deflate_window: int, page: _Page, *, is_admin: bool) -> None:
        """Keep the frames of a page."""
        if self._bytes > limits.REPLAY_CACHE_BYTES:
            self._pages.clear()
            self._bytes = 0
        self._bytes += _ENTRY_BYTES + len(page.data)
        self._pages[cursor, deflate_window, is_admin] = page


class Replay:
    """Starts the connections of one hub."""

    __slots__ = ("_feed", "_frames", "_history", "_hub", "_related", "_shared", "_starts")

    def __init__(
        self, hub: Hub, feed: Feed, history: History, starts: StartCursors,
        related: RelatedReplay | None = None,
    ) -> None:
        """Args: `related` serves the callers whose read rules ask other rows."""
        self._hub = hub
        self._feed = feed
        self._history = history
        self._starts = starts
        self._related = related
        self._shared = _Shared()
        self._frames = _Frames()

    def start_cursor(self, named: int | None, family: str | None, address: str) -> int:
        """Return the cursor at which a client's events begin. Switches as `History.check` does.

        Args:
            named: the cursor that the client gave, if it gave one.

        Raises:
            ResyncRequired: the log lacks events after that cursor or after the hint.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        cursor = named
        key = hint_key(family, address)
        if cursor is None:
            cursor = self._starts.find_hint(key)
            if cursor is None:
                return min(self._starts.find_window(key), self._before_newest())
        head = self._feed.tail.last_seq
        if not self._shared.at(head).is_reachable(cursor):
            try:
                self._history.check(cursor)
            except ResyncRequired:
                if named is None and not self._starts.refuse_hint(key):
                    return self._starts.find_window(key)
                metrics.RECOVERIES.labels("resync").inc()
                raise
            if self._feed.tail.last_seq == head:
                self._shared.at(head).reached(cursor)
        metrics.RECOVERIES.labels("hint" if named is None else "cursor").inc()
        return cursor

    def run_at_once(self, connection: Connection, cursor: int) -> int | None:
        """Run without blocking, as far as possible: what memory holds, while the client's
        socket takes it.

        Returns:
            None when the connection has joined the hub; else the cursor that `run` goes on from.
        """
        tail = self._feed.tail
        if self._related is not None and self._related.is_for(connection.caller.auth):
            return None if self._related.finish_at_once(connection, cursor) else cursor
        for _ in range(_PAGES_AT_ONCE):
            connection.last_seq = cursor
            missed = tail.changes_after(cursor, limits.REPLAY_PAGE_EVENTS, _PAGE_BYTES)
            if missed is None:
                return cursor
            if missed:
                self._send(connection, missed)
                cursor = missed[-1].seq
            if not tail.changes_after(cursor, 1):
                connection.last_seq = max(cursor, tail.last_seq)
                self._hub.join(connection)
                return None
            if connection.outbox_bytes:
                return cursor
        return cursor

    def run(self, connection: Connection, cursor: int) -> None:
        """Send what came after `cursor`, then join the hub. Returns early if it closes.

        Raises:
            ResyncRequired: the log was pruned past the replay while it ran.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        while connection.is_open:
            # Looked at for each page: a socket may change its identity meanwhile.
            if self._related is not None and self._related.is_for(connection.caller.auth):
                self._related.run(connection, cursor)
                return
            tail = self._feed.tail
            missed = tail.changes_after(cursor, limits.REPLAY_PAGE_EVENTS, _PAGE_BYTES)
            if missed is None:
                # Of the time before the read: the tail may lose its oldest changes meanwhile, and
                # the log that was read may lack them.
                covered = tail.first_covered
                last_seq = self._send_logged(connection, cursor)
                cursor = max(cursor, covered) if last_seq is None else last_seq
            else:
                if missed:
                    self._send(connection, missed)
                    cursor = missed[-1].seq
                if not tail.changes_after(cursor, 1):
                    connection.last_seq = max(cursor, tail.last_seq)
                    self._hub.join(connection)
                    return
            connection.last_seq = cursor
            yield_to_loop()  # a page that is known, to a socket that takes it, need not switch
            while connection.is_open and not connection.wait_drained(_WAIT_S):
                continue

    def _send_logged(self, connection: Connection, cursor: int) -> int | None:
        """Send the page of the log after `cursor`. Return its last seq; None if it is empty."""
        auth, deflate_window = connection.caller.auth, connection.deflate_window
        known = None
        if connection.scope is None:
            known = self._frames.find(cursor, deflate_window, is_admin=auth.is_admin)
        if known is None:
            page = self._logged(cursor)
            if not page:
                return None
            data, frames = self._encoded(page, connection)
            known = _Page(data, frames, page[-1].seq)
            if connection.scope is None and not self._hub.fan_out.judged_entities(page):
                self._frames.keep(cursor, deflate_window, known, is_admin=auth.is_admin)
        if known.frames and connection.send(known.data, known.frames):
            metrics.MESSAGES_SENT.inc(known.frames)
        return known.last_seq

    def _logged(self, cursor: int) -> Sequence[Change]:
        head = self._feed.tail.last_seq
        page = self._shared.at(head).page(cursor)
        if page is None:
            page = _head_of(self._history.page(cursor, limits.REPLAY_PAGE_EVENTS))
            self._history.relate(page, self._hub.fan_out.judged_entities(page))
            self._shared.at(head).keep_page(cursor, page)
        return page

    def _send(self, connection: Connection, page: Sequence[Change]) -> None:
        data, frames = self._encoded(page, connection)
        if frames and connection.send(data, frames):
            metrics.MESSAGES_SENT.inc(frames)

    def _encoded(self, page: Sequence[Change], connection: Connection) -> tuple[bytes, int]:
        auth, scope = connection.caller.auth, connection.scope
        deflate_window = connection.deflate_window
        shared = self._shared.at(self._feed.tail.last_seq)
        known = shared.encoded(page, (auth, scope), deflate_window)
        if known is None and scope is None and not auth.is_admin:
            known = shared.encoded(page, None, deflate_window)
        if known is not None:
            return known
        is_judged = bool(self._hub.fan_out.judged_entities(page))
        if is_judged:
            self._feed.tail.relate()
        is_own = is_judged or auth.is_admin or scope is not None
        viewer = (auth, scope) if is_own else None
        frames = [
            self._hub.transport.frame(change.seq, wire)
            for change in page
            if (wire := self._hub.fan_out.view(change, auth, scope)) is not None
        ]
        if deflate_window:
            frames = [self._hub.transport.compress(frame, deflate_window) for frame in frames]
        data = b"".join(frames)
        shared.keep_encoded(page, viewer, deflate_window, data, len(frames))
        return data, len(frames)

    def _before_newest(self) -> int:
        """Return the cursor before the newest `REPLAY_WITHOUT_HINT_EVENTS` events."""
        tail = self._feed.tail
        wanted = limits.REPLAY_WITHOUT_HINT_EVENTS
        newest = tail.changes_after(tail.first_covered) or []
        if len(newest) < wanted:
            return tail.first_covered
        return newest[-wanted].seq - 1


def _head_of(changes: Sequence[Change]) -> Sequence[Change]:
    """Return as many changes as fit into one page by count and bytes, at least one."""
    size_bytes = 0
    for count, change in enumerate(changes):
        size_bytes += len(change.wire)
        if count == limits.REPLAY_PAGE_EVENTS or (count and size_bytes > _PAGE_BYTES):
            return changes[:count]
    return changes
