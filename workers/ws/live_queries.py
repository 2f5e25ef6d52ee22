"""Live queries: send a client the result of a filter, and then the result's changes as diffs.

One read at one commit gets the rows and the head of the log, so the diffs begin after a known seq
(docs/realtime.md). The module sends the rows in messages of a bounded size, at the client's pace,
with no diff between them. It then sends the diffs of later commits, from the feed's tail or, for
seqs before the tail, from the log. It activates the subscription after the last of these without a
switch of greenlets. So the hub's next batch follows directly. A feed that is behind the result
publishes changes that the result has already; their seq shows that, and they are skipped.

A live query with an order or a limit is a window (`live_windows`). It is active before its rows are
sent; diffs wait in its backlog until the client has taken the rows.

`live_memberships` has the callers whose read rules ask other rows. When their memberships change,
their subscriptions begin again.

Invariants: no diff is lost, sent twice or out of order; otherwise the subscription ends with an
error. A result has no row that the caller may not read; a row that becomes unreadable leaves with a
delete. Bounds: subscriptions and their memory for each socket, identity, address and worker
(`limits.LIVE_*`). Metrics: pylon_live_queries, pylon_live_query_diffs_total. A feature of
`workers.ws.conversation`; `workers.ws.server` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import gevent
import msgspec

from pylon import limits, metrics
from pylon.api.data.access import entity_named, readable
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.clock import Clock
from pylon.errors import (
    IdentityChanged,
    InvalidData,
    LimitExceeded,
    PylonError,
    ResyncRequired,
    Unavailable,
)
from pylon.query.matcher import matcher_of
from pylon.query.parse import filter_object
from pylon.query.predicate import Predicate
from pylon.query.window import WINDOW_KEYS, check_limit, parse_window
from pylon.rates import subject_of
from pylon.storage.interface import Store
from workers.hub.connection import Connection
from workers.hub.feed import Feed
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.hub.memberships import KeySets
from workers.ws import frames
from workers.ws.conversation import error_message, send_json
from workers.ws.holdings import Holdings
from workers.ws.live_diffs import diff_body
from workers.ws.live_memberships import LiveMemberships
from workers.ws.live_range_reads import RangeReads
from workers.ws.live_results import ResultSender, is_drained, read_result
from workers.ws.live_subscriptions import Backlog, Subscription, Watch, WatchKey, viewer
from workers.ws.live_watches import Watches, pattern_limit_error, text_bytes
from workers.ws.live_windows import Windows

_REPEATED: Final = "repeated"  # in a message of the server's own: the subscription to begin again


class LiveQueries:
    """`workers.ws.conversation.Feature`: subscribe, unsubscribe and more."""

    message_types: tuple[str, ...] = ("subscribe", "unsubscribe", "more")

    def __init__(self, app: App, store: Store, feed: Feed, hub: Hub, clock: Clock) -> None:
        self._app = app
        self._store = store
        self._memberships = hub.memberships
        self._callers = LiveMemberships(app, store, feed, hub.memberships)
        self._feed = feed
        self._history = History(store)
        self._transport = hub.transport
        self._results = ResultSender(hub.transport)
        self._windows = Windows(store, RangeReads(store, feed), hub.transport, self._refuse)
        self._watches = Watches(hub.transport, clock, self._refuse, self._windows.take)
        self._holdings = Holdings()
        self._by_connection: dict[Connection, dict[str, Subscription]] = {}
        self._count = 0
        self._size_bytes = 0
        self._enqueue: Callable[[Connection, dict[str, Any]], object] | None = None
        hub.on_published(self._watches.on_published)
        hub.on_concerned(self._restart)

    def on_restart(self, enqueue: Callable[[Connection, dict[str, Any]], object]) -> None:
        """Call `enqueue` with the message of each subscription that has to begin again."""
        self._enqueue = enqueue

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """Subscribe, unsubscribe, or widen a window.

        All but `more` end an earlier subscription of their `sub_id`.

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
        if message["type"] == "more":
            self._widen(connection, sub_id, message.get("count"))
            return
        repeated = message.get(_REPEATED)
        if isinstance(repeated, Subscription) and repeated is not self._find(connection, sub_id):
            return  # the client has ended it, or begun another, since the message was queued
        self._end(connection, sub_id)
        if message["type"] == "unsubscribe":
            send_json(connection, {"type": "unsubscribed", "sub_id": sub_id})
            return
        sets = None
        if self._callers.is_asking(message.get("entity")):
            sets = self._callers.read_sets(connection.caller.auth, connection.address)
            if not connection.is_open:  # it has closed during the read
                return
        subscription, where = self._register(connection, sub_id, message, sets)
        try:
            if subscription.watch.window is None:
                seq = self._send_result(subscription, where)
                self._activate(subscription, seq)
            else:
                self._begin_window(subscription)
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

    def _restart(self, concerned: Collection[AuthContext]) -> None:
        """Bring the subscriptions of callers up to date whose memberships change.

        The next changes may open or close any row. A window is read anew, and sends the
        difference. Of other live queries the client gets the whole result again.
        """
        for auth in concerned:
            own = list(self._callers.subscriptions_of(auth))
            if own and not self._store.local_reads:
                gevent.spawn(self._callers.renew_sets, auth, own[0].connection.address)
            for entity in {each.watch.key[0] for each in own if each.watch.window is not None}:
                self._windows.refresh(auth, entity)
            for subscription in own:
                if subscription.watch.window is None:
                    self._begin_again(subscription)

    def _begin_again(self, subscription: Subscription) -> None:
        """Have the message of a subscription without a window handled once more."""
        self._watches.end(subscription)
        entity, text, _ = subscription.watch.key
        message = {
            "type": "subscribe", "sub_id": subscription.sub_id, "entity": entity,
            "filter": msgspec.json.decode(text), _REPEATED: subscription,
        }
        if self._enqueue is not None:
            self._enqueue(subscription.connection, message)

    # --- Registration --------------------------------------------------------------------

    def _register(
        self, connection: Connection, sub_id: str, message: dict[str, Any], sets: KeySets | None
    ) -> tuple[Subscription, Predicate]:
        """Return a subscription that counts but is not active yet, and the filter of its rows.

        Args:
            sets: of the caller, if they were read for this subscription.
        """
        auth = connection.caller.auth
        entity = entity_named(self._app, message.get("entity"), auth, "read")
        allowed = readable(self._app, entity, auth)
        body = message.get("filter")
        body = {} if body is None else filter_object(body)
        query = parse_window(entity, body)
        matcher = matcher_of(entity, body, allowed, WINDOW_KEYS)
        rules = self._app.rules.for_entity(entity.name)
        # Not orjson: the bytes that it returns keep its buffer of several kilobytes.
        conditions = {key: body[key] for key in body if key not in WINDOW_KEYS}
        text = msgspec.json.encode(conditions, order="deterministic")
        if query is not None:
            text += query.begin_text
        key: WatchKey = (entity.name, text, viewer(rules, auth))
        watch = self._watches.find(key) or Watch(
            key, entity, matcher, rules, self._memberships, query
        )
        subscription = Subscription(
            connection, sub_id, watch, self._holdings.holders_of(connection),
            0 if query is None else query.limit,
        )
        self._check_limits(connection, subscription.size_bytes)
        self._holdings.check(subscription)
        self._watches.check(watch)
        self._holdings.add(subscription)
        if rules.related.checks and not auth.is_admin:
            self._callers.hold(subscription, auth, sets)
        self._by_connection.setdefault(connection, {})[sub_id] = subscription
        self._add_to_totals(1, subscription.size_bytes)
        return subscription, matcher.where

    def _check_limits(self, connection: Connection, size_bytes: int) -> None:
        own_subscriptions = self._by_connection.get(connection, {})
        if len(own_subscriptions) >= limits.LIVE_QUERIES:
            raise LimitExceeded(f"A connection may have {limits.LIVE_QUERIES} live queries")
        if self._count >= limits.LIVE_QUERIES_TOTAL:
            raise Unavailable("This server has as many live queries as it can keep")
        self._check_bytes(connection, size_bytes)

    def _check_bytes(self, connection: Connection, size_bytes: int) -> None:
        own_bytes = sum(s.size_bytes for s in self._by_connection.get(connection, {}).values())
        if own_bytes + size_bytes > limits.LIVE_BYTES:
            raise LimitExceeded(
                "The filters of this connection's live queries would be too large together "
                f"({own_bytes + size_bytes} of {limits.LIVE_BYTES} bytes of memory)"
            )
        if self._size_bytes + size_bytes > limits.LIVE_BYTES_TOTAL:
            raise Unavailable("This server has as many live queries as it can keep")

    def _refuse(self, subscription: Subscription, error: PylonError) -> None:
        """End a subscription, and send its client the error."""
        connection, sub_id = subscription.connection, subscription.sub_id
        self._end(connection, sub_id)
        if connection.is_open:
            send_json(connection, error_message(error, {"type": "subscribe", "sub_id": sub_id}))

    def _find(self, connection: Connection, sub_id: str) -> Subscription | None:
        return self._by_connection.get(connection, {}).get(sub_id)

    def _end(self, connection: Connection, sub_id: str) -> None:
        own_subscriptions = self._by_connection.get(connection)
        subscription = None if own_subscriptions is None else own_subscriptions.pop(sub_id, None)
        if own_subscriptions is None or subscription is None:
            return
        if not own_subscriptions:
            del self._by_connection[connection]
        self._watches.end(subscription)
        self._callers.release(subscription)
        self._windows.leave(subscription)
        self._holdings.remove(subscription)
        self._add_to_totals(-1, -subscription.size_bytes)

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
        seq, rows = self._store.scan(
            lambda reader: read_result(reader, name, where), caller=caller
        )
        self._results.send(subscription, "subscribed", seq, rows)
        return seq

    def _activate(self, subscription: Subscription, seq: int) -> None:
        """Send the diffs of changes after `seq`, and then activate the subscription.

        Raises:
            ResyncRequired: the log no longer has these changes; the client may subscribe again.
        """
        connection = subscription.connection
        while is_drained(connection):
            tail = self._feed.tail
            covered = tail.first_covered  # before a read, which may lack what comes meanwhile
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
            seq = changes[-1].seq if changes else max(seq, covered)

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
                    diffs.append(self._transport.compress(frame, connection.deflate_window))
        if diffs and connection.send(b"".join(diffs), len(diffs)):
            metrics.LIVE_DIFFS.inc(len(diffs))
            metrics.MESSAGES_SENT.inc(len(diffs))

    # --- Windows -------------------------------------------------------------------------

    def _begin_window(self, subscription: Subscription) -> None:
        """Activate a window, and send its rows."""
        found = self._windows.begin(subscription)
        if not subscription.connection.is_open:  # its state here is gone
            return
        seq = self._feed.tail.last_seq
        self._watches.activate(subscription, seq)
        rows = self._windows.enter(subscription, found)
        self._send_rows(subscription, "subscribed", seq, rows)

    def _widen(self, connection: Connection, sub_id: str, count: object) -> None:
        """Add rows to a window, and send them.

        Raises:
            InvalidData: there is no such window, or `count` is no number of rows.
            LimitExceeded: the window would have too many rows, or take too much memory.
        """
        subscription = self._by_connection.get(connection, {}).get(sub_id)
        if subscription is None or subscription.watch.window is None:
            raise InvalidData(
                "There is no live window with this sub_id on this connection",
                hint="subscribe with $order and $limit first",
            )
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InvalidData("count must be a whole number from 1: how many rows to add")
        limit = subscription.limit + count
        check_limit(f"The window's limit with count {count}", limit)
        size_bytes = subscription.size_of(limit) - subscription.size_bytes
        self._check_bytes(connection, size_bytes)
        self._holdings.check_growth(subscription, size_bytes)
        rows = self._windows.widen(subscription, limit)
        if self._by_connection.get(connection, {}).get(sub_id) is not subscription:
            return  # it has ended meanwhile
        seq = self._feed.tail.last_seq
        self._holdings.grow(subscription, size_bytes)
        subscription.size_bytes += size_bytes
        self._add_to_totals(0, size_bytes)
        try:
            self._send_rows(subscription, "more", seq, rows)
        except PylonError as error:  # the client lacks rows that the window has
            self._refuse(subscription, error)

    def _send_rows(
        self, subscription: Subscription, kind: str, seq: int, rows: list[bytes]
    ) -> None:
        """Send rows of a window at its client's pace, and then the diffs since.

        Raises:
            ResyncRequired: there were too many diffs; the client may subscribe again.
        """
        backlog = subscription.backlog = Backlog()
        self._results.send(subscription, kind, seq, rows)
        subscription.backlog = None
        if backlog.is_lost:
            raise ResyncRequired("The client took the rows of its window too slowly")
        diffs = backlog.frames
        if diffs and subscription.connection.send(b"".join(diffs), len(diffs)):
            metrics.LIVE_DIFFS.inc(len(diffs))
            metrics.MESSAGES_SENT.inc(len(diffs))
