"""Live subscriptions: a client's live query, and the filter that equal ones share.

Subscriptions with the same filter and the same readable rows share a `Watch`: one compiled filter,
and one evaluation for each change. The row's images before and after a change show whether the row
was and is in the result, so no result is stored.

A watch has one *term* if possible: a field that has one of a few values in every row of its result.
Terms come from the filter's equalities and from read rules that compare a field with the caller
(`Keyed` routing). The index of `live_watches` finds watches by it.

Invariant: a watch never says that a row is in the result which the caller may not read. Called by
`live_watches`, `live_queries` and `holdings`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.manifest.model import Entity, FieldType
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import NO_RELATED, RelatedRows
from pylon.policy.routing import ByAuth, Everyone, Keyed
from pylon.query.matcher import Matcher, Term
from pylon.query.operands import field_of
from pylon.query.window import WindowQuery
from workers.hub.connection import Connection
from workers.ws.live_ranges import Window

WatchKey = tuple[str, bytes, AuthContext | None]  # entity, text of the filter, reader (None: any)

_TERM_VALUES: Final = 100  # a condition with more possible values is not indexed
# Approximate memory of a subscription, measured with distinct filters of one equality.
_SUBSCRIPTION_BYTES: Final = 1_500
_MEMBER_BYTES: Final = 100
_INDEXED_BYTES: Final = 300
_KEY_BYTES: Final = 130  # for each row of a window


class Backlog:
    """The diffs of a subscription whose client still takes its rows."""

    __slots__ = ("frames", "is_lost", "size_bytes")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.size_bytes = 0
        self.is_lost = False  # more came than it holds

    def add(self, frame: bytes) -> None:
        """Keep a frame, or nothing any more once there are too many."""
        self.size_bytes += len(frame)
        if self.size_bytes > limits.OUTBOX_BYTES:
            self.is_lost = True
            self.frames.clear()
        else:
            self.frames.append(frame)


class Subscription:
    """One client's live query. It receives diffs after its activation only."""

    __slots__ = (
        "after_seq", "backlog", "connection", "holders", "limit", "size_bytes", "sub_id", "tail",
        "watch",
    )

    def __init__(
        self, connection: Connection, sub_id: str, watch: Watch, holders: tuple[str, ...] = (),
        limit: int = 0,
    ) -> None:
        """
        Args:
            holders: the identity and address that it counts for (`workers.ws.holdings`).
            limit: of a window's rows.
        """
        self.connection = connection
        self.sub_id = sub_id
        self.watch = watch
        self.holders = holders
        self.tail = b',"sub_id":' + msgspec.json.encode(sub_id) + b"}"
        self.after_seq = 0  # the client has all changes up to this seq
        self.backlog: Backlog | None = None  # of diffs, while the client takes its rows
        self.limit = limit
        self.size_bytes = self.size_of(limit)

    def size_of(self, limit: int) -> int:
        """Return about how much memory it takes with a limit."""
        return self.watch.size_bytes + _KEY_BYTES * limit


class WindowSource(NamedTuple):
    """The source of a window's rows."""

    entity: Entity
    matcher: Matcher
    query: WindowQuery


class Watch:
    """A filter and its reader, shared by one or more subscriptions.

    A watch with a `window` has an order and a limit, and `source` tells how to read its rows.
    """

    __slots__ = (
        "_holds", "_may_read", "_related", "auth", "field", "key", "members", "size_bytes",
        "source", "values", "weight", "window",
    )

    def __init__(
        self, key: WatchKey, entity: Entity, matcher: Matcher, rules: EntityRules,
        related: RelatedRows = NO_RELATED,
        query: WindowQuery | None = None,
    ) -> None:
        """
        Args:
            key: its third part is None if the rules let this caller read every row.
            related: the rows that the read rule asks; it never switches greenlets.
            query: of a window.
        """
        self.source = None if query is None else WindowSource(entity, matcher, query)
        self.window = None if query is None else Window(
            query.sort_keys, query.begin, query.is_reversed
        )
        self.key = key
        self.auth = key[2]
        self._holds = matcher.holds
        self._may_read = rules.may_read
        self._related = related
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
        was_in, is_in = self.has_row(change.prev_row), self.has_row(change.row)
        if is_in and change.newer is not None and not self._may_read_now(change):
            return None  # a later change hid the row, and will be a delete
        if is_in:
            return "update" if was_in else "insert"
        return "delete" if was_in else None

    def shows(self, change: Change) -> bool:
        """Whether the row is in the result after the change, and no later change has hidden it."""
        return self.has_row(change.row) and (change.newer is None or self._may_read_now(change))

    def _may_read_now(self, change: Change) -> bool:
        """Whether the caller may read the newest version of the row."""
        if self.auth is None:
            return True
        row = change.newest.row
        return row is not None and self._may_read(self.auth, row, self._related)

    def has_row(self, row: dict[str, Any] | None) -> bool:
        """Whether a row is in the result."""
        if row is None:
            return False
        if self.auth is not None and not self._may_read(self.auth, row, self._related):
            return False  # a row that the policy hides is in no result of the caller
        return self._holds(row)


def viewer(rules: EntityRules, auth: AuthContext) -> AuthContext | None:
    """Return the third part of `Watch.key` for a caller who may read the entity."""
    if auth.is_admin or isinstance(rules.routing, Everyone | ByAuth):
        return None
    return auth


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
