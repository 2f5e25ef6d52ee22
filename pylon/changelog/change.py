"""A change as one caller may see it (spec/realtime.md §1.4).

A `Change` wraps an event that many receivers share. It encodes the event and decodes its row
images at most once, on first use.

Once a row has changed again, `newer` leads to the next known change. Pulls and replays then check
an image against the present row, too: a caller who may not read the present row gets no older
image of it. The later change that took the row out of view reaches that caller as a delete.

Invariants: a caller who may read neither the row before nor the row after a change gets nothing for
it. A row that leaves a caller's view is a delete for that caller. A delete carries no image. Called
by `pylon.changelog.pull`, the feeds and the hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import msgspec
import orjson

from pylon.auth_context import AuthContext
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import NO_RELATED, RelatedRows
from pylon.policy.routing import Everyone, Nobody
from pylon.storage.events import ChangeEvent, Kind, encode


def sizes_bytes(events: Sequence[ChangeEvent]) -> list[int]:
    """Return about how many bytes each event's `Change` takes once its wire text is encoded."""
    return [2 * (len(e.data or b"") + len(e.prev_data or b"")) + 512 for e in events]


class View(Enum):
    """How a caller sees a change."""

    NONE = "none"
    AS_IS = "as_is"
    AS_DELETE = "as_delete"  # the row has left the caller's view
    AS_UPDATE = "as_update"  # the row has come into view; the client gets the whole row


class Change(msgspec.Struct, gc=False):
    """An event, and the values derived from it on first use.

    It has no reference cycle (`newer` leads forward only), so the garbage collector skips it.
    """

    event: ChangeEvent
    known_wire: bytes | None = None  # the result of `wire`, after the first call
    newer: Change | None = None  # a later change of the row, or its present state
    _as_delete: bytes | None = None
    _row: dict[str, Any] | None = None
    _prev_row: dict[str, Any] | None = None

    @property
    def seq(self) -> int:
        """Return the seq of the event."""
        return self.event.seq

    @property
    def size_bytes(self) -> int:
        """Return about how many bytes it takes once its wire text is encoded."""
        return sizes_bytes((self.event,))[0]

    @property
    def row(self) -> dict[str, Any] | None:
        """Return the row after the change; None for a delete."""
        if self._row is None and self.event.data is not None:
            self._row = orjson.loads(self.event.data)
        return self._row

    @property
    def prev_row(self) -> dict[str, Any] | None:
        """Return the row before the change; None for an insert."""
        if self._prev_row is None and self.event.prev_data is not None:
            self._prev_row = orjson.loads(self.event.prev_data)
        return self._prev_row

    @property
    def wire(self) -> bytes:
        """Return the event's JSON text under its own kind."""
        if self.known_wire is None:
            self.known_wire = self.event.wire()
        return self.known_wire

    @property
    def newest(self) -> Change:
        """Return the last known change of the row; `self` if none is newer."""
        if self.newer is None:
            return self
        found = self.newer
        while found.newer is not None:
            found = found.newer
        self.newer = found  # the next call need not follow the chain
        return found

    def wire_as(self, kind: Kind) -> bytes:
        """Return the JSON text under another kind. A delete carries no row, others the new one."""
        event = self.event
        if kind == event.kind:
            return self.wire
        if kind != "delete":
            return encode(
                event.seq, event.entity, event.row_id, kind, event.data, event.timestamp_s
            )
        if self._as_delete is None:
            self._as_delete = encode(
                event.seq, event.entity, event.row_id, kind, None, event.timestamp_s
            )
        return self._as_delete


def relate(changes: Iterable[Change], newest: dict[tuple[str, str], Change]) -> None:
    """Set `newer` of each change that a later one of its row follows.

    Args:
        changes: in seq order.
        newest: the last change of each row, by entity and row id; updated in place.
    """
    for change in changes:
        key = (change.event.entity, change.event.row_id)
        earlier = newest.get(key)
        if earlier is not None:
            earlier.newer = change
        newest[key] = change


def find_view(
    change: Change, rules: EntityRules, auth: AuthContext, related: RelatedRows = NO_RELATED
) -> View:
    """Return how `auth` sees `change`. An image that the log does not have is unreadable.

    Args:
        related: the rows that the read rule asks.
    """
    routing = rules.routing
    if isinstance(routing, Everyone) or (auth.is_admin and not rules.is_narrowed):
        return View.AS_IS
    if isinstance(routing, Nobody):
        return View.NONE
    before, after = change.prev_row, change.row
    saw = before is not None and rules.may_read(auth, before, related)
    sees = after is not None and rules.may_read(auth, after, related)
    if sees and change.newer is not None:
        now = change.newest.row
        if now is None or not rules.may_read(auth, now, related):
            return View.NONE  # the change that took the row out of view follows
    if change.event.kind == "update":
        if saw and not sees:
            return View.AS_DELETE
        if sees and not saw:
            return View.AS_UPDATE
    return View.AS_IS if saw or sees else View.NONE


def encode_for(
    change: Change, rules: EntityRules, auth: AuthContext, related: RelatedRows = NO_RELATED
) -> bytes | None:
    """Return the wire text of `change` for `auth`; None if `auth` may not see it."""
    view = find_view(change, rules, auth, related)
    if view is View.NONE:
        return None
    if view is View.AS_DELETE:
        return change.wire_as("delete")
    return change.wire  # an update that brings a row into view carries the full row anyway
