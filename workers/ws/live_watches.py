"""Live watches: index that finds the live queries affected by a change, and sends their diffs.

Subscriptions with the same filter and the same readable rows share a `Watch`: one compiled filter,
and one evaluation for each change. Equal sub_ids also share one text of the diff. The row's images
before and after a change show whether the row was and is in the result, so no result is stored.

The index finds a watch by one *term*: a field that has one of a few values in every row of its
result. Terms come from the filter's equalities and from read rules that compare a field with the
caller (`Keyed` routing). A change looks up the values in its row before and after, so its cost
does not grow with the number of other watches. Every change of an entity evaluates its watches
without a term; an entity has at most `limits.LIVE_SCANNED` of them.

The cost of $like patterns grows with the text that they search. If the texts of a change, times the
patterns of the affected queries, exceed `limits.LIVE_PATTERN_BYTES`, the index ends queries: first
those of the network with the most patterns. Their clients may subscribe again, which costs a read
in the pool.

Invariants: `on_published` neither blocks nor switches greenlets, and never raises because of a row.
A subscription receives the diffs of all changes after its `after_seq`, in seq order; those of one
call in one write. Metrics: pylon_live_query_*. Called by `workers.ws.live_queries` and, for each
batch, by the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from pylon import limits, metrics
from pylon.auth.forwarded import network_of
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.clock import Clock
from pylon.errors import LimitExceeded, PylonError
from pylon.manifest.model import Entity, FieldType
from pylon.policy.routing import ByAuth, Everyone, Keyed
from pylon.policy.rules import EntityRules
from pylon.query.matcher import Matcher, Term
from pylon.query.parse import field_of
from workers.hub.connection import Connection, Transport
from workers.ws import frames

WatchKey = tuple[str, bytes, AuthContext | None]  # entity, text of the filter, reader (None: any)

# Encodings of one change: frames by kind, tail and window; without a tail: the text.
_Encodings = dict[tuple[str, bytes, int], bytes]

_TERM_VALUES: Final = 100  # a condition with more possible values is not indexed
# Approximate memory of a subscription, measured with distinct filters of one equality.
_SUBSCRIPTION_BYTES: Final = 1_500
_MEMBER_BYTES: Final = 100
_INDEXED_BYTES: Final = 300


class Subscription:
    """One client's live query. It receives diffs after its activation only."""

    __slots__ = ("after_seq", "connection", "holders", "sub_id", "tail", "watch")

    def __init__(
        self, connection: Connection, sub_id: str, watch: Watch, holders: tuple[str, ...] = ()
    ) -> None:
        """Args: `holders` are the identity and address that it counts for (`workers.ws.holdings`).
        """
        self.connection = connection
        self.sub_id = sub_id
        self.watch = watch
        self.holders = holders
        self.tail = b',"sub_id":' + msgspec.json.encode(sub_id) + b"}"
        self.after_seq = 0  # the client has all changes up to this seq


class Watch:
    """A filter and its reader, shared by one or more subscriptions."""

    __slots__ = (
        "_holds", "_may_read", "auth", "field", "key", "members", "size_bytes", "values",
        "weight",
    )

    def __init__(
        self, key: WatchKey, entity: Entity, matcher: Matcher, rules: EntityRules
    ) -> None:
        """
        Args:
            key: its third part is None if the rules let this caller read every row.
        """
        self.key = key
        self.auth = key[2]
        self._holds = matcher.holds
        self._may_read = rules.may_read
        self.weight = matcher.weight  # cost of its patterns
        self.members: set[Subscription] = set()  # the active subscriptions
        term = _term_of(entity, matcher, rules, key[2])
        self.field = None if term is None else term.field.name  # the indexed field
        self.values: tuple[object, ...] = () if term is None else tuple(term.values)
        text = key[1]
        self.size_bytes = (
            _SUBSCRIPTION_BYTES + len(text) + _MEMBER_BYTES * text.count(b",")
            + _INDEXED_BYTES * len(self.values[1:])
        )

    def diff_kind(self, change: Change) -> str | None:
        """Return the effect of the change on the result: insert, update or delete; None: none."""
        was_in, is_in = self._is_in_result(change.prev_row), self._is_in_result(change.row)
        if is_in and change.newer is not None and not self._may_read_now(change):
            return None  # a later change hid the row, and will be a delete
        if is_in:
            return "update" if was_in else "insert"
        return "delete" if was_in else None

    def _may_read_now(self, change: Change) -> bool:
        """Whether the caller may read the newest version of the row."""
        if self.auth is None:
            return True
        row = change.newest.row
        return row is not None and self._may_read(self.auth, row)

    def _is_in_result(self, row: dict[str, Any] | None) -> bool:
        if row is None or (self.auth is not None and not self._may_read(self.auth, row)):
            return False  # a row that the policy hides is in no result of the caller
        return self._holds(row)


def viewer(rules: EntityRules, auth: AuthContext) -> AuthContext | None:
    """Return the third part of `Watch.key` for a caller who may read the entity."""
    if auth.is_admin or isinstance(rules.routing, Everyone | ByAuth):
        return None
    return auth


def diff_body(change: Change, kind: str) -> bytes:
    """Return the text of a diff up to its sub_id.

    It has no `entity`, because published clients treat a message with one as a change of their
    replica (spec/realtime.md §1.1).
    """
    event = change.event
    head = b'{"type":"diff","seq":%d,"kind":"%s","row_id":%s' % (
        event.seq, kind.encode(), msgspec.json.encode(event.row_id),
    )
    if kind == "delete" or event.data is None:
        return head
    return head + b',"data":' + event.data


class _EntityWatches:
    """The watches of one entity."""

    __slots__ = ("by_value", "count", "scanned", "weight")

    def __init__(self) -> None:
        self.count = 0
        self.weight = 0
        # By field, then by value. Dicts, because many watches may share a value and must be quick
        # to remove.
        self.by_value: dict[str, dict[object, dict[Watch, None]]] = {}
        self.scanned: dict[Watch, None] = {}

    def find_affected(self, change: Change) -> Iterable[Watch]:
        """Return the watches whose result the change may affect."""
        found = dict(self.scanned)
        for row in (change.prev_row, change.row):
            if row is None:
                continue
            for name, by_value in self.by_value.items():
                try:
                    watches = by_value.get(row.get(name))
                except TypeError:  # a list or an object: no filter can compare with it
                    continue
                if watches is not None:
                    found.update(watches)
        return found

    def add(self, watch: Watch) -> None:
        self.count += 1
        self.weight += watch.weight
        if watch.field is None:
            self.scanned[watch] = None
        elif watch.values:  # without values no row can be in the result
            by_value = self.by_value.setdefault(watch.field, {})
            for value in watch.values:
                by_value.setdefault(value, {})[watch] = None

    def remove(self, watch: Watch) -> None:
        self.count -= 1
        self.weight -= watch.weight
        if watch.field is None:
            del self.scanned[watch]
        elif watch.values:
            by_value = self.by_value[watch.field]
            for value in watch.values:
                watches = by_value[value]
                del watches[watch]
                if not watches:
                    del by_value[value]
            if not by_value:
                del self.by_value[watch.field]


class Watches:
    """All live queries of one worker."""

    def __init__(
        self, transport: Transport, clock: Clock,
        refuse: Callable[[Subscription, PylonError], None],
    ) -> None:
        """
        Args:
            refuse: ends a subscription and sends its client the error.
        """
        self._refuse = refuse
        self._transport = transport
        self._clock = clock
        self._by_key: dict[WatchKey, Watch] = {}
        self._by_entity: dict[str, _EntityWatches] = {}

    def __len__(self) -> int:
        """Return the number of watches with an active subscription."""
        return len(self._by_key)

    def find(self, key: WatchKey) -> Watch | None:
        """Return the watch of this key, or None if it has no active subscription."""
        return self._by_key.get(key)

    def check(self, watch: Watch) -> None:
        """Check that the index may hold the watch.

        Raises:
            LimitExceeded: the entity has `limits.LIVE_SCANNED` watches without a term.
        """
        if watch.field is not None or watch.key in self._by_key:
            return
        entity_watches = self._by_entity.get(watch.key[0])
        if entity_watches is not None and len(entity_watches.scanned) >= limits.LIVE_SCANNED:
            raise LimitExceeded(
                f"There are {limits.LIVE_SCANNED} different live queries of {watch.key[0]} "
                "without an equality already",
                hint='compare a field with a value, for example {"listId": "x"}',
            )

    def activate(self, subscription: Subscription, after_seq: int) -> None:
        """Send the subscription the diffs of changes after `after_seq` from now on.

        Raises:
            LimitExceeded: as `check`; the index is unchanged.
        """
        watch = self._by_key.get(subscription.watch.key)
        if watch is None:
            self.check(subscription.watch)
            watch = subscription.watch
            entity = watch.key[0]
            entity_watches = self._by_entity.get(entity)
            if entity_watches is None:
                entity_watches = self._by_entity[entity] = _EntityWatches()
            entity_watches.add(watch)
            self._by_key[watch.key] = watch
        subscription.watch = watch
        subscription.after_seq = after_seq
        watch.members.add(subscription)

    def end(self, subscription: Subscription) -> None:
        """Stop sending to the subscription. Do nothing if it is not active."""
        watch = subscription.watch
        watch.members.discard(subscription)
        if watch.members or self._by_key.get(watch.key) is not watch:
            return
        del self._by_key[watch.key]
        entity_watches = self._by_entity[watch.key[0]]
        entity_watches.remove(watch)
        if not entity_watches.count:
            del self._by_entity[watch.key[0]]

    def on_published(self, changes: Sequence[Change]) -> None:
        """Send each subscription its diffs (`Hub.on_published`)."""
        if not self._by_key:
            return
        started_s = self._clock.monotonic_s()
        outgoing: dict[Connection, list[bytes]] = {}
        for change in changes:
            entity_watches = self._by_entity.get(change.event.entity)
            if entity_watches is None:
                continue
            if entity_watches.weight * text_bytes(change) > limits.LIVE_PATTERN_BYTES:
                self._shed(entity_watches, change)
            encodings: _Encodings = {}
            for watch in entity_watches.find_affected(change):
                kind = watch.diff_kind(change)
                if kind is not None:
                    self._queue_frames(change, kind, watch.members, encodings, outgoing)
        metrics.LIVE_EVALUATION.observe(self._clock.monotonic_s() - started_s)
        if outgoing:
            _send(outgoing)

    def _shed(self, entity_watches: _EntityWatches, change: Change) -> None:
        """End subscriptions until the affected patterns times the texts are within the limit."""
        members = [
            member for watch in entity_watches.find_affected(change) if watch.weight
            for member in watch.members
        ]
        weight = sum({member.watch: member.watch.weight for member in members}.values())
        max_weight = limits.LIVE_PATTERN_BYTES // max(text_bytes(change), 1)
        by_network: dict[str, list[Subscription]] = {}
        for member in members:
            network = network_of(member.connection.address)
            by_network.setdefault(network, []).append(member)
        by_weight = sorted(
            by_network.values(), key=lambda own: sum(m.watch.weight for m in own)
        )
        while weight > max_weight and by_weight:
            for member in by_weight.pop():
                self._refuse(member, pattern_limit_error())
                metrics.LIVE_QUERIES_SHED.inc()
                if not member.watch.members:
                    weight -= member.watch.weight
                    if weight <= max_weight:
                        return

    def _queue_frames(
        self, change: Change, kind: str, members: Iterable[Subscription], encodings: _Encodings,
        outgoing: dict[Connection, list[bytes]],
    ) -> None:
        """Add the change's frame to the outgoing frames of each member's connection.

        Args:
            made: the encodings of this change so far.
        """
        seq = change.seq
        for member in members:
            if seq <= member.after_seq:  # the result was read ahead of the feed, and has it
                continue
            connection = member.connection
            key = kind, member.tail, connection.deflate_window
            frame = encodings.get(key)
            if frame is None:
                frame = encodings[key] = self._frame(
                    change, kind, member.tail, connection, encodings
                )
            waiting = outgoing.get(connection)
            if waiting is None:
                outgoing[connection] = [frame]
            else:
                waiting.append(frame)

    def _frame(
        self, change: Change, kind: str, tail: bytes, connection: Connection, encodings: _Encodings
    ) -> bytes:
        body = encodings.get((kind, b"", 0))
        if body is None:
            body = encodings[kind, b"", 0] = diff_body(change, kind)
        frame = frames.encode(frames.TEXT, body + tail)
        return self._transport.packed(frame, connection.deflate_window)


def text_bytes(change: Change) -> int:
    """Return the size of the row before and after, which a pattern may search."""
    event = change.event
    return len(event.data or b"") + len(event.prev_data or b"")


def pattern_limit_error() -> LimitExceeded:
    """Return the error for a live query that ends because of its patterns."""
    return LimitExceeded(
        "The $like conditions of live queries met more text than may be looked through for one "
        f"change ({limits.LIVE_PATTERN_BYTES} bytes x patterns)",
        hint="subscribe again, with fewer $like conditions, or compare a field with a value too",
    )


def _send(outgoing: dict[Connection, list[bytes]]) -> None:
    sent_frames = 0
    last: list[bytes] = []
    data = b""
    for connection, waiting in outgoing.items():
        if waiting != last:  # PERF: equal lists hold the same objects, so comparing is quick
            last, data = waiting, waiting[0] if len(waiting) == 1 else b"".join(waiting)
        if connection.send(data, len(waiting)):
            sent_frames += len(waiting)
    metrics.LIVE_DIFFS.inc(sent_frames)
    metrics.MESSAGES_SENT.inc(sent_frames)


def _term_of(
    entity: Entity, matcher: Matcher, rules: EntityRules, auth: AuthContext | None
) -> Term | None:
    """Return the term that probably selects the fewest rows; None if there is none."""
    candidates = [(_rank(term), term) for term in matcher.terms]
    routing = rules.routing
    if auth is not None and isinstance(routing, Keyed):
        value = getattr(auth, routing.attribute)
        by_user = routing.attribute == "user_id"
        values: frozenset[object] = frozenset(() if value is None else (value,))
        term = Term(field_of(entity, routing.field), values)
        candidates.append((1 if by_user else 4, term))
    candidates = [(rank, term) for rank, term in candidates if len(term.values) <= _TERM_VALUES]
    return min(candidates, key=lambda c: c[0])[1] if candidates else None


def _rank(term: Term) -> int:
    if not term.values or term.field.unique:
        return 0
    if None in term.values or term.field.type is FieldType.BOOL:  # many rows have these values
        return 5
    return 2 if len(term.values) == 1 else 3
