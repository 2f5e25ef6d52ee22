"""Live range reads: read neighbouring rows of a window, and make them as current as the feed.

A read is of one commit. The feed may be behind that commit or ahead of it. If it is behind, the
reader waits until the feed has published the commit, usually for less than a millisecond. Then the
feed's tail has all changes that the read lacks, and they are applied to the range.

Invariants: from the return of `read` to the caller's next switch of greenlets, the range is exact
at `seq`, the head of the feed. A read is repeated if its caller's memberships change meanwhile.
A window whose order no index serves is refused before its rows are read, unless few rows fulfil its
filter. Bounds: `limits.LIVE_RESULT_BYTES` for a read, `limits.LIVE_WINDOW_FOLLOWED` changes after
it. Metric: pylon_live_window_reads_total. Called by `live_windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import gevent
import orjson

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.errors import LimitExceeded, Unavailable
from pylon.query.position import Position
from pylon.query.rows import Query
from pylon.query.window import fields_that_find
from pylon.storage.interface import Reader, Store
from workers.hub.feed import Feed
from workers.ws.live_ranges import FIRST, KeyRange
from workers.ws.live_results import check_row_count
from workers.ws.live_subscriptions import Watch, WindowSource
from workers.ws.live_watches import pattern_limit_error, text_bytes

_TRIES: Final = 5
_FEED_STEP_S: Final = 0.001  # between looks whether the feed has reached a commit
_FEED_STEPS: Final = 20  # then the feed reads the log; the bus may have lost the batch


class _Reading:
    """A read that is under way."""

    __slots__ = ("is_void", "watch")

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.is_void = False  # the caller may read other rows than when it began


class RangeReads:
    """Reads ranges for the windows of one worker."""

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store = store
        self._feed = feed
        self._under_way: set[_Reading] = set()

    @property
    def seq(self) -> int:
        """The head of the feed: all windows are of this moment."""
        return self._feed.tail.last_seq

    def read(
        self, watch: Watch, begin: bytes, count: int, reason: str, caller: str,
        required_rows: int = 0,
    ) -> KeyRange:
        """Return the first rows behind a key, exact at `seq`. May switch greenlets before that.

        Args:
            begin: the key; `FIRST`: the range begins with the first row of the result.
            count: how many rows to read.
            reason: the label of the metric.
            caller: whose share of the connections the read uses (`Store.scan`).
            required_rows: how many rows the range must have, unless the result ends before.

        Raises:
            LimitExceeded: the rows are too large; or the order needs an index and has none.
            Unavailable: the rows change faster than they are read.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        for _ in range(_TRIES):
            reading = _Reading(watch)
            self._under_way.add(reading)
            try:
                found = self._read_once(watch, begin, count, reason, caller, required_rows)
            finally:
                self._under_way.discard(reading)
            if found is not None and not reading.is_void and (
                found.end is None or len(found.keys) >= required_rows
            ):
                return found
        raise Unavailable("The rows of this window change faster than they are read")

    def repeat(self, auth: AuthContext, entity: str) -> None:
        """Have the reads for a caller that are under way begin again."""
        for reading in self._under_way:
            if reading.watch.auth == auth and reading.watch.key[0] == entity:
                reading.is_void = True

    def _read_once(
        self, watch: Watch, begin: bytes, count: int, reason: str, caller: str, required_rows: int
    ) -> KeyRange | None:
        """Read, and apply the changes since; None if there are too many."""
        metrics.LIVE_WINDOW_READS.labels(reason).inc()
        seq, found = self._store.scan(
            lambda reader: _read(reader, watch, begin, count, required_rows), caller=caller
        )
        changes = self._changes_after(seq)
        if changes is None:
            return None
        _follow(watch, found, changes)
        return found

    def _changes_after(self, seq: int) -> Sequence[Change] | None:
        """Return the published changes after a commit; None if there are too many."""
        steps = 0
        while self._feed.tail.last_seq < seq and steps < _FEED_STEPS:
            gevent.sleep(_FEED_STEP_S)
            steps += 1
        if self._feed.tail.last_seq < seq:
            self._feed.check_head()
        tail = self._feed.tail
        tail.relate()
        changes = tail.changes_after(seq, limits.LIVE_WINDOW_FOLLOWED + 1)
        too_many = changes is None or len(changes) > limits.LIVE_WINDOW_FOLLOWED
        return None if too_many else changes


def _read(
    reader: Reader, watch: Watch, begin: bytes, count: int, required_rows: int
) -> tuple[int, KeyRange]:
    """Return the head of the log, and the range at the same commit."""
    source = watch.source
    assert source is not None
    entity, matcher, query = source
    keys = query.sort_keys
    position = None if begin == FIRST else Position(query.order, keys.values_of(begin))

    def read() -> tuple[int, list[bytes], bool]:
        seq = reader.head_seq()
        fields = fields_that_find(entity, matcher.wanted, matcher.allowed, query.order)
        if fields:
            _check_unordered(reader, source, fields)
        rows, has_more = reader.rows_within(
            entity.name,
            Query(matcher.where, count, query.order, position=position, allowed=matcher.allowed),
            limits.LIVE_RESULT_BYTES,
        )
        return seq, rows, has_more

    seq, rows, has_more = reader.at_one_commit(read)
    if has_more and len(rows) < required_rows:
        raise LimitExceeded(
            f"The {required_rows} rows of this live window have more than "
            f"{limits.LIVE_RESULT_BYTES} bytes",
            hint="ask for fewer with $limit",
        )
    by_key = {keys.key_of(orjson.loads(row)): row for row in rows}
    in_order = list(by_key)
    end = None if not has_more else in_order[-1] if in_order else begin
    return seq, KeyRange(begin, end, in_order, by_key)


def _check_unordered(reader: Reader, source: WindowSource, fields: tuple[str, ...]) -> None:
    """Check that so few rows fulfil the filter that they may be sorted for each read.

    Raises:
        LimitExceeded: with the index that would help.
    """
    try:
        check_row_count(reader, source.entity.name, source.matcher.where)
    except LimitExceeded as error:
        names = ", ".join(f'"{name}"' for name in fields)
        raise LimitExceeded(
            f"More than {limits.LIVE_ROWS} rows fulfil the filter of this live window, and no "
            "index has them in its order",
            hint=f"add an index with the fields [{names}] to {source.entity.name} in the manifest, "
            "or compare a field with a value",
        ) from error


def _follow(watch: Watch, found: KeyRange, changes: Sequence[Change]) -> None:
    """Apply changes to a range.

    Raises:
        LimitExceeded: `limits.LIVE_PATTERN_BYTES`.
    """
    assert watch.source is not None
    keys = watch.source.query.sort_keys
    searched_bytes = 0
    for change in changes:
        event = change.event
        if event.entity != watch.key[0]:
            continue
        before, after = change.prev_row, change.row
        old = None if before is None else keys.key_of(before)
        if old is None and event.kind != "insert":
            old = next((key for key in found.keys if keys.id_of(key) == event.row_id), None)
        new = None if after is None else keys.key_of(after)
        if new is not None and found.covers(new):
            searched_bytes += watch.weight * text_bytes(change)
            if searched_bytes > limits.LIVE_PATTERN_BYTES:
                raise pattern_limit_error()
            if not watch.shows(change):
                new = None
        else:
            new = None
        found.replace(old, new, event.data)
