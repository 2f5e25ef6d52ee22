"""A change as one caller may see it (spec/realtime.md §1.4).

A `Change` wraps an event that many receivers share: its wire text is made once, its row images
are decoded once, and both only when somebody needs them.

Once a row has changed again, `newer` leads to the next known change. Pulls and replays then judge
an image by the row as it is now, too: a caller who may not read the row now gets no older image of
it. The later change that took the row out of view reaches that caller as a delete.

Invariants: a caller who may read neither the row before nor the row after learns nothing, not even
that there was a change; a row that leaves a caller's view is a delete for that caller; a delete
carries no image. Used by pull and by the hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import msgspec
import orjson

from pylon.auth_context import AuthContext
from pylon.policy.routing import Everyone, Nobody
from pylon.policy.rules import EntityRules
from pylon.storage.events import ChangeEvent, Kind, encode


def sizes_bytes(events: Sequence[ChangeEvent]) -> list[int]:
    """About what the `Change` of each event takes in memory once its wire text is made."""
    return [2 * (len(e.data or b"") + len(e.prev_data or b"")) + 512 for e in events]


class View(Enum):
    """How a caller sees a change."""

    NONE = "none"
    AS_IS = "as_is"
    AS_DELETE = "as_delete"  # the row has left the caller's view
    AS_UPDATE = "as_update"  # the row has come into view; shows the whole row after


class Change(msgspec.Struct, gc=False):
    """An event with what is derived from it, made on first use. Nothing here leads back to it
    (`newer` leads forward only), so the collector need not know it."""

    event: ChangeEvent
    known_wire: bytes | None = None  # what `wire` gives, once somebody asked
    newer: Change | None = None  # a later change of the same row, or the row as it is now
    _as_delete: bytes | None = None
    _row: dict[str, Any] | None = None
    _prev_row: dict[str, Any] | None = None

    @property
    def seq(self) -> int:
        """The event's seq."""
        return self.event.seq

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory once its wire text has been made."""
        return sizes_bytes((self.event,))[0]

    @property
    def row(self) -> dict[str, Any] | None:
        """The row after the change; None for a delete."""
        if self._row is None and self.event.data is not None:
            self._row = orjson.loads(self.event.data)
        return self._row

    @property
    def prev_row(self) -> dict[str, Any] | None:
        """The row before the change; None for an insert."""
        if self._prev_row is None and self.event.prev_data is not None:
            self._prev_row = orjson.loads(self.event.prev_data)
        return self._prev_row

    @property
    def wire(self) -> bytes:
        """The event's JSON text as it happened."""
        if self.known_wire is None:
            self.known_wire = self.event.wire()
        return self.known_wire

    @property
    def newest(self) -> Change:
        """The last change of the row that is known: itself, where there is no newer one."""
        if self.newer is None:
            return self
        found = self.newer
        while found.newer is not None:
            found = found.newer
        self.newer = found  # the way is walked once
        return found

    def wire_as(self, kind: Kind) -> bytes:
        """The JSON text under another kind: a delete shows nothing, all else the row after."""
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
    """Let each change lead to the next one of its row.

    Args:
        changes: in seq order.
        newest: the last change of each row before them; becomes that of each row after them.
    """
    for change in changes:
        key = (change.event.entity, change.event.row_id)
        earlier = newest.get(key)
        if earlier is not None:
            earlier.newer = change
        newest[key] = change


def view(change: Change, rules: EntityRules, auth: AuthContext) -> View:
    """How `auth` sees `change`. An image that the log does not have counts as unreadable."""
    routing = rules.routing
    if auth.is_admin or isinstance(routing, Everyone):
        return View.AS_IS
    if isinstance(routing, Nobody):
        return View.NONE
    before, after = change.prev_row, change.row
    saw = before is not None and rules.may_read(auth, before)
    sees = after is not None and rules.may_read(auth, after)
    if sees and change.newer is not None:
        now = change.newest.row
        if now is None or not rules.may_read(auth, now):
            return View.NONE  # the change that took the row out of view is still to come
    if change.event.kind == "update":
        if saw and not sees:
            return View.AS_DELETE
        if sees and not saw:
            return View.AS_UPDATE
    return View.AS_IS if saw or sees else View.NONE


def seen_as(change: Change, rules: EntityRules, auth: AuthContext) -> bytes | None:
    """The wire text of `change` for `auth`, or None if it is not to be seen."""
    how = view(change, rules, auth)
    if how is View.NONE:
        return None
    if how is View.AS_DELETE:
        return change.wire_as("delete")
    return change.wire  # an update that brings a row into view carries the full row anyway
