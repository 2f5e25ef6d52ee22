"""Live windows: the diffs of ordered live queries with a limit, and the reads that they need.

A window keeps the sort keys of its rows and of some spare rows behind them (`live_ranges`). A
change of another row behind the last key costs two comparisons of bytes. A change in the window
gives each group of subscriptions its steps. The row of a change is at hand; a row that moves in
from the spare rows is read by its id, where the store answers that without a switch of greenlets.

A window that lacks rows is read in a greenlet: a range behind a key, by an index. Such a read is of
some commit. It is made current with the changes since then, and joined to the window without a
switch of greenlets, so both are of the same moment. While rows are missing, the window shows fewer
rows than its limit, and goes on sending diffs.

Invariants: a client has the first rows of the window, in order, after the diffs of each batch.
`take` neither blocks nor switches greenlets, and never raises because of a row. No row is sent
which the caller may not read. Bounds: `limits.LIVE_WINDOW_READS` greenlets read for windows that
lack rows; each reads `limits.LIVE_WINDOW_ROWS` rows and the spare ones at most. Metrics:
pylon_live_windows, pylon_live_window_reads_total, pylon_live_windows_waiting. Called by
`live_watches` for each change, and by `live_queries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import gevent
import msgspec
import orjson

from pylon import limits, log, metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.errors import InternalError, PylonError, Unavailable
from pylon.query.sort_keys import SortKeys
from pylon.rates import subject_of
from pylon.storage.interface import Store
from workers.hub.connection import Transport
from workers.ws.live_diffs import Diffs, row_body
from workers.ws.live_range_reads import RangeReads
from workers.ws.live_ranges import FIRST, Group, KeyRange, Step, Window, differences, steps_of
from workers.ws.live_subscriptions import Subscription, Watch

_RETRIES: Final = 5  # of a read for a window
_RETRY_S: Final = 0.5

_log = log.get_logger("live_windows")


class Windows:
    """The windows of one worker: each is the `window` of a watch."""

    def __init__(
        self, store: Store, reads: RangeReads, transport: Transport,
        refuse: Callable[[Subscription, PylonError], None],
    ) -> None:
        """
        Args:
            refuse: ends a subscription and sends its client the error.
        """
        self._store = store
        self._reads = reads
        self._transport = transport
        self._refuse = refuse
        # Those whose window has members, by entity and reader.
        self._watches: dict[tuple[str, AuthContext | None], set[Watch]] = {}
        self._count = 0
        self._lacking: dict[Watch, None] = {}  # in the order in which they are read
        self._settling: set[Watch] = set()  # a greenlet reads for them
        self._readers = 0  # greenlets
        self._keyed: Change | None = None  # the change of what follows
        self._keys: dict[SortKeys, tuple[bytes | None, bytes | None]] = {}
        self._bodies: dict[tuple[SortKeys, Step], bytes] = {}
        self._moved_in: dict[tuple[str, str], tuple[bytes, int]] = {}

    # --- Changes ---------------------------------------------------------------------------

    def take(self, watch: Watch, change: Change, diffs: Diffs) -> None:
        """Add the diffs of a change to a window's subscriptions."""
        window = watch.window
        assert window is not None
        old, new = self._keys_of(change, window.sort_keys)
        if old is None and change.event.kind != "insert":
            old = window.key_of_row(change.event.row_id)  # the log has no image before
        if new is not None and not (window.covers(new) and watch.shows(change)):
            new = None
        was_at, is_at = window.replace(old, new, None)
        key = new if is_at >= 0 else old
        if key is None or (was_at < 0 and is_at < 0):
            return
        for group in window.groups.values():
            for step in steps_of(window, group.shown, key, was_at, is_at):
                body = self._body(watch, window, change, step)
                if body is None:  # the row that moves in cannot be read now
                    group.shown = window.find(step.key)
                    break
                for member in group.members:
                    diffs.add(body, member)
        window.cut()
        if window.find_lack() is not None:
            self._note_lack(watch)

    def _keys_of(self, change: Change, keys: SortKeys) -> tuple[bytes | None, bytes | None]:
        """Return the keys of the row before and after a change."""
        if change is not self._keyed:
            self._keyed = change
            self._keys.clear()
            self._bodies.clear()
            self._moved_in.clear()
        found = self._keys.get(keys)
        if found is None:
            before, after = change.prev_row, change.row
            found = self._keys[keys] = (
                None if before is None else keys.key_of(before),
                None if after is None else keys.key_of(after),
            )
        return found

    def _body(
        self, watch: Watch, window: Window, change: Change, step: Step
    ) -> bytes | None:
        """Return the text of a step; None if its row cannot be read now."""
        name = window.sort_keys, step
        body = self._bodies.get(name)
        row_id = window.sort_keys.id_of(step.key)
        data = change.event.data
        if step.kind == "delete":
            data = None
        elif row_id != change.event.row_id:
            data = self._row_at(watch.key[0], row_id, change.seq)
            if data is not None and not watch.has_row(orjson.loads(data)):
                window.is_stale = True  # other rows than before are readable
                data = None
            if data is None:
                return None
        if body is None:  # PERF: windows of other callers have the same texts
            body = self._bodies[name] = _step_body(window, change.seq, step, row_id, data)
        return body

    def _row_at(self, entity: str, row_id: str, seq: int) -> bytes | None:
        """Return a row as it is at `seq`; None if that takes a switch of greenlets."""
        found = self._moved_in.get((entity, row_id))
        if found is None:
            if not self._store.local_reads:
                return None
            try:
                row = self._store.point_inline(
                    lambda reader: reader.get_version(entity, row_id)
                )
            except PylonError:
                return None
            metrics.LIVE_WINDOW_READS.labels("row").inc()
            if row is None:
                return None
            found = self._moved_in[entity, row_id] = row[0], row[1] or 0
        return found[0] if found[1] <= seq else None

    # --- Reads -----------------------------------------------------------------------------

    def begin(self, subscription: Subscription) -> KeyRange:
        """Read the rows of a new subscription. Nothing switches greenlets after the return.

        Raises: see `RangeReads.read`.
        """
        watch, connection = subscription.watch, subscription.connection
        assert watch.window is not None
        return self._reads.read(
            watch, watch.window.begin, subscription.limit + limits.LIVE_WINDOW_SPARE_ROWS,
            "begin", subject_of(connection.caller.auth, connection.address), subscription.limit,
        )

    def enter(self, subscription: Subscription, found: KeyRange) -> list[bytes]:
        """Add a subscription to its window, whose rows `begin` has just read.

        Returns: the rows, in the order of the client.
        """
        watch = subscription.watch
        window = watch.window
        assert window is not None
        diffs = Diffs(self._transport)
        self._join(window, found, diffs)
        window.enter(subscription)
        window.cut()
        watches = self._watches.setdefault((watch.key[0], watch.auth), set())
        self._count += watch not in watches
        watches.add(watch)
        self._measure()
        assert found.rows is not None
        rows = [found.rows[key] for key in window.keys[: subscription.limit]]
        diffs.send()
        return rows[::-1] if window.is_reversed else rows

    def leave(self, subscription: Subscription) -> None:
        """Remove a subscription from its window."""
        watch = subscription.watch
        if watch.window is not None:
            watch.window.leave(subscription)
            key = watch.key[0], watch.auth
            watches = self._watches.get(key)
            if watches is not None and watch in watches and not watch.window.groups:
                watches.discard(watch)
                if not watches:
                    del self._watches[key]
                self._count -= 1
                self._lacking.pop(watch, None)
                self._measure()

    def widen(self, subscription: Subscription, limit: int) -> list[bytes]:
        """Give a subscription a higher limit. Nothing switches greenlets after the return.

        Returns: the rows that the client lacks, in its order; they join its last row (the first
            one, in a window before a position).

        Raises: see `RangeReads.read`. Unavailable: the window changes faster than it is read.
        """
        watch, connection = subscription.watch, subscription.connection
        window = watch.window
        assert window is not None
        caller = subject_of(connection.caller.auth, connection.address)
        for _ in range(_RETRIES):
            other = window.groups.get(limit)
            shown = window.groups[subscription.limit].shown
            shown = min(shown, len(window.keys), shown if other is None else other.shown)
            found = self._reads.read(
                watch, window.key_before(shown), limit - shown + limits.LIVE_WINDOW_SPARE_ROWS,
                "more", caller, limit - shown,
            )
            if not connection.is_open or subscription not in watch.members:
                return []
            rows = self._widen_now(subscription, window, limit, found)
            if rows is not None:
                return rows
        raise Unavailable("The rows of this window change faster than they are read")

    def _widen_now(
        self, subscription: Subscription, window: Window, limit: int, found: KeyRange
    ) -> list[bytes] | None:
        """Join a range and move a subscription to its new group; None if rows are missing."""
        rows: list[bytes] | None
        assert found.rows is not None
        diffs = Diffs(self._transport)
        if not self._join(window, found, diffs):
            return None
        other = window.groups.get(limit)
        before = set(window.keys[: window.groups[subscription.limit].shown])
        added = [key for key in window.keys[:limit] if key not in before]
        has_rows = all(key in found.rows for key in added)
        if has_rows and (other is None or other.shown == limit):
            window.move(subscription, limit)
            rows = [found.rows[key] for key in added]
        else:
            rows = None
        diffs.send()
        if rows is None:
            return None
        return rows[::-1] if window.is_reversed else rows

    def refresh(self, auth: AuthContext, entity: str) -> None:
        """Read the windows of an entity anew for a caller who may read other rows than before.

        The subscriptions get the difference as diffs, usually within some milliseconds; until then
        no row enters a window that the caller may not read. Neither blocks nor switches greenlets.
        """
        self._reads.repeat(auth, entity)
        for watch in self._watches.get((entity, auth), ()):
            assert watch.window is not None
            watch.window.is_stale = True
            self._note_lack(watch)

    def _note_lack(self, watch: Watch) -> None:
        """Have rows read for a window; a greenlet that reads for it looks again at its end."""
        if watch not in self._lacking and watch not in self._settling:
            self._lacking[watch] = None
            self._measure()
            if self._readers < limits.LIVE_WINDOW_READS:
                self._readers += 1
                gevent.spawn(self._read_lacking)

    def _read_lacking(self) -> None:
        """Read for windows until none lacks rows."""
        try:
            while self._lacking:
                watch = next(iter(self._lacking))
                del self._lacking[watch]
                self._settling.add(watch)
                self._measure()
                try:
                    self._settle(watch)
                except Exception as ex:  # noqa: BLE001  the other windows still lack rows
                    _log.exception("window.failed", error=ex, entity=watch.key[0])
                    error = InternalError("The live window failed; the server's log says why")
                    self._end_all(watch, error)
                finally:
                    self._settling.discard(watch)
                    self._measure()
        finally:
            self._readers -= 1

    def _settle(self, watch: Watch) -> None:
        """Read for one window until it lacks no rows, or end it."""
        window = watch.window
        assert window is not None
        failures = gaps = 0
        while window.groups and (lack := window.find_lack()) is not None:
            was_stale, window.is_stale = window.is_stale, False
            member = next(iter(next(iter(window.groups.values())).members))
            caller = subject_of(member.connection.caller.auth, member.connection.address)
            try:
                found = self._reads.read(
                    watch, *lack, "refresh" if was_stale else "refill", caller
                )
            except PylonError as error:
                window.is_stale = window.is_stale or was_stale
                failures += 1
                _log.warning("window.unread", code=error.code, message=error.message)
                if failures > _RETRIES or not error.retryable:
                    self._end_all(watch, error)
                    return
                gevent.sleep(_RETRY_S)
                continue
            diffs = Diffs(self._transport)
            if self._join(window, found, diffs):
                window.cut()
            else:
                gaps += 1
                window.is_stale = window.is_stale or gaps > _RETRIES  # all rows leave no gap
            diffs.send()

    def _end_all(self, watch: Watch, error: PylonError) -> None:
        for member in list(watch.members):
            self._refuse(member, error)

    def _join(self, window: Window, found: KeyRange, diffs: Diffs) -> bool:
        """Join a current range to a window, and add the rows that its groups lacked to `diffs`.

        Returns: False if there is a gap between window and range.
        """
        shown = {limit: window.keys[: group.shown] for limit, group in window.groups.items()}
        if not window.join(found):
            return False
        assert found.rows is not None
        seq = self._reads.seq
        for limit, before in shown.items():
            group = window.groups[limit]
            steps, group.shown = differences(window, before, limit, found.rows.__contains__)
            self._add_steps(window, group, steps, seq, found.rows, diffs)
        return True

    def _add_steps(
        self, window: Window, group: Group, steps: Iterable[Step], seq: int,
        rows: dict[bytes, bytes], diffs: Diffs,
    ) -> None:
        for step in steps:
            data = None if step.kind == "delete" else rows[step.key]
            row_id = window.sort_keys.id_of(step.key)
            body = _step_body(window, seq, step, row_id, data)
            for member in group.members:
                diffs.add(body, member)

    def _measure(self) -> None:
        metrics.LIVE_WINDOWS.set(self._count)
        metrics.LIVE_WINDOWS_WAITING.set(len(self._lacking) + len(self._settling))


def _step_body(
    window: Window, seq: int, step: Step, row_id: str, data: bytes | None
) -> bytes:
    if step.place is None:
        place = b""
    elif step.place == FIRST:
        place = b',"after":null'
    else:
        place = b',"after":' + msgspec.json.encode(window.sort_keys.id_of(step.place))
    return row_body(seq, step.kind, row_id, place, data)
