"""Operations: the entries of a batch and of a transaction, ``{"op", "entity", "id", "data"}``.

Each becomes a write for the writer, judged like the same change by its own route, or the error
that says why not.

In a transaction ``"$ref:<n>"`` stands for the id of the row that operation n (from 0, an insert
and an earlier one) makes: as `id`, or as the value of a string or id(...) field.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pylon.api import changes
from pylon.api.access import entity_named
from pylon.api.unreadable import readable
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.errors import InvalidData, PylonError
from pylon.manifest.model import Entity, FieldType
from pylon.storage.ops import InsertRow, OpKey, RowOp

UNKNOWN: Final = "unknown operation"
_KINDS: Final = ("insert", "update", "delete")
_REF: Final = re.compile(r"\$ref:([0-9]{1,6})", re.ASCII)
_REF_TYPES: Final = (FieldType.ID, FieldType.STRING)
_SHOWN_CHARS: Final = 100


@dataclass(slots=True)
class Operation:
    """One entry: as it was named, and its write or its error."""

    op: object
    row_id: str | None = None
    write: RowOp | None = None
    error: PylonError | None = None

    def named(self) -> dict[str, Any]:
        """The beginning of its entry in the answer."""
        return {"op": self.op[:_SHOWN_CHARS] if isinstance(self.op, str) else self.op}


def operation(
    app: App,
    auth: AuthContext,
    entry: object,
    key: OpKey | None = None,
    earlier: Sequence[Operation] | None = None,
    problem: PylonError | None = None,
) -> Operation:
    """What an entry asks for.

    Args:
        problem: why it cannot be read.
        earlier: the operations before it, where it may refer to them.
    """
    if not isinstance(entry, dict):
        return Operation(None, error=InvalidData("An operation must be an object"))
    kind, row_id = readable(entry.get("op")), readable(entry.get("id"))
    made = Operation(kind, row_id if isinstance(row_id, str) else None, error=problem)
    if problem is not None:
        return made
    try:
        made.write = _write(app, auth, entry, key, earlier)
        made.row_id = made.write.row_id
    except PylonError as error:
        made.error = error
    return made


def _write(
    app: App,
    auth: AuthContext,
    entry: dict[str, Any],
    key: OpKey | None,
    earlier: Sequence[Operation] | None,
) -> RowOp:
    kind, row_id, data = entry.get("op"), entry.get("id"), entry.get("data")
    if kind not in _KINDS:
        raise InvalidData(UNKNOWN, hint=f"op must be one of {', '.join(_KINDS)}")
    entity = entity_named(app, entry.get("entity"), auth)
    if earlier is not None:
        row_id = _resolved(row_id, earlier)
        data = _resolved_data(entity, data, earlier)
    if kind == "insert":
        return changes.insert(app, entity, auth, data, key)
    if not isinstance(row_id, str) or not row_id:
        raise InvalidData(f"An operation of kind {kind} needs an id")
    if kind == "update":
        return changes.update(app, entity, auth, row_id, data, key)
    return changes.delete(entity, auth, row_id, key)


def _resolved_data(entity: Entity, data: object, earlier: Sequence[Operation]) -> object:
    if not isinstance(data, dict):
        return data
    return {
        name: _resolved(value, earlier)
        if (field := entity.by_name.get(name)) is not None and field.type in _REF_TYPES
        else value
        for name, value in data.items()
    }


def _resolved(value: object, earlier: Sequence[Operation]) -> object:
    """The row id that a reference stands for; any other value as it is."""
    match = _REF.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    number = int(match[1])
    write = earlier[number].write if number < len(earlier) else None
    if not isinstance(write, InsertRow):
        raise InvalidData(
            f"{match[0]} does not refer to an earlier insert",
            hint=f"It stands before operation {len(earlier)}, counted from 0",
        )
    return write.row_id
