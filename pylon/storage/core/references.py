"""References: keeps the fields of type id(Entity) true, for the writer.

An insert or update that names a row that does not exist is refused. A delete of a row to which
others refer is refused, or deletes them, or sets their fields to null (`onDelete`). `plan_delete`
only reads, and finds all rows that a delete takes with it, so that a refused delete has changed
nothing; `rows` makes the changes. They are the server's doing: no policy of these rows is judged.

Within a `Transact` the checks wait for its end, so that its operations may come in any order.
Cascades do not wait. Rows that refer to each other in a circle are found once.

Invariant: a reference that was true when a checked write made it stays true. References that were
broken before the checks began are left alone, until a write changes them. Bounds:
`limits.CASCADE_ROWS` and `limits.TRANSACT_BYTES` of rows for each delete. Made by `engine`, called
by `rows`, in their transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import LimitExceeded, PylonError, ReferenceInUse, ReferenceNotFound
from pylon.manifest.model import OnDelete
from pylon.manifest.references import Reference
from pylon.query.predicate import TRUE
from pylon.storage.core.entity import EntityWrites
from pylon.values import shown


class _Checked(NamedTuple):
    """A field that must name a row of `target`. `position`: among the values of an insert."""

    position: int
    field: str
    target: EntityWrites
    reference: Reference


class _Referring(NamedTuple):
    """A field of other rows that may name a row."""

    entity: EntityWrites
    field: str
    on_delete: OnDelete


class StoredRow(NamedTuple):
    """A row as the transaction has it now."""

    entity: EntityWrites
    row_id: str
    row_json: bytes
    version: int | None


class Cascade(msgspec.Struct):
    """The changes that a delete makes beside its own: rows with the fields to set to null, then
    rows to delete, in this order."""

    changes: list[tuple[StoredRow, dict[str, None]]] = msgspec.field(default_factory=list)
    deletes: list[StoredRow] = msgspec.field(default_factory=list)

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return len(self.changes) + len(self.deletes)


class _Deferred(NamedTuple):
    """A check that waits for the end of a `Transact`; `checked` is None for a deleted row."""

    step: int
    entity: EntityWrites
    row_id: str
    checked: _Checked | None
    auth: AuthContext | None = None  # who deletes


class ReferenceChecks:
    """All checked references. `checked` and `referring` have the entities that have any."""

    __slots__ = ("_cascaded", "_deferred", "_step", "checked", "referring")

    def __init__(
        self, entities: Mapping[str, EntityWrites], references: Iterable[Reference]
    ) -> None:
        self.checked: dict[str, list[_Checked]] = {}
        self.referring: dict[str, list[_Referring]] = {}
        self._deferred: list[_Deferred] | None = None
        self._step = 0
        self._cascaded = 0
        for reference in references:
            entity, target = entities[reference.entity], entities[reference.target]
            position = [f.name for f in entity.entity.fields].index(reference.field)
            checked = _Checked(position, reference.field, target, reference)
            self.checked.setdefault(entity.name, []).append(checked)
            self.referring.setdefault(target.name, []).append(
                _Referring(entity, reference.field, reference.on_delete)
            )

    # --- Writes ----------------------------------------------------------------------------

    def check_insert(self, entity: EntityWrites, row_id: str, values: Sequence[Any]) -> None:
        """Check the references of a new row. Args: `values`: see `InsertRow`.

        Raises:
            ReferenceNotFound
        """
        for checked in self.checked[entity.name]:
            self._check(entity, row_id, checked, values[checked.position])

    def check_update(
        self, entity: EntityWrites, row_id: str, before: Mapping[str, Any],
        patch: Mapping[str, Any],
    ) -> None:
        """Check the references that an update changes.

        Raises:
            ReferenceNotFound
        """
        for checked in self.checked[entity.name]:
            name = checked.field
            if name in patch and patch[name] != before.get(name):
                self._check(entity, row_id, checked, patch[name])

    def _check(
        self, entity: EntityWrites, row_id: str, checked: _Checked, value: Any
    ) -> None:
        target = checked.target
        if value is None or (value == row_id and target is entity) or target.table.has(value):
            return
        if self._deferred is None:
            raise reference_not_found(checked.reference, value)
        self._deferred.append(_Deferred(self._step, entity, row_id, checked))

    def plan_delete(self, root: StoredRow, auth: AuthContext) -> Cascade:
        """Return the changes that a delete makes beside its own.

        Raises:
            ReferenceInUse: rows refer to the row, or to one that would be deleted with it, and
                their field does not say what becomes of them.
            LimitExceeded: too many rows would change.
        """
        deleted: dict[tuple[str, str], StoredRow] = {(root.entity.name, root.row_id): root}
        changed: dict[tuple[str, str], tuple[StoredRow, dict[str, None]]] = {}
        size_bytes = 0
        for entity, row_id, _, _ in (queue := [root]):  # grows meanwhile
            for child, name, on_delete in self.referring.get(entity.name, ()):
                if on_delete == "restrict":
                    continue
                room = limits.CASCADE_ROWS - self._cascaded - len(deleted) - len(changed) + 2
                # Some of them may be known already, as part of a circle.
                for found_id in child.table.find_referring(
                    name, row_id, room + len(deleted) + len(changed)
                ):
                    key = (child.name, found_id)
                    if key in deleted:
                        continue
                    found = _load(child, found_id) if key not in changed else changed[key][0]
                    if found is None:
                        continue
                    if key not in changed:
                        size_bytes += len(found.row_json)
                    if on_delete == "cascade":
                        changed.pop(key, None)
                        deleted[key] = found
                        queue.append(found)
                    else:
                        changed.setdefault(key, (found, {}))[1][name] = None
                    _check_bounds(
                        root, self._cascaded + len(deleted) + len(changed) - 1, size_bytes
                    )
        for row in queue:
            self._check_unused(row, deleted, auth)
        cascade = Cascade(list(changed.values()), queue[:0:-1])
        if self._deferred is not None:
            self._cascaded += cascade.count
        return cascade

    def _check_unused(
        self, row: StoredRow, deleted: Mapping[tuple[str, str], StoredRow], auth: AuthContext
    ) -> None:
        """Check that no row that stays refers to a deleted row by a field that forbids it.

        Raises:
            ReferenceInUse
        """
        restricting = [
            referring for referring in self.referring.get(row.entity.name, ())
            if referring.on_delete == "restrict"
        ]
        if restricting and self._deferred is not None:
            self._deferred.append(_Deferred(self._step, row.entity, row.row_id, None, auth))
            return
        for child, name, _ in restricting:
            limit = len(deleted) + limits.REFERENCES_COUNTED + 1
            found = child.table.find_referring(name, row.row_id, limit)
            count = sum((child.name, row_id) not in deleted for row_id in found)
            if count:
                raise _in_use(row.entity, row.row_id, child, name, count, auth)

    # --- Transactions ----------------------------------------------------------------------

    def open_step(self) -> None:
        """Let the checks wait for `find_violation`."""
        self._deferred = []
        self._cascaded = 0

    def note_step(self, number: int) -> None:
        """Note the number of the operation that is executed next."""
        self._step = number

    def close_step(self) -> None:
        """Forget what waits."""
        self._deferred = None
        self._cascaded = 0

    def find_violation(self) -> tuple[int, PylonError] | None:
        """Make the checks that have waited. Return the number of the first operation that broke a
        reference and the error, or None."""
        for step, entity, row_id, checked, auth in self._deferred or ():
            if checked is None:
                error = self._find_use(entity, row_id, auth)
            else:
                error = _find_missing(entity, row_id, checked)
            if error is not None:
                return step, error
        return None

    def _find_use(
        self, entity: EntityWrites, row_id: str, auth: AuthContext | None
    ) -> PylonError | None:
        """Return the error if rows refer to a row that does not exist at the end."""
        if entity.table.has(row_id):
            return None
        for child, name, _ in self.referring[entity.name]:
            found = child.table.find_referring(name, row_id, limits.REFERENCES_COUNTED + 1)
            if found:
                return _in_use(entity, row_id, child, name, len(found), auth)
        return None


def _find_missing(entity: EntityWrites, row_id: str, checked: _Checked) -> PylonError | None:
    """Return the error if the row exists at the end and names a row that does not."""
    found = entity.table.find(row_id)
    value = None if found is None else orjson.loads(found[0]).get(checked.field)
    if value is None or checked.target.table.has(value):
        return None
    return reference_not_found(checked.reference, value)


def _load(entity: EntityWrites, row_id: str) -> StoredRow | None:
    found = entity.table.find(row_id)
    return None if found is None else StoredRow(entity, row_id, *found)


def _check_bounds(root: StoredRow, count: int, size_bytes: int) -> None:
    """
    Raises:
        LimitExceeded
    """
    if count > limits.CASCADE_ROWS:
        raise LimitExceeded(
            f"Deleting this {root.entity.name} would delete or change more than "
            f"{limits.CASCADE_ROWS} rows that refer to it (CASCADE_ROWS)",
            hint="Delete the rows that refer to it first, in portions",
        )
    if size_bytes > limits.TRANSACT_BYTES:
        raise LimitExceeded(
            f"Deleting this {root.entity.name} would delete or change more than "
            f"{limits.TRANSACT_BYTES} bytes of rows that refer to it (TRANSACT_BYTES)",
            hint="Delete the rows that refer to it first, in portions",
        )


def reference_not_found(reference: Reference, value: object) -> ReferenceNotFound:
    """Return the error for a reference to a row that does not exist."""
    return ReferenceNotFound(
        f"{reference.entity}.{reference.field} names a row of {reference.target} that does not "
        "exist",
        hint=f"Insert the {reference.target} first, or in the same transaction",
        entity=reference.entity, field=reference.field, value=shown(value),
    )


def _in_use(
    entity: EntityWrites, row_id: str, child: EntityWrites, name: str, count: int,
    auth: AuthContext | None,
) -> ReferenceInUse:
    """Return the error of a delete. It counts the rows only for a caller who may read them all."""
    hint = f'Delete or change them first, or give {child.name}.{name} an "onDelete"'
    if auth is None or child.rules.readable_by(auth) is not TRUE:
        return ReferenceInUse(
            f"Rows of {child.name} refer by {name} to {entity.name}/{row_id}",
            hint=hint, entity=child.name, field=name,
        )
    bounded = min(count, limits.REFERENCES_COUNTED)
    more = "more than " if count > bounded else ""
    return ReferenceInUse(
        f"{more}{bounded} rows of {child.name} refer by {name} to {entity.name}/{row_id}",
        hint=hint, entity=child.name, field=name, count=bounded, is_exact=count == bounded,
    )
