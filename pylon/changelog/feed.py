"""What comes after a cursor: from memory where possible, from the store otherwise.

An HTTP worker has one `Feed`. Each question first asks the store whether anything has been
committed since (a few microseconds), so an answer always reflects what is committed at that
moment: a client that was told of a write finds it in its next pull.

Invariants: a cursor is either answered without a hole or refused with ResyncRequired
(spec/realtime.md §1.4, design.md §4 "Epochs"); an answer is bounded in events and bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

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
        self._store = store
        self._version: int | None = None
        self._head = 0
        self._void: list[tuple[int, int]] = []
        self._tail = Tail(0)
        self._refresh()

    def head(self) -> int:
        """The head as committed at this moment."""
        self._refresh()
        return self._head

    def after(self, since: int, limit: int) -> tuple[list[Change], int]:
        """The first changes above `since`, at most `limit`, fewer when they are large; and the
        head. None are left out between the last one and the next answer.

        Raises:
            ResyncRequired: the cursor is ahead of the head, void, or older than what is kept.
        """
        self._refresh()
        head = self._head  # reads below may switch greenlets, and others may move it on
        span = Span(head, 0, self._void)  # the oldest seq costs a read: later, if at all
        if span.is_void(since):
            raise span.resync(since)
        changes = self._tail.after(since, limit, _ANSWER_BYTES)
        if changes is None:
            oldest = self._store.point(lambda reader: reader.oldest_seq())
            if since + 1 < oldest:
                raise Span(head, oldest, ()).resync(since)
            changes = _bounded(self._read(since, limit))
        return changes, head

    def relate(self, changes: Sequence[Change], entities: Collection[str]) -> None:
        """Let changes of `entities`, as `after` gave them, lead to the newest of their rows.

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        if not changes:
            return
        held = self._tail.after(changes[0].seq - 1, 1)
        if held and held[0] is changes[0]:
            self._tail.relate()
        else:
            relate_to_store(self._store, changes, entities)

    def _refresh(self) -> None:
        version = self._store.point(lambda reader: reader.data_version())
        if version == self._version:
            return
        # The version is taken first: what is committed from here on is noticed next time.
        news = read_settled(
            self._store, self._read_news, lambda: (self._tail, self._tail.last_seq)
        )
        if news.is_restart:
            self._tail = Tail(news.pages[0][0].seq - 1 if news.pages else news.head)
        for page in news.pages:
            self._tail.append(ChangeBatch(self._tail.last_seq, page))
        self._tail.advance(news.head)
        self._void = news.void_ranges
        self._head = max(news.head, self._tail.last_seq)
        self._version = version

    def _read_news(self, reader: Reader) -> _News:
        """What the tail has to learn, as it is now."""
        head, last = reader.head_seq(), self._tail.last_seq
        void_ranges = reader.void_ranges()
        if self._version is None or head - last > limits.PULL_PAGE_EVENTS:
            # Too much was missed to read it all: begin again with the newest events.
            newest = reader.newest_events(limits.PULL_PAGE_EVENTS)
            return _News(head, void_ranges, [newest] if newest else [], is_restart=True)
        pages: list[list[ChangeEvent]] = []
        while last < head and (page := reader.events_after(last, _PAGE_EVENTS)):
            pages.append(page)
            last = page[-1].seq
        return _News(head, void_ranges, pages, is_restart=False)

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
        return self._store.point(lambda reader: reader.events_after(seq, limit))


class _News(NamedTuple):
    """What was committed since the last look."""

    head: int
    void_ranges: list[tuple[int, int]]
    pages: list[list[ChangeEvent]]
    is_restart: bool


def _bounded(changes: list[Change]) -> list[Change]:
    """As many of the first changes as fit into an answer, and one at least."""
    size_bytes = 0
    for count, change in enumerate(changes):
        size_bytes += change.size_bytes
        if size_bytes > _ANSWER_BYTES and count:
            return changes[:count]
    return changes
