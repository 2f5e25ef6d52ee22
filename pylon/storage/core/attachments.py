"""Attachments: the files that the fields of rows name (`"format": "file"`).

A write that puts a file's id into such a field attaches the file to the row, in the same
transaction. Another value, or the row's deletion, detaches it. Whoever may read the row may read
the file, so only its owner (or an administrator) may attach it, to one field of one row. Its type
and size must be those that the field takes (`accept`, `maxBytes`).

A caller cannot learn from a refusal whether somebody else's file exists. Writes of the server
itself (a seed) attach what is there, and are not refused.

Invariants: `plan` changes nothing, and refuses all that may be refused; `Attachment.execute` cannot
fail afterwards, since nothing else writes meanwhile. A field that keeps its value is not looked at.
Called by `rows`, in its transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from pylon.auth_context import AuthContext
from pylon.errors import FileNotAttachable, InvalidValue
from pylon.manifest.model import Entity, Field
from pylon.storage.auth_ops import Condition
from pylon.storage.core.transaction import RowTransaction

_TABLE: Final = "files"
_NONE: Final[Mapping[str, Any]] = {}
_DETACHED: Final = {"entity": None, "row_id": None, "field": None, "attached_at": None}


class Attachment(NamedTuple):
    """The changes of one write of a row: detached fields, and the file of each attached one."""

    detached: tuple[str, ...]
    attached: tuple[tuple[str, str], ...]


class AttachmentWrites:
    """The fields that name files, of all entities. `entities`: the names of those that have any."""

    __slots__ = ("_fields", "_transaction", "entities")

    def __init__(self, transaction: RowTransaction, entities: Iterable[Entity]) -> None:
        self._transaction = transaction
        self._fields = {
            entity.name: entity.file_fields for entity in entities if entity.file_fields
        }
        self.entities = frozenset(self._fields)

    def plan(
        self, entity: str, row_id: str, before: Mapping[str, Any] | None,
        row: Mapping[str, Any] | None, auth: AuthContext | None,
    ) -> Attachment:
        """Return what a write changes.

        Args:
            before, row: None: the row is new, or goes.
            auth: the caller; None: the server itself.

        Raises:
            FileNotAttachable: the caller may not attach a file.
            InvalidValue: its type or size is not what the field takes.
        """
        detached: list[str] = []
        attached: list[tuple[str, str]] = []
        old, new = before or _NONE, row or _NONE
        for field in self._fields[entity]:
            was, becomes = old.get(field.name), new.get(field.name)
            if was == becomes:
                continue
            if was is not None:
                detached.append(field.name)
            if becomes is None:
                continue
            if any(file_id == becomes for _, file_id in attached):
                raise _refused(entity, field, becomes)
            if self._check(entity, row_id, field, becomes, auth):
                attached.append((field.name, becomes))
        return Attachment(tuple(detached), tuple(attached))

    def execute(self, entity: str, row_id: str, change: Attachment, now_s: int) -> None:
        """Carry out a plan."""
        records = self._transaction.records
        for name in change.detached:
            records.set_records(_TABLE, [
                Condition("entity", "=", entity), Condition("row_id", "=", row_id),
                Condition("field", "=", name),
            ], _DETACHED, {}, None)
        for name, file_id in change.attached:
            records.set_records(_TABLE, [Condition("id", "=", file_id)], {
                "entity": entity, "row_id": row_id, "field": name, "attached_at": now_s,
            }, {}, None)

    def detach_all(self, entity: str) -> None:
        """Detach the files of all rows of an entity."""
        self._transaction.records.set_records(
            _TABLE, [Condition("entity", "=", entity)], _DETACHED, {}, None
        )

    def _check(
        self, entity: str, row_id: str, field: Field, file_id: str, auth: AuthContext | None
    ) -> bool:
        """Whether to attach a file; False where the server itself names one that is not there."""
        found = self._transaction.records.find_records(_TABLE, [Condition("id", "=", file_id)])
        record = found[0] if found else None
        is_free = (
            record is not None and record["state"] == "ready"
            # The other field of the same row may give it up in this very write.
            and (record["entity"] is None or (
                record["entity"] == entity and record["row_id"] == row_id
                and record["field"] == field.name
            ))
        )
        if auth is None:
            return is_free
        if record is None or not is_free or not (
            auth.is_admin or (auth.user_id is not None and auth.user_id == record["owner"])
        ):
            raise _refused(entity, field, file_id)
        _check_kind(entity, field, record)
        return True


def _check_kind(entity: str, field: Field, record: Mapping[str, Any]) -> None:
    constraints = field.constraints
    assert constraints is not None  # it has a format
    if constraints.accept and not _is_accepted(record["type"], constraints.accept):
        raise InvalidValue(
            f"{entity}.{field.name} takes a file of {', '.join(constraints.accept)}, and this one "
            f"is {record['type']}", entity=entity, field=field.name, value=record["id"],
        )
    if constraints.max_bytes is not None and record["size"] > constraints.max_bytes:
        raise InvalidValue(
            f"{entity}.{field.name} takes a file of at most {constraints.max_bytes} bytes, and "
            f"this one has {record['size']}", entity=entity, field=field.name, value=record["id"],
        )


def _is_accepted(kind: str, accept: tuple[str, ...]) -> bool:
    return any(
        kind == pattern or (pattern.endswith("/*") and kind.startswith(pattern[:-1]))
        for pattern in accept
    )


def _refused(entity: str, field: Field, file_id: str) -> FileNotAttachable:
    return FileNotAttachable(
        f"{entity}.{field.name}: {file_id[:80]} is no file of yours that is complete and not "
        "attached to another row", hint="Upload it first, as the caller who writes the row",
        entity=entity, field=field.name,
    )
