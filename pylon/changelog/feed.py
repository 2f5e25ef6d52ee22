"""What comes after a cursor: from memory where possible, from the store otherwise.

An HTTP worker has one `Feed`. Each question first asks the store whether anything has been
committed since (a few microseconds), so an answer always reflects what is committed at that
moment: a client that was told of a write finds it in its next pull.

Invariants: a cursor is either answered without a hole or refused with ResyncRequired
(spec/realtime.md §1.4, design.md §4 "Epochs"); an answer is bounded in events and bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from pylon import limits
from pylon.changelog.change import Change
from pylon.changelog.current import relate_to_store
from pylon.changelog.tail import Tail
from pylon.errors import ResyncRequired
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.interface import Reader, Store

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
        if since > self._head or any(low < since < high for low, high in self._void):
            raise _resync(since, self._head + 1)
        changes = self._tail.after(since, limit, _ANSWER_BYTES)
        if changes is None:
            oldest = self._store.point(lambda reader: reader.oldest_seq())
            if since + 1 < oldest:
                raise _resync(since, oldest)
            changes = _bounded(self._read(since, limit))
        return changes, self._head

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
        version = self._store.point(_data_version)
        if version == self._version:
            return
        # The version is taken first: what is committed from here on is noticed next time.
        head = self._store.point(lambda reader: reader.head_seq())
        if self._version is None or head - self._tail.last_seq > limits.PULL_PAGE_EVENTS:
            self._restart(head)
        else:
            self._catch_up(head)
        self._void = self._store.point(lambda reader: reader.void_ranges())
        self._head = max(head, self._tail.last_seq)
        self._version = version

    def _restart(self, head: int) -> None:
        """Too much was missed to read it all: begin again with the newest events."""
        newest = self._store.point(lambda reader: reader.newest_events(limits.PULL_PAGE_EVENTS))
        self._tail = Tail(newest[0].seq - 1 if newest else head)
        if newest:
            self._tail.append(ChangeBatch(newest[0].seq - 1, newest))
        self._tail.advance(head)

    def _catch_up(self, head: int) -> None:
        while self._tail.last_seq < head:
            last = self._tail.last_seq
            events = self._events(last, _PAGE_EVENTS)
            if not events:
                self._tail.advance(head)
                return
            self._tail.append(ChangeBatch(last, events))

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


def _data_version(reader: Reader) -> int:
    return reader.data_version()


def _bounded(changes: list[Change]) -> list[Change]:
    """As many of the first changes as fit into an answer, and one at least."""
    size_bytes = 0
    for count, change in enumerate(changes):
        size_bytes += change.size_bytes
        if size_bytes > _ANSWER_BYTES and count:
            return changes[:count]
    return changes


def _resync(since: int, oldest_seq: int) -> ResyncRequired:
    return ResyncRequired(
        f"cursor last_seq={since} is older than the oldest retained seq={oldest_seq}; "
        "client must re-sync",
        oldest_seq=oldest_seq,
    )
