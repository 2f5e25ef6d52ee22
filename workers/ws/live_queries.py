"""Live queries: send a client the result of a filter, and then the result's changes as diffs.

One read at one commit gets the rows and the head of the log, so the diffs begin after a known seq
(docs/realtime.md). The module sends the rows in messages of a bounded size, at the client's pace,
with no diff between them. It then sends the diffs of later commits, from the feed's tail or, for
seqs before the tail, from the log. It activates the subscription after the last of these without a
switch of greenlets. So the hub's next batch follows directly. A feed that is behind the result
publishes changes that the result has already; their seq shows that, and they are skipped.

Invariants: no diff is lost, sent twice or out of order; otherwise the subscription ends with an
error. A result has no row that the caller may not read; a row that becomes unreadable leaves with a
delete. Bounds: subscriptions and their memory for each socket, identity, address and worker; rows
and bytes of a result; bytes of results that wait for slow clients (`limits.LIVE_*`). Metrics:
pylon_live_queries, pylon_live_query_diffs_total. A feature of `workers.ws.conversation`;
`workers.ws.server` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import orjson

from pylon import limits, metrics
from pylon.api.data.access import entity_named, readable
from pylon.app import App
from pylon.changelog.change import Change
from pylon.changelog.pull import read_page
from pylon.clock import Clock
from pylon.errors import (
    IdentityChanged,
    InvalidData,
    LimitExceeded,
    PylonError,
    Unavailable,
)
from pylon.query.matcher import matcher_of
from pylon.query.predicate import Predicate
from pylon.query.rows import Query
from pylon.rates import subject_of
from pylon.storage.interface import Reader, Store
from workers.hub.connection import Connection
from workers.hub.feed import Feed
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.conversation import error_message, send_json
from workers.ws.holdings import Holdings
from workers.ws.live_diffs import diff_body
from workers.ws.live_subscriptions import Subscription, Watch, WatchKey, viewer
from workers.ws.live_watches import Watches, pattern_limit_error, text_bytes

_WAIT_S: Final = 1.0  # between checks of a client while a result waits for it


class LiveQueries:
    """`workers.ws.conversation.Feature`: subscribe and unsubscribe."""

    message_types: tuple[str, ...] = ("subscribe", "unsubscribe")

    def __init__(self, app: App, store: Store, feed: Feed, hub: Hub, clock: Clock) -> None:
        self._app = app
        self._store = store
        self._related = hub.related
        self._feed = feed
        self._history = History(store)
        self._transport = hub.transport
        self._watches = Watches(hub.transport, clock, self._refuse)
        self._holdings = Holdings()
        self._by_connection: dict[Connection, dict[str, Subscription]] = {}
        self._count = 0
        self._size_bytes = 0
        self._sending_bytes = 0  # of results that wait for their client
        hub.on_published(self._watches.on_published)

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """Subscribe or unsubscribe. Every message ends an earlier subscription of its `sub_id`.

        Raises:
            InvalidData: `sub_id` is no text of 1 to `limits.LIVE_SUB_ID_CHARS` characters, or the
                filter is malformed.
            LimitExceeded: of the socket, identity, address or result.
            PylonError: as the reads of the store.
        """
        sub_id = message.get("sub_id")
        if not isinstance(sub_id, str) or not 0 < len(sub_id) <= limits.LIVE_SUB_ID_CHARS:
            raise InvalidData(
                f"sub_id must be a text of 1 to {limits.LIVE_SUB_ID_CHARS} characters, "
                "and names a live query of this connection"
            )
        self._end(connection, sub_id)
        if message["type"] == "unsubscribe":
            send_json(connection, {"type": "unsubscribed", "sub_id": sub_id})
            return
        subscription, where = self._register(connection, sub_id, message)
        try:
            seq = self._send_result(subscription, where)
            self._activate(subscription, seq)
        except BaseException:
            self._end(connection, sub_id)
            raise

    def drop_connection(self, connection: Connection) -> None:
        """End all live queries of a connection.

        An open connection changes its identity: its client receives an error for each of them, and
        has to subscribe again.
        """
        for sub_id in list(self._by_connection.get(connection, ())):
            self._end(connection, sub_id)
            if connection.is_open:
                error = IdentityChanged("This connection has another user now")
                send_json(connection, error_message(error, {"type": "subscribe", "sub_id": sub_id}))

    # --- Registration --------------------------------------------------------------------

    def _register(
        self, connection: Connection, sub_id: str, message: dict[str, Any]
    ) -> tuple[Subscription, Predicate]:
        """Return a subscription that counts but is not active yet, and the filter of its rows."""
        auth = connection.caller.auth
        entity = entity_named(self._app, message.get("entity"), auth)
        allowed = readable(self._app, entity, auth)
        body = message.get("filter")
        matcher = matcher_of(entity, {} if body is None else body, allowed)
        rules = self._app.rules.for_entity(entity.name)
        # Not orjson: the bytes that it returns keep its buffer of several kilobytes.
        text = msgspec.json.encode(body or {}, order="deterministic")
        key: WatchKey = (entity.name, text, viewer(rules, auth))
        watch = self._watches.find(key) or Watch(
            key, entity, matcher, rules, self._related
        )
        self._check_limits(connection, watch.size_bytes)
        holders = self._holdings.holders_of(connection)
        self._holdings.check(holders, watch)
        self._watches.check(watch)
        subscription = Subscription(connection, sub_id, watch, holders)
        self._holdings.add(holders, watch)
        self._by_connection.setdefault(connection, {})[sub_id] = subscription
        self._add_to_totals(1, watch.size_bytes)
        return subscription, matcher.where

    def _check_limits(self, connection: Connection, size_bytes: int) -> None:
        own_subscriptions = self._by_connection.get(connection, {})
        if len(own_subscriptions) >= limits.LIVE_QUERIES:
            raise LimitExceeded(f"A connection may have {limits.LIVE_QUERIES} live queries")
        own_bytes = sum(s.watch.size_bytes for s in own_subscriptions.values())
        if own_bytes + size_bytes > limits.LIVE_BYTES:
            raise LimitExceeded(
                "The filters of this connection's live queries would be too large together "
                f"({own_bytes + size_bytes} of {limits.LIVE_BYTES} bytes of memory)"
            )
        if (
            self._count >= limits.LIVE_QUERIES_TOTAL
            or self._size_bytes + size_bytes > limits.LIVE_BYTES_TOTAL
        ):
            raise Unavailable("This server has as many live queries as it can keep")

    def _refuse(self, subscription: Subscription, error: PylonError) -> None:
        """End a subscription, and send its client the error."""
        connection, sub_id = subscription.connection, subscription.sub_id
        self._end(connection, sub_id)
        if connection.is_open:
            send_json(connection, error_message(error, {"type": "subscribe", "sub_id": sub_id}))

    def _end(self, connection: Connection, sub_id: str) -> None:
        own_subscriptions = self._by_connection.get(connection)
        subscription = None if own_subscriptions is None else own_subscriptions.pop(sub_id, None)
        if own_subscriptions is None or subscription is None:
            return
        if not own_subscriptions:
            del self._by_connection[connection]
        self._watches.end(subscription)
        self._holdings.remove(subscription.holders, subscription.watch)
        self._add_to_totals(-1, -subscription.watch.size_bytes)

    def _add_to_totals(self, count: int, size_bytes: int) -> None:
        self._count += count
        self._size_bytes += size_bytes
        metrics.LIVE_QUERIES.set(self._count)

    # --- The result ----------------------------------------------------------------------

    def _send_result(self, subscription: Subscription, where: Predicate) -> int:
        """Send all rows, and return the seq of their commit."""
        name = subscription.watch.key[0]
        connection = subscription.connection
        caller = subject_of(connection.caller.auth, connection.address)
        seq, rows = self._store.scan(lambda reader: _read(reader, name, where), caller=caller)
        pages = _pages(seq, rows, subscription.tail)
        row_count = len(rows)
        del rows
        connection = subscription.connection
        self._transport.charge(
            connection, sum(map(len, pages)), work_bytes=limits.LIVE_ROW_COST_BYTES * row_count
        )
        waiting_bytes = sum(map(len, pages[1:]))
        if waiting_bytes and self._sending_bytes + waiting_bytes > limits.LIVE_SENDING_BYTES:
            raise Unavailable("Too many results of live queries are on their way to slow clients")
        self._sending_bytes += waiting_bytes
        try:
            for page in pages:
                frame = self._transport.packed(page, connection.deflate_window)
                if not _is_drained(connection) or not connection.send(frame):
                    break
        finally:
            self._sending_bytes -= waiting_bytes
        return seq

    def _activate(self, subscription: Subscription, seq: int) -> None:
        """Send the diffs of changes after `seq`, and then activate the subscription.

        Raises:
            ResyncRequired: the log no longer has these changes; the client may subscribe again.
        """
        connection = subscription.connection
        while _is_drained(connection):
            tail = self._feed.tail
            tail.relate()
            changes: Sequence[Change] | None = tail.changes_after(seq)
            if changes is not None and len(changes) <= limits.REPLAY_PAGE_EVENTS:
                self._send_diffs(subscription, changes)
                if connection.is_open:  # a closed one has no state here any more
                    self._watches.activate(subscription, max(seq, tail.last_seq))
                return
            if changes is None:
                changes = self._history.page(seq, limits.REPLAY_PAGE_EVENTS)
                if subscription.watch.auth is not None:
                    self._history.relate(changes, {subscription.watch.key[0]})
            else:
                changes = changes[: limits.REPLAY_PAGE_EVENTS]
            self._send_diffs(subscription, changes)
            # The log may have no more changes although the tail begins later: seqs have gaps.
            seq = changes[-1].seq if changes else max(seq, self._feed.tail.first_covered)

    def _send_diffs(self, subscription: Subscription, changes: Sequence[Change]) -> None:
        """Send the diffs of changes that the result lacks, in one write.

        Raises:
            LimitExceeded: `limits.LIVE_PATTERN_BYTES`; no diff was sent.
        """
        watch, connection = subscription.watch, subscription.connection
        diffs: list[bytes] = []
        searched_bytes = 0
        for change in changes:
            if change.event.entity == watch.key[0]:
                searched_bytes += watch.weight * text_bytes(change)
                if searched_bytes > limits.LIVE_PATTERN_BYTES:
                    raise pattern_limit_error()
                kind = watch.diff_kind(change)
                if kind is not None:
                    text = diff_body(change, kind) + subscription.tail
                    frame = frames.encode(frames.TEXT, text)
                    diffs.append(self._transport.packed(frame, connection.deflate_window))
        if diffs and connection.send(b"".join(diffs), len(diffs)):
            metrics.LIVE_DIFFS.inc(len(diffs))
            metrics.MESSAGES_SENT.inc(len(diffs))


def _read(reader: Reader, entity: str, where: Predicate) -> tuple[int, list[bytes]]:
    """Return the head of the log, and the rows at the same commit."""

    def read() -> tuple[int, list[bytes]]:
        seq = reader.head_seq()
        rows: list[bytes] = []
        size_bytes = 0
        after_id: str | None = None
        while True:
            query = Query(where, limits.SNAPSHOT_PAGE_ROWS, after_id=after_id)
            page, has_more = read_page(reader, entity, query)
            rows += page
            size_bytes += sum(map(len, page))
            if len(rows) > limits.LIVE_ROWS or size_bytes > limits.LIVE_RESULT_BYTES:
                raise LimitExceeded(
                    f"A live query may have {limits.LIVE_ROWS} rows and "
                    f"{limits.LIVE_RESULT_BYTES} bytes when it begins, and this one has more",
                    hint="ask for less with a filter, or pull and follow the changes",
                )
            if not has_more:
                return seq, rows
            after_id = orjson.loads(page[-1])["id"]

    return reader.at_one_commit(read)


def _pages(seq: int, rows: list[bytes], tail: bytes) -> list[bytes]:
    """Return the messages of a result as frames; the last one has ``"last":true``."""
    pages: list[bytes] = []
    begin = size_bytes = 0
    for end, row in enumerate(rows):
        if end > begin and size_bytes + len(row) > limits.LIVE_PAGE_BYTES:
            pages.append(_page(seq, rows[begin:end], False, tail))
            begin, size_bytes = end, 0
        size_bytes += len(row)
    pages.append(_page(seq, rows[begin:], True, tail))
    return pages


def _page(seq: int, rows: list[bytes], last: bool, tail: bytes) -> bytes:
    return frames.encode(
        frames.TEXT,
        b'{"type":"subscribed","seq":%d,"rows":[%b],"last":%b%b'
        % (seq, b",".join(rows), b"true" if last else b"false", tail),
    )


def _is_drained(connection: Connection) -> bool:
    """Wait until the outbox of a connection is empty. Return False if the connection has closed.

    The heartbeat closes a client that reads nothing. It must not close one that reads a long
    result slowly, whose answers to pings come late; so progress here counts as an answer.
    """
    previous_bytes = connection.outbox_bytes
    while connection.is_open:
        is_drained = connection.wait_drained(_WAIT_S)
        if connection.outbox_bytes < previous_bytes:
            connection.heartbeats_unanswered = 0
        if is_drained:
            return True
        previous_bytes = connection.outbox_bytes
    return False
