"""Live ranges: neighbouring rows of an ordered result, as sort keys; and the window made of them.

A `KeyRange` has all rows of a result between two keys. It stays exact while each change is applied
to it. A `Window` is the range that begins at the window's first row and ends some spare rows behind
its last one. Subscriptions with different limits share it: each `Group` of them shows its first
rows. From the place that a changed row had and the place that it has now, `steps_of` derives what
each group has to be sent. So neither a window nor a diff needs the rows.

A window *lacks rows* where it has too few spare rows, or where a group shows fewer rows than it
should. `live_windows` reads them then.

Invariants: a client of a group has the rows of the first `shown` keys, or of all if there are
fewer. A step's `place` is a row that the client has when it comes to the step. Bounds:
`limits.LIVE_WINDOW_ROWS` rows for a group, and `limits.LIVE_WINDOW_SPARE_ROWS` more, or twice as
many before a window is cut. Nothing here reads the store. Called by `live_windows`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pylon import limits
from pylon.query.sort_keys import SortKeys

if TYPE_CHECKING:
    from workers.ws.live_subscriptions import Subscription

FIRST = b""  # the place of the first row: no row is before it


class KeyRange:
    """The rows of a result whose keys lie above `begin`, up to and with `end`.

    `end` None: there is no row behind the range. `rows` has the JSON of those rows that were read
    or changed, by key; None: the range keeps no rows.
    """

    __slots__ = ("begin", "end", "keys", "rows")

    def __init__(
        self, begin: bytes, end: bytes | None, keys: list[bytes],
        rows: dict[bytes, bytes] | None = None,
    ) -> None:
        self.begin = begin
        self.end = end
        self.keys = keys
        self.rows = rows

    def covers(self, key: bytes) -> bool:
        """Whether the range would have a row with this key."""
        return key > self.begin and (self.end is None or key <= self.end)

    def find(self, key: bytes) -> int:
        """Return the place of a key; -1 if the range does not have it."""
        place = bisect_left(self.keys, key)
        return place if place < len(self.keys) and self.keys[place] == key else -1

    def replace(self, old: bytes | None, new: bytes | None, data: bytes | None) -> tuple[int, int]:
        """Remove a key and add one.

        Args:
            old: the key of the row before a change; None: it was not in the result.
            new: the key after the change; None: it is not in the result.
            data: the row's JSON after the change.

        Returns: the place of the old key and that of the new one, each counted without the other;
            -1: none.
        """
        was_at = -1 if old is None else self.find(old)
        if was_at >= 0 and old is not None:
            del self.keys[was_at]
            if self.rows is not None:
                self.rows.pop(old, None)
        if new is None or not self.covers(new):
            return was_at, -1
        is_at = bisect_left(self.keys, new)
        self.keys.insert(is_at, new)
        if self.rows is not None and data is not None:
            self.rows[new] = data
        return was_at, is_at

    def join(self, other: KeyRange) -> bool:
        """Take over the rows of a range that is as current; False: there is a gap between them."""
        if self.end is not None and other.begin > self.end:
            return False
        keys = self.keys[: bisect_right(self.keys, other.begin)] + other.keys
        if other.end is not None:
            keys += self.keys[bisect_right(self.keys, other.end) :]
        if self.end is not None and (other.end is None or other.end > self.end):
            self.end = other.end
        self.keys = keys
        return True


class Step(NamedTuple):
    """One change of a client's rows: a row to insert, update or delete.

    `place`: the key of the row before it, or `FIRST`; None: the row stays where it is.
    """

    kind: str
    key: bytes
    place: bytes | None = None


class Group:
    """The subscriptions of a window with the same limit."""

    __slots__ = ("limit", "members", "shown")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shown = limit  # less while rows are missing that could not be read at once
        self.members: set[Subscription] = set()


class Window(KeyRange):
    """The state that all subscriptions of a window share."""

    __slots__ = ("groups", "is_reversed", "is_stale", "sort_keys")

    def __init__(self, sort_keys: SortKeys, begin: bytes, is_reversed: bool) -> None:
        """Make a window that has read nothing yet.

        Args:
            begin: the key at which the window begins; `FIRST`: with the first row.
            is_reversed: clients show the rows the other way round: the last key is their first row.
        """
        super().__init__(begin, begin, [])
        self.sort_keys = sort_keys
        self.is_reversed = is_reversed
        self.is_stale = False  # other rows than before may be readable: read all anew
        self.groups: dict[int, Group] = {}  # by limit

    @property
    def max_rows(self) -> int:
        """The largest limit of a group."""
        return max(self.groups, default=0)

    def enter(self, member: Subscription) -> None:
        """Count a subscription, which must have all rows of its limit."""
        group = self.groups.get(member.limit)
        if group is None:
            group = self.groups[member.limit] = Group(member.limit)
        group.members.add(member)

    def leave(self, member: Subscription) -> None:
        """Stop counting a subscription."""
        self._remove(member, member.limit)
        if not self.groups:  # nothing keeps it current any more
            self.keys, self.end, self.is_stale = [], self.begin, False

    def move(self, member: Subscription, limit: int) -> None:
        """Give a subscription another limit; it must have all rows of it."""
        previous, member.limit = member.limit, limit
        self.enter(member)
        self._remove(member, previous)

    def _remove(self, member: Subscription, limit: int) -> None:
        group = self.groups.get(limit)
        if group is not None:
            group.members.discard(member)
            if not group.members:
                del self.groups[limit]

    def cut(self) -> None:
        """Drop the keys behind the spare rows, if there are many."""
        spare_rows = limits.LIVE_WINDOW_SPARE_ROWS
        kept = self.max_rows + spare_rows
        if len(self.keys) > kept + spare_rows:
            del self.keys[kept:]
            self.end = self.keys[-1]

    def find_lack(self) -> tuple[bytes, int] | None:
        """Return the key behind which rows are missing, and how many to read; None: none are."""
        max_rows = self.max_rows
        wanted = max_rows + limits.LIVE_WINDOW_SPARE_ROWS
        if self.is_stale:
            return self.begin, wanted
        shown = min([g.shown for g in self.groups.values() if g.shown < g.limit], default=max_rows)
        if shown < min(max_rows, len(self.keys)):
            return self.key_before(shown), wanted - shown
        if self.end is None or len(self.keys) >= max_rows + limits.LIVE_WINDOW_SPARE_ROWS // 4:
            return None
        return self.end, wanted - len(self.keys)

    def key_before(self, place: int) -> bytes:
        """Return the key of the row before a place."""
        return self.keys[place - 1] if place else self.begin

    def key_of_row(self, row_id: str) -> bytes | None:
        """Return the key of a row by its id: a search through all keys."""
        return next((key for key in self.keys if self.sort_keys.id_of(key) == row_id), None)


def steps_of(window: Window, shown: int, key: bytes, was_at: int, is_at: int) -> Iterator[Step]:
    """Yield what the first `shown` rows need after a change of one row.

    Args:
        window: after the change.
        key: the row's key after the change; before it if `is_at` is -1.
        was_at, is_at: as `KeyRange.replace` returns them.
    """
    was_shown, is_shown = 0 <= was_at < shown, 0 <= is_at < shown
    keys = window.keys
    if was_shown and is_shown:
        place = None if was_at == is_at else _place(window, is_at, shown)
        yield Step("update", key, place)
    elif was_shown:
        yield Step("delete", key)
        if len(keys) >= shown:
            yield Step("insert", keys[shown - 1], _place(window, shown - 1, shown))
    elif is_shown:
        if len(keys) > shown:
            yield Step("delete", keys[shown])
        yield Step("insert", key, _place(window, is_at, shown))


def differences(
    window: Window, before: list[bytes], shown: int, has_row: Callable[[bytes], bool]
) -> tuple[list[Step], int]:
    """Return what turns the rows `before` into the first `shown` rows of a window.

    The window's rows are inserted up to the first one that `has_row` denies.

    Returns: the steps, and how many rows the client has then.
    """
    known = set(before)
    after = window.keys[:shown]
    for count, key in enumerate(after):
        if key not in known and not has_row(key):
            after = after[:count]
            shown = count
            break
    kept = set(after)
    steps = [Step("delete", key) for key in before if key not in kept]
    places = range(len(after))
    steps += [
        Step("insert", after[place], _place(window, place, len(after)))
        for place in (reversed(places) if window.is_reversed else places)
        if after[place] not in known
    ]
    return steps, shown


def _place(window: Window, at: int, shown: int) -> bytes:
    """Return the key of the row that the client has before the row at a place."""
    keys = window.keys
    if not window.is_reversed:
        return keys[at - 1] if at else FIRST
    return keys[at + 1] if at + 1 < min(shown, len(keys)) else FIRST
