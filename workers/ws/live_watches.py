"""Which live queries a change concerns, and what it is to them: the index behind `live_queries`.

Subscriptions that ask the same of the same rows share a `Watch`: one compiled filter, one
verdict for each change, and one text of the diff as far as their sub_ids are alike. Whether a
row was in the result and whether it is now follows from its images before and after the change,
so no result is kept.

A watch is found by one *term*: a field that must have one of a few values in every row of its
result. Terms come from the filter's equalities and from read rules that compare a field with
the caller (`Keyed` routing). A change looks up the values that its row had and has, so it costs
what it concerns, however many watches there are. Watches without a term are asked about every
change of their entity; there are at most `limits.LIVE_SCANNED` of them for an entity.

Patterns cost what they meet. Where the texts of a change times the patterns of the queries that
it concerns come to more than `limits.LIVE_PATTERN_BYTES`, queries of the network with the most
patterns are ended first: their clients may subscribe again, which costs a read in the pool.

Invariants: `published` neither blocks nor switches greenlets, and never raises for a row; a
subscription gets the diffs of each change after its `after_seq`, in seq order, those of one
call in one write. Called by `workers.ws.live_queries` and, for each batch, by the hub.
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

WatchKey = tuple[str, bytes, AuthContext | None]  # entity, the filter's text, who (None: anyone)

# What there is of a change: its frames, by kind, tail and packing; with no tail: its text.
_Made = dict[tuple[str, bytes, int], bytes]

_TERM_VALUES: Final = 100  # a condition with more possible values is not indexed
# What a subscription takes in memory, about; measured with distinct filters of one equality.
_SUBSCRIPTION_BYTES: Final = 1_500
_MEMBER_BYTES: Final = 100
_INDEXED_BYTES: Final = 300


class Subscription:
    """One client's live query. Until it is activated it gets nothing."""

    __slots__ = ("after_seq", "connection", "holders", "sub_id", "tail", "watch")

    def __init__(
        self, connection: Connection, sub_id: str, watch: Watch, holders: tuple[str, ...] = ()
    ) -> None:
        """`holders`: for whom it counts (`workers.ws.holdings`)."""
        self.connection = connection
        self.sub_id = sub_id
        self.watch = watch
        self.holders = holders
        self.tail = b',"sub_id":' + msgspec.json.encode(sub_id) + b"}"
        self.after_seq = 0  # its client knows everything up to here


class Watch:
    """What one or more subscriptions ask: a filter, and who asks."""

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
        self.weight = matcher.weight  # of its patterns
        self.members: set[Subscription] = set()  # the active ones
        term = _term_of(entity, matcher, rules, key[2])
        self.field = None if term is None else term.field.name  # what it is found by
        self.values: tuple[object, ...] = () if term is None else tuple(term.values)
        text = key[1]
        self.size_bytes = (
            _SUBSCRIPTION_BYTES + len(text) + _MEMBER_BYTES * text.count(b",")
            + _INDEXED_BYTES * len(self.values[1:])
        )

    def kind(self, change: Change) -> str | None:
        """What the change is to the result: insert, update, delete; None if it is nothing."""
        was, now = self._has(change.prev_row), self._has(change.row)
        if now and change.newer is not None and not self._may_read_now(change):
            return None  # the change that hid the row is still to come, and is a delete
        if now:
            return "update" if was else "insert"
        return "delete" if was else None

    def _may_read_now(self, change: Change) -> bool:
        """Whether the row as it is now may be read, where not everybody may read all."""
        if self.auth is None:
            return True
        row = change.newest.row
        return row is not None and self._may_read(self.auth, row)

    def _has(self, row: dict[str, Any] | None) -> bool:
        if row is None or (self.auth is not None and not self._may_read(self.auth, row)):
            return False  # a row that policy hides meets no filter of the caller's
        return self._holds(row)


def viewer(rules: EntityRules, auth: AuthContext) -> AuthContext | None:
    """What `Watch.key` says of a caller who may read the entity at all."""
    if auth.is_admin or isinstance(rules.routing, Everyone | ByAuth):
        return None
    return auth


def diff_body(change: Change, kind: str) -> bytes:
    """The text of a diff up to its sub_id. There is no `entity` in it: published clients take
    what has one for a change of their replica (spec/realtime.md §1.1)."""
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
        # By field, then by value. Many watches may share one, and each must be quick to remove.
        self.by_value: dict[str, dict[object, dict[Watch, None]]] = {}
        self.scanned: dict[Watch, None] = {}

    def concerned(self, change: Change) -> Iterable[Watch]:
        """The watches that the change may be something to."""
        found = dict(self.scanned)
        for row in (change.prev_row, change.row):
            if row is None:
                continue
            for name, by_value in self.by_value.items():
                try:
                    watches = by_value.get(row.get(name))
                except TypeError:  # a list or an object, which no filter can name
                    continue
                if watches is not None:
                    found.update(watches)
        return found

    def add(self, watch: Watch) -> None:
        self.count += 1
        self.weight += watch.weight
        if watch.field is None:
            self.scanned[watch] = None
        elif watch.values:  # else no row can be in its result
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
            refuse: ends a subscription and tells its client why.
        """
        self._refuse = refuse
        self._transport = transport
        self._clock = clock
        self._by_key: dict[WatchKey, Watch] = {}
        self._by_entity: dict[str, _EntityWatches] = {}

    def __len__(self) -> int:
        """How many distinct ones have an active subscription."""
        return len(self._by_key)

    def known(self, key: WatchKey) -> Watch | None:
        """The watch of this key, if somebody has it."""
        return self._by_key.get(key)

    def check(self, watch: Watch) -> None:
        """Pass if there is room for it.

        Raises:
            LimitExceeded: see `limits.LIVE_SCANNED`.
        """
        if watch.field is not None or watch.key in self._by_key:
            return
        of_entity = self._by_entity.get(watch.key[0])
        if of_entity is not None and len(of_entity.scanned) >= limits.LIVE_SCANNED:
            raise LimitExceeded(
                f"There are {limits.LIVE_SCANNED} different live queries of {watch.key[0]} "
                "without an equality already",
                hint='compare a field with a value, for example {"listId": "x"}',
            )

    def activate(self, subscription: Subscription, after_seq: int) -> None:
        """Send it the diffs of changes after `after_seq` from now on.

        Raises:
            LimitExceeded: see `check`; nothing has changed.
        """
        watch = self._by_key.get(subscription.watch.key)
        if watch is None:
            self.check(subscription.watch)
            watch = subscription.watch
            entity = watch.key[0]
            of_entity = self._by_entity.get(entity)
            if of_entity is None:
                of_entity = self._by_entity[entity] = _EntityWatches()
            of_entity.add(watch)
            self._by_key[watch.key] = watch
        subscription.watch = watch
        subscription.after_seq = after_seq
        watch.members.add(subscription)

    def end(self, subscription: Subscription) -> None:
        """Send it no more. One that is not active stays so."""
        watch = subscription.watch
        watch.members.discard(subscription)
        if watch.members or self._by_key.get(watch.key) is not watch:
            return
        del self._by_key[watch.key]
        of_entity = self._by_entity[watch.key[0]]
        of_entity.remove(watch)
        if not of_entity.count:
            del self._by_entity[watch.key[0]]

    def published(self, changes: Sequence[Change]) -> None:
        """Send each subscription its diffs (`Hub.on_published`)."""
        if not self._by_key:
            return
        started_s = self._clock.monotonic_s()
        outgoing: dict[Connection, list[bytes]] = {}
        for change in changes:
            of_entity = self._by_entity.get(change.event.entity)
            if of_entity is None:
                continue
            if of_entity.weight * text_bytes(change) > limits.LIVE_PATTERN_BYTES:
                self._shed(of_entity, change)
            made: _Made = {}
            for watch in of_entity.concerned(change):
                kind = watch.kind(change)
                if kind is not None:
                    self._put(change, kind, watch.members, made, outgoing)
        metrics.LIVE_EVALUATION.observe(self._clock.monotonic_s() - started_s)
        if outgoing:
            _send(outgoing)

    def _shed(self, of_entity: _EntityWatches, change: Change) -> None:
        """Make the patterns that the change concerns few enough for its texts."""
        members = [
            member for watch in of_entity.concerned(change) if watch.weight
            for member in watch.members
        ]
        weight = sum({member.watch: member.watch.weight for member in members}.values())
        most = limits.LIVE_PATTERN_BYTES // max(text_bytes(change), 1)
        held_by_network: dict[str, list[Subscription]] = {}
        for member in members:
            network = network_of(member.connection.address)
            held_by_network.setdefault(network, []).append(member)
        held = sorted(
            held_by_network.values(), key=lambda own: sum(m.watch.weight for m in own)
        )
        while weight > most and held:
            for member in held.pop():
                self._refuse(member, too_much_text())
                metrics.LIVE_QUERIES_SHED.inc()
                if not member.watch.members:
                    weight -= member.watch.weight
                    if weight <= most:
                        return

    def _put(
        self, change: Change, kind: str, members: Iterable[Subscription], made: _Made,
        outgoing: dict[Connection, list[bytes]],
    ) -> None:
        """Add the change's frame to what goes to each member's connection.

        Args:
            made: what there is of this change already.
        """
        seq = change.seq
        for member in members:
            if seq <= member.after_seq:  # its result was read ahead of the feed
                continue
            connection = member.connection
            key = kind, member.tail, connection.deflate_window
            frame = made.get(key)
            if frame is None:
                frame = made[key] = self._frame(change, kind, member.tail, connection, made)
            waiting = outgoing.get(connection)
            if waiting is None:
                outgoing[connection] = [frame]
            else:
                waiting.append(frame)

    def _frame(
        self, change: Change, kind: str, tail: bytes, connection: Connection, made: _Made
    ) -> bytes:
        body = made.get((kind, b"", 0))
        if body is None:
            body = made[kind, b"", 0] = diff_body(change, kind)
        frame = frames.encode(frames.TEXT, body + tail)
        return self._transport.packed(frame, connection.deflate_window)


def text_bytes(change: Change) -> int:
    """Of the row before and after, which a pattern may look through."""
    event = change.event
    return len(event.data or b"") + len(event.prev_data or b"")


def too_much_text() -> LimitExceeded:
    """Why a live query ends because of its patterns."""
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
        if waiting != last:  # equal ones hold the same objects, so this is quickly seen
            last, data = waiting, waiting[0] if len(waiting) == 1 else b"".join(waiting)
        if connection.send(data, len(waiting)):
            sent_frames += len(waiting)
    metrics.LIVE_DIFFS.inc(sent_frames)
    metrics.MESSAGES_SENT.inc(sent_frames)


def _term_of(
    entity: Entity, matcher: Matcher, rules: EntityRules, auth: AuthContext | None
) -> Term | None:
    """The term that the fewest rows fulfil, as far as one can know."""
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
    if None in term.values or term.field.type is FieldType.BOOL:  # what many rows have
        return 5
    return 2 if len(term.values) == 1 else 3
