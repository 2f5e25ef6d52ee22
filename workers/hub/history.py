"""History: reads the change log in pages, and checks whether a cursor still reaches.

Invariants: a page is returned only if the log still has everything after the cursor; otherwise
`ResyncRequired` is raised. The check follows the read, so it notices pruning in between. Called by
`workers.hub.feed`, `replay` and `start_cursors`. `check` and `span` switch greenlets only on a
store without local reads (`Store.point`); every other call may.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pylon.changelog.change import Change
from pylon.changelog.current import relate_to_store
from pylon.changelog.span import Span, read_span
from pylon.storage.events import ChangeEvent
from pylon.storage.interface import Reader, Store


class History:
    """Reads the change log through the worker's store."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    def head(self) -> int:
        """Return the highest seq in use."""
        return self._store.point(lambda reader: reader.head_seq())

    def page(self, cursor: int, limit: int) -> list[Change]:
        """Return the first `limit` changes after `cursor`.

        Raises:
            ResyncRequired: the log no longer has all of them, or `cursor` is void.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """

        def read(reader: Reader) -> list[ChangeEvent]:
            events = reader.events_after(cursor, limit)
            read_span(reader).check(cursor)
            return events

        return [Change(event) for event in self._store.scan(read)]

    def relate(self, changes: Sequence[Change], entities: Collection[str]) -> None:
        """Set the present row of changes of `entities` (`Change.newest`).

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        relate_to_store(self._store, changes, entities)

    def newest(self, limit: int) -> list[ChangeEvent]:
        """Return the newest events, ascending."""
        return self._store.scan(lambda reader: reader.newest_events(limit))

    def check(self, cursor: int) -> None:
        """Raise if the log lacks events after `cursor`.

        Raises:
            ResyncRequired: the cursor is ahead of the log, older than the log, or void.
        """
        self._store.point(lambda reader: read_span(reader).check(cursor))

    def span(self) -> Span:
        """Return the range of the change log."""
        return self._store.point(read_span)
