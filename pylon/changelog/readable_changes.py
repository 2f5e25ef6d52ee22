"""Readable changes: what follows a cursor, for a caller whose read rules ask other rows.

`read_changes` reads, at one commit, a page of the log as the caller may see it. If the caller had a
related change after the cursor (`pylon.policy.related_changes`), it reads the difference up to the
commit instead, because rows that have not changed may have come into view or left it. Without a
related change the rows that a rule asks are the same at the cursor, at each change and at the
commit, so each change can be judged alone.

Invariants: the caller may read each image at the commit. Cursors ascend, and nothing between two
of them is left out. Called by `pylon.changelog.pull` and `workers.hub.related_replay`, in a read
of one commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change, View, find_view
from pylon.changelog.current import relate_to_reader
from pylon.changelog.difference import as_delete, find_difference
from pylon.changelog.related_rows import related_at
from pylon.changelog.span import read_span
from pylon.policy.routing import Everyone, Nobody
from pylon.policy.rules import RuleSet
from pylon.storage.interface import Reader


class ReadableChanges(NamedTuple):
    """The changes as the caller may see them, and the cursor behind them.

    The caller had no related change between `cursor` and `head`, the newest seq of the commit.
    """

    changes: list[Change]
    cursor: int
    head: int
    is_difference: bool


def read_changes(
    reader: Reader, rules: RuleSet, auth: AuthContext, cursor: int, limit: int,
    checked_to: int = 0, is_exact: bool = False,
) -> ReadableChanges:
    """Read what follows a cursor.

    Args:
        limit: the largest number of changes of a page; a difference has its own limits.
        checked_to: the caller had no related change up to this seq.
        is_exact: see `find_difference`.

    Raises:
        ResyncRequired: the log no longer has what follows, or the difference would be too large.
        QueryTimeout, StoreUnavailable: the store cannot be read now.
    """
    read_span(reader).check(cursor)
    head = reader.head_seq()
    if has_related_change(reader, rules, auth, max(cursor, checked_to)):
        events = reader.events_after(cursor, limits.RELATED_EVENTS + 1)
        changes = find_difference(
            reader, rules, auth, cursor, list(map(Change, events)), is_exact
        )
        return ReadableChanges(changes, head, head, True)
    page = _bounded(list(map(Change, reader.events_after(cursor, limit + 1))), limit)
    is_whole = not page.rest
    seen = visible_changes(reader, rules, auth, page.changes)
    return ReadableChanges(seen, head if is_whole else page.changes[-1].seq, head, False)


def has_related_change(reader: Reader, rules: RuleSet, auth: AuthContext, cursor: int) -> bool:
    """Return whether the caller had a related change after a cursor.

    True, too, if `limits.RELATED_EVENTS` changes of asked rows follow the cursor: one behind them
    may be related. A difference over so many makes the client resync.
    """
    events = reader.events_of(rules.asked_by_readers, cursor, limits.RELATED_EVENTS)
    if len(events) == limits.RELATED_EVENTS:
        return True
    for event in events:
        change = Change(event)
        if any(
            related.concerns(auth, event.entity, image)
            for related in rules.related.values()
            if related.may_turn(event.entity, change.prev_row, change.row)
            for image in (change.prev_row, change.row) if image is not None
        ):
            return True
    return False


def visible_changes(
    reader: Reader, rules: RuleSet, auth: AuthContext, changes: Sequence[Change]
) -> list[Change]:
    """Return the changes as the caller may see them, each judged alone."""
    judged = {
        change.event.entity for change in changes
        if (found := rules.find(change.event.entity)) is not None
        and not isinstance(found.routing, Everyone | Nobody)
    }
    relate_to_reader(reader, changes, judged)
    related = related_at(reader)
    seen: list[Change] = []
    for change in changes:
        found = rules.find(change.event.entity)
        view = View.NONE if found is None else find_view(change, found, auth, related)
        if view is View.AS_DELETE:
            seen.append(as_delete(change))
        elif view is not View.NONE:
            seen.append(change)
    return seen


class _Page(NamedTuple):
    changes: list[Change]
    rest: list[Change]


def _bounded(changes: list[Change], limit: int) -> _Page:
    """Return the first changes that fit into one answer, one at least, and the others."""
    size_bytes = 0
    for count, change in enumerate(changes):
        size_bytes += change.size_bytes
        if count == limit or (count and size_bytes > limits.BATCH_BYTES):
            return _Page(changes[:count], changes[count:])
    return _Page(changes, [])
