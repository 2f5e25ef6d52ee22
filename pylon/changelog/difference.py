"""The difference between two moments of the change log, for a caller whose memberships changed.

Most changes are judged one by one (`pylon.changelog.change`). That is not enough for a caller with
a *related change* in the range (`pylon.policy.related_changes`): a row that has not changed comes
into view or leaves it. So the whole range is delivered as the difference between its ends. A row
that the caller may read at the end only is an insert or an update; one that the caller might read
at the beginning only is a delete. A row that has not changed itself gets a seq of its own below the
related change, where the writer leaves `limits.RELATED_SEQS` free (`pylon.storage.core.journal`).

A client may have what came after the cursor at which a pull or a socket of it begins. A client
that names no cursor begins before its last pull (`workers.hub.start_cursors`). A client that has
had a difference names the seq of its last event, which may be lower than the end of the range. So
such a client also gets a delete for each row that was in view at some commit of the range and is
not at the end, and an insert for each row in view that may have been out of it meanwhile. Both have
seqs above every change that could have turned the row, because the client drops events up to its
own cursor.

Invariants: after it the client has exactly the rows that it may read at the end of the range. An
image that was readable in between only is not in it. Seqs ascend, are unique, and lie above the
cursor. Bounds: `limits.RELATED_EVENTS` changes and `limits.RELATED_ROWS` rows, and
`limits.RELATED_MOMENTS` and `limits.RELATED_JUDGEMENTS` unless the cursor is exact; beyond
them the client must pull a snapshot. Called by pulls and replays, in a read of one commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change, View, find_view, relate
from pylon.changelog.related_rows import ChangedRows, PastRows, read_rows, related_at
from pylon.errors import LimitExceeded, ResyncRequired
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import RelatedRows
from pylon.policy.related_changes import RelatedChanges
from pylon.policy.rules import RuleSet
from pylon.query.evaluate import evaluator_of
from pylon.query.predicate import Predicate
from pylon.storage.events import ChangeEvent, Kind
from pylon.storage.interface import Reader

Row = Mapping[str, Any]


class _Turned(NamedTuple):
    """A row that has not changed, and came into view (`is_open`) or left it."""

    entity: str
    row_id: str
    is_open: bool
    text: bytes


def find_difference(
    reader: Reader, rules: RuleSet, auth: AuthContext, cursor: int, changes: Sequence[Change],
    is_exact: bool = False,
) -> list[Change]:
    """Return the changes after a cursor as the caller may see them, in seq order.

    Args:
        reader: reads the commit at which the range ends.
        cursor: the beginning of the range.
        changes: all changes of the range, in seq order.
        is_exact: whether the client has nothing that came after the cursor.

    Raises:
        ResyncRequired: they are more than a difference may hold.
        QueryTimeout, StoreUnavailable: the store cannot be read now.
    """
    try:
        return _Difference(reader, rules, auth, cursor, changes, is_exact).find()
    except LimitExceeded as exceeded:
        raise ResyncRequired(
            f"the rows that you may read have changed too much since last_seq={cursor} "
            f"({exceeded.message}); client must re-sync",
            oldest_seq=reader.head_seq() + 1,
        ) from exceeded


class _Difference:
    def __init__(
        self, reader: Reader, rules: RuleSet, auth: AuthContext, cursor: int,
        changes: Sequence[Change], is_exact: bool,
    ) -> None:
        self._is_exact = is_exact
        self._moments: list[RelatedRows] = []  # after each related change, unless exact
        self._judgements = 0
        # Of each row the images that the range left; first those before the first related change.
        self._early_images: dict[tuple[str, str], list[Row]] = {}
        self._images: dict[tuple[str, str], list[Row]] = {}
        self._reader = reader
        self._rules = rules
        self._auth = auth
        self._changes = changes
        seqs = [cursor, *(change.seq for change in changes)]
        self._seq_before = dict(zip(seqs[1:], seqs[:-1], strict=True))
        self._changed = ChangedRows(changes)
        self._now = related_at(reader)
        self._before = PastRows(reader, self._changed)

    def find(self) -> list[Change]:
        if len(self._changes) > limits.RELATED_EVENTS:
            raise LimitExceeded(f"more than {limits.RELATED_EVENTS} changes")
        relate(self._changes, {})
        found = [seen for change in self._changes for seen in self._unrelated(change)]
        turned_by_cause: dict[int, list[_Turned]] = {}
        for entity, related in self._rules.related.items():
            rules = self._rules.for_entity(entity)
            last_cause = None if self._is_exact else self._note_moments(entity, related)
            for seen, turned in self._touched(entity, rules, last_cause):
                if turned is None:
                    found.append(seen)
                else:
                    turned_by_cause.setdefault(seen.seq, []).append(turned)
            for cause, turned in self._untouched(entity, rules, related):
                turned_by_cause.setdefault(cause.seq, []).append(turned)
        causes = {change.seq: change for change in self._changes}
        for seq, rows in turned_by_cause.items():
            found += self._numbered(causes[seq], rows)
        found.sort(key=lambda change: change.seq)
        return found

    def _unrelated(self, change: Change) -> Iterator[Change]:
        """Yield a change of an entity whose read rule asks nothing of other rows."""
        entity = change.event.entity
        rules = None if entity in self._rules.related else self._rules.find(entity)
        if rules is None:  # a manifest without the entity: only admins may read it
            return
        view = find_view(change, rules, self._auth)
        if view is View.AS_DELETE:
            yield as_delete(change)
        elif view is not View.NONE:
            yield change

    def _note_moments(self, entity: str, related: RelatedChanges) -> Change | None:
        """Note the related rows after each related change of an entity's rule, and the images of
        its rows. Return the last of these changes."""
        causes = [
            change for change in self._changes
            if related.may_turn(change.event.entity, change.prev_row, change.row) and any(
                related.concerns(self._auth, change.event.entity, image)
                for image in (change.prev_row, change.row) if image is not None
            )
        ]
        if len(causes) > limits.RELATED_MOMENTS:
            raise LimitExceeded(f"more than {limits.RELATED_MOMENTS} changes of your memberships")
        self._moments = [
            PastRows(self._reader, ChangedRows([
                change for change in self._changes if change.seq > cause.seq
            ]))
            for cause in causes
        ]
        for change in self._changes:
            if change.event.entity == entity and change.row is not None:
                key = entity, change.event.row_id
                self._images.setdefault(key, []).append(change.row)
                if not causes or change.seq < causes[0].seq:
                    self._early_images.setdefault(key, []).append(change.row)
        return causes[-1] if causes else None

    def _touched(
        self, entity: str, rules: EntityRules, last_cause: Change | None
    ) -> Iterator[tuple[Change, _Turned | None]]:
        """Yield what became of the rows that changed themselves: as a change; or as a row that
        takes a seq of a related change behind it.

        Args:
            last_cause: the last related change, unless the cursor is exact.
        """
        for span in self._changed.rows_of(entity).values():
            saw = self._saw(rules, span.before)
            event, before = span.last.event, span.first.event.prev_data
            sees = self._sees(rules, span.after)
            key = entity, event.row_id
            if not sees and not saw and not self._was_seen(
                rules, self._images.get(key, ()), self._early_images.get(key, ())
            ):
                continue
            if last_cause is not None and last_cause.seq > event.seq:
                yield last_cause, _Turned(entity, event.row_id, sees, event.data or b"")
            elif sees:
                kind: Kind = "insert" if before is None else "update"
                shown = before if saw else None
                yield (
                    _change(event.seq, entity, event.row_id, kind, event.data, shown, span.last),
                    None,
                )
            else:
                yield (
                    _change(event.seq, entity, event.row_id, "delete", None, before, span.last),
                    None,
                )

    def _untouched(
        self, entity: str, rules: EntityRules, related: RelatedChanges
    ) -> Iterator[tuple[Change, _Turned]]:
        """Yield the rows that related changes opened or closed, with the last of these changes."""
        judged: set[str] = set()
        for cause in reversed(self._changes):
            for where in self._affected(cause, related):
                others = self._changed.untouched(entity, where)
                for text in read_rows(self._reader, entity, others):
                    row = orjson.loads(text)
                    if row["id"] in judged:
                        continue
                    judged.add(row["id"])
                    if len(judged) > limits.RELATED_ROWS:
                        raise LimitExceeded(f"more than {limits.RELATED_ROWS} rows of {entity}")
                    sees = self._sees(rules, row)
                    if self._is_exact:
                        is_turned = sees is not self._saw(rules, row)
                    else:
                        is_turned = sees or self._saw(rules, row) or self._was_seen(rules, [row])
                    if is_turned:
                        yield cause, _Turned(entity, row["id"], sees, text)

    def _affected(self, change: Change, related: RelatedChanges) -> set[Predicate]:
        """Return conditions of the rows whose verdict a change may have turned."""
        if not related.may_turn(change.event.entity, change.prev_row, change.row):
            return set()
        return {
            where
            for image in (change.prev_row, change.row) if image is not None
            for where in related.affected(
                self._auth, change.event.entity, image, self._find_rows
            )
        }

    def _find_rows(self, entity: str, where: Predicate) -> Iterable[Row]:
        """Return the rows for which a condition holds, before the range or behind it."""
        holds = evaluator_of(where)
        for span in self._changed.rows_of(entity).values():
            for image in (span.before, span.after):
                if image is not None and holds(image):
                    yield image
        yield from map(orjson.loads, read_rows(self._reader, entity, where))

    def _numbered(self, cause: Change, rows: Sequence[_Turned]) -> Iterator[Change]:
        """Yield rows with the free seqs below their related change."""
        # The lowest ones: a client that was cut off in between can still get the rest.
        first_seq = self._seq_before[cause.seq] + 1
        if first_seq + len(rows) > cause.seq:
            raise LimitExceeded("more rows than there are free seqs")
        for seq, row in enumerate(rows, first_seq):
            kind: Kind = "insert" if row.is_open else "delete"
            data, before = (row.text, None) if row.is_open else (None, row.text)
            yield _change(seq, row.entity, row.row_id, kind, data, before, cause)

    def _was_seen(
        self, rules: EntityRules, images: Sequence[Row], early_images: Sequence[Row] = ()
    ) -> bool:
        """Whether an image of a row was in view at a commit within the range, unless exact.

        Args:
            images: any of them may have been in view after a related change.
            early_images: those of a time before the first related change.
        """
        self._judgements += len(images) * len(self._moments) + len(early_images)
        if self._judgements > limits.RELATED_JUDGEMENTS:
            raise LimitExceeded("your memberships have changed too often for so many rows")
        return any(
            rules.may_read(self._auth, image, self._before) for image in early_images
        ) or any(
            rules.may_read(self._auth, image, moment)
            for image in images for moment in self._moments
        )

    def _saw(self, rules: EntityRules, row: Row | None) -> bool:
        return row is not None and rules.may_read(self._auth, row, self._before)

    def _sees(self, rules: EntityRules, row: Row | None) -> bool:
        return row is not None and rules.may_read(self._auth, row, self._now)


def as_delete(change: Change) -> Change:
    """Return an update that takes a row out of a caller's view, as that caller sees it."""
    event = change.event
    return _change(
        event.seq, event.entity, event.row_id, "delete", None, event.prev_data, change
    )


def _change(
    seq: int, entity: str, row_id: str, kind: Kind, data: bytes | None, prev_data: bytes | None,
    cause: Change,
) -> Change:
    return Change(
        ChangeEvent(seq, entity, row_id, kind, data, prev_data, cause.event.timestamp_s)
    )
