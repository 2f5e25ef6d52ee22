"""Changes after a cursor: from memory where possible, else from the store.

An HTTP worker has one `Feed`. Each call first compares the store's data version (a few
microseconds) and reads new commits. So a client whose write was acknowledged finds it in its next
pull.

Invariants: `changes_after` returns all changes behind a cursor, without a gap, or raises
ResyncRequired (spec/realtime.md §1.4, design.md §4 "Epochs"). Bounds: the caller's `limit`, and
about `limits.BATCH_BYTES` for each call. Called by `pylon.changelog.pull` and `pylon.api.sync`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from gevent.lock import BoundedSemaphore

from pylon import limits
from pylon.changelog.change import Change
from pylon.changelog.current import relate_to_store
from pylon.changelog.span import Span
from pylon.changelog.tail import Tail
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.interface import Reader, Store, read_settled

_PAGE_EVENTS: Final = 100
_ANSWER_BYTES: Final = limits.BATCH_BYTES


class Feed:
    """Reads the change log of `store`. One for each process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._version: int | None = None
        self._head = 0
        self._void: list[tuple[int, int]] = []
        self._tail = Tail(0)
        self._refreshing = BoundedSemaphore(1)
        self._refresh()

    def head(self) -> int:
        """Return the head that is committed now."""
        self._refresh()
        return self._head

    def changes_after(self, since: int, limit: int) -> tuple[list[Change], int]:
        """Return the first changes above `since`, and the head.

        Args:
            limit: the largest number of changes. The call returns fewer when they are large.

        Raises:
            ResyncRequired: the cursor is ahead of the head, void, or older than the log.
        """
        self._refresh()
        head = self._head  # reads below may switch greenlets, and other calls may advance it
        span = Span(head, 0, self._void)  # the oldest seq costs a read: later, if at all
        if span.is_void(since):
            raise span.resync(since)
        changes = self._tail.changes_after(since, limit, _ANSWER_BYTES)
        if changes is None:
            oldest = self.store.point(lambda reader: reader.oldest_seq())
            if since + 1 < oldest:
                raise Span(head, oldest, ()).resync(since)
            changes = _bounded(self._read(since, limit))
        return changes, head

    def relate(self, changes: Sequence[Change], entities: Collection[str]) -> None:
        """Set `Change.newer` of changes of `entities` that `changes_after` has returned.

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        if not changes:
            return
        held = self._tail.changes_after(changes[0].seq - 1, 1)
        if held and held[0] is changes[0]:
            self._tail.relate()
        else:
            relate_to_store(self.store, changes, entities)

    def _refresh(self) -> None:
        seen = self._version
        version = self.store.point(lambda reader: reader.data_version())
        if version == self._version:
            return
        # PERF: with reads that wait, 64 pulls after one commit read it 64 times: 17 MiB of heap.
        with self._refreshing:
            if self._version != seen:  # another call has read meanwhile
                version = self.store.point(lambda reader: reader.data_version())
            if version != self._version:
                self._read_commits(version)

    def _read_commits(self, version: int) -> None:
        """Bring the tail to a version of the store, or to a later one."""
        # The version is read first, so the next call sees every commit from here on.
        unread = read_settled(
            self.store, self._read_unread, lambda: (self._tail, self._tail.last_seq)
        )
        if unread.is_restart:
            self._tail = Tail(unread.pages[0][0].seq - 1 if unread.pages else unread.head)
        for page in unread.pages:
            self._tail.append(ChangeBatch(self._tail.last_seq, page))
        self._tail.advance(unread.head)
        self._void = unread.void_ranges
        self._head = max(unread.head, self._tail.last_seq)
        self._version = version

    def _read_unread(self, reader: Reader) -> _Unread:
        """Read the commits that the tail lacks."""
        head, last = reader.head_seq(), self._tail.last_seq
        void_ranges = reader.void_ranges()
        pages: list[list[ChangeEvent]] = []
        if self._version is not None and Span(head, 0, void_ranges).is_void(last):
            # The tail holds events of a history that the store has lost.
            newest = reader.newest_events(limits.PULL_PAGE_EVENTS)
            return _Unread(head, void_ranges, [newest] if newest else [], is_restart=True)
        max_pages = 0 if self._version is None else limits.PULL_PAGE_EVENTS // _PAGE_EVENTS
        while last < head and (page := reader.events_after(last, _PAGE_EVENTS)):
            if len(pages) == max_pages:
                # Too many events are missing: begin a new tail with the newest ones.
                newest = reader.newest_events(limits.PULL_PAGE_EVENTS)
                return _Unread(head, void_ranges, [newest], is_restart=True)
            pages.append(page)
            last = page[-1].seq
        if self._version is None:
            return _Unread(head, void_ranges, [], is_restart=True)
        return _Unread(head, void_ranges, pages, is_restart=False)

    def _read(self, since: int, limit: int) -> list[Change]:
        changes: list[Change] = []
        size_bytes = 0
        while len(changes) < limit and size_bytes < _ANSWER_BYTES:
            page = self._events(since, min(_PAGE_EVENTS, limit - len(changes)))
            if not page:
                break
            changes += [Change(e) for e in page]
            since = changes[-1].seq
            size_bytes = sum(c.size_bytes for c in changes)
        return changes

    def _events(self, seq: int, limit: int) -> list[ChangeEvent]:
        return self.store.point(lambda reader: reader.events_after(seq, limit))


class _Unread(NamedTuple):
    """The commits since the last refresh."""

    head: int
    void_ranges: list[tuple[int, int]]
    pages: list[list[ChangeEvent]]
    is_restart: bool


def _bounded(changes: list[Change]) -> list[Change]:
    """Return the first changes that fit into `_ANSWER_BYTES`, and at least one."""
    size_bytes = 0
    for count, change in enumerate(changes):
        size_bytes += change.size_bytes
        if size_bytes > _ANSWER_BYTES and count:
            return changes[:count]
    return changes
