"""History: reads the change log in pages, and checks whether a cursor still reaches.

Invariants: a page is returned only if the log still has everything after the cursor; otherwise
`ResyncRequired` is raised. The check follows the read, so it notices pruning in between. Called by
`workers.hub.feed`, `replay` and `start_cursors`; `check` and `span` never switch
greenlets, since a replay calls them in libev's callbacks; every other call may.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pylon.changelog.change import Change
from pylon.changelog.current import relate_to_store
from pylon.errors import ResyncRequired
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
            _check(reader, cursor)
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
        self._store.point_inline(lambda reader: _check(reader, cursor))

    def span(self) -> Span:
        """Return the range of the change log."""
        return self._store.point_inline(_span)


@dataclass(frozen=True, slots=True)
class Span:
    """The oldest seq and the head of the log. `oldest` is head + 1 if the log is empty."""

    head: int
    oldest: int
    void_ranges: Sequence[tuple[int, int]]

    def check(self, cursor: int) -> None:
        """Raise ResyncRequired if the log lacks events after `cursor`."""
        if self._is_void(cursor) or cursor + 1 < self.oldest:
            raise self.resync(cursor)

    def resync(self, cursor: int, *, is_lost: bool = False) -> ResyncRequired:
        """Return the refusal of a cursor. `is_lost`: its history may be lost."""
        # As in a pull: no retained event continues a void cursor.
        oldest = self.head + 1 if is_lost or self._is_void(cursor) else self.oldest
        return ResyncRequired(
            f"cursor last_seq={cursor} is older than the oldest retained seq={oldest}; "
            "client must re-sync",
            oldest_seq=oldest,
        )

    def _is_void(self, cursor: int) -> bool:
        return cursor > self.head or any(low < cursor < high for low, high in self.void_ranges)


def _span(reader: Reader) -> Span:
    return Span(reader.head_seq(), reader.oldest_seq(), reader.void_ranges())


def _check(reader: Reader, cursor: int) -> None:
    _span(reader).check(cursor)
