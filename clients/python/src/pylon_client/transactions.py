"""A transaction: inserts, updates and deletes that are gathered, and carried out together.

The client makes the ids of new rows, so that later operations can refer to them. Called by both
shells: they send the operations at the end of the ``with`` block, and nothing if it raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pylon_client.entities import entity_name, make_row_id, plain, row_id_of


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `values` is None for a delete."""

    kind: str
    entity: str
    row_id: str
    values: Any = None

    def body(self) -> dict[str, Any]:
        """Return the operation on the wire."""
        sent: dict[str, Any] = {"op": self.kind, "entity": self.entity}
        if self.kind == "insert":
            return {**sent, "data": {**self.values, "id": self.row_id}}
        if self.kind == "update":
            return {**sent, "id": self.row_id, "data": self.values}
        return {**sent, "id": self.row_id}


class Transaction:
    """Gathers operations. A row that is an instance of a class names its entity by itself;
    otherwise the entity comes first: ``t.update("Room", room_id, name="lobby")``."""

    __slots__ = ("operations",)

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def insert(self, entity: str | type[Any], /, **values: Any) -> str:
        """Insert a row, and return its id, which other operations may use."""
        row_id = values.pop("id", None) or make_row_id()
        self.operations.append(Operation("insert", _named(entity), row_id, plain(values)))
        return str(row_id)

    def update(self, target: object, row: object = None, /, **values: Any) -> None:
        """Change fields of a row: ``update(row, ...)``, or ``update(entity, row_or_id, ...)``."""
        entity, row_id = _target(target, row)
        self.operations.append(Operation("update", entity, row_id, plain(values)))

    def delete(self, target: object, row: object = None, /) -> None:
        """Delete a row: ``delete(row)``, or ``delete(entity, row_or_id)``."""
        entity, row_id = _target(target, row)
        self.operations.append(Operation("delete", entity, row_id))


def _target(target: object, row: object) -> tuple[str, str]:
    if row is not None:
        if not isinstance(target, str | type):
            raise TypeError("with two arguments the first is an entity: its name or its class")
        return _named(target), row_id_of(row)
    if isinstance(target, str | type | dict):
        raise TypeError(
            "give a row of a class, or the entity and the row: update('Room', room_id, ...)"
        )
    return entity_name(type(target)), row_id_of(target)


def _named(entity: str | type[Any]) -> str:
    return entity if isinstance(entity, str) else entity_name(entity)
