"""List sizes: whether a caller's read policy lists too many rows for a page to begin with them.

SQL of an `Exists` begins with the list of the caller's rows (`predicate_sql`): a member of three
rooms gets a page from the messages of these rooms. But all of them have to be sorted for a page.
A member of all rooms gets a page sooner if SQLite walks through the messages in the order of the
page and looks the membership of each up. PERF: the first 50 of 100,000 messages in 1,000 rooms
took 0.3 ms from the list and 4 ms by look-ups for a member of 3 rooms, 117 and 0.1 ms for a member
of all.

So the reader counts the listed rows in their index, up to `_MANY`, and remembers for `_TTL_S`
whether there are more. The answer never changes which rows a query selects. Bound: the answers for
`limits.READ_RULES_KEPT` callers. Called by `reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from pylon import limits
from pylon.clock import Clock
from pylon.query.predicate import And, Exists, Guarded, Or, Predicate
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.predicate_sql import listed_field
from pylon.storage.sqlite.reads import EntityReads

_MANY: Final = 10_000
_TTL_S: Final = 10

CountUpTo = Callable[[str, SqlClause, int], int]


class ListSizes:
    """The sizes of lists that one reader has counted."""

    __slots__ = ("_clock", "_count", "_known")

    def __init__(self, count: CountUpTo, clock: Clock) -> None:
        """Args: `count` counts the rows of a quoted table up to a number."""
        self._count = count
        self._clock = clock
        # By entity and condition: whether it lists many rows, and until when that is believed.
        self._known: dict[tuple[str, Predicate], tuple[bool, float]] = {}

    def lists_many(self, reads: EntityReads, where: Predicate) -> bool:
        """Whether a list that a query may begin with leads to more than `_MANY` rows.

        Raises: what the count raises.
        """
        return any(self._is_long(reads, asked) for asked in _lists_of(where))

    def _is_long(self, reads: EntityReads, asked: Exists) -> bool:
        now_s = self._clock.monotonic_s()
        key = (reads.entity.name, asked)
        known = self._known.get(key)
        if known is not None and now_s < known[1]:
            return known[0]
        field = listed_field(asked)
        if all(columns[0] != field for columns in reads.entity.index_columns):
            return False  # no index leads from the list to rows
        is_long = self._count(reads.table, reads.compile(asked), _MANY + 1) > _MANY
        if len(self._known) >= limits.READ_RULES_KEPT:
            self._known.clear()
        self._known[key] = is_long, now_s + _TTL_S
        return is_long


def _lists_of(where: Predicate) -> Iterator[Exists]:
    """Yield each `Exists` of a condition whose list may lead a statement."""
    if isinstance(where, Exists):
        if listed_field(where) is not None:
            yield where
    elif isinstance(where, (And, Or)):
        for item in where.items:
            yield from _lists_of(item)
    elif isinstance(where, Guarded):
        yield from _lists_of(where.allowed)
