"""What the write engine knows of one entity: codec, rules, and the SQL texts of its writes.

Invariant: a text names exactly the columns that the live table has, quoted. Made by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pylon import limits
from pylon.manifest.model import Entity
from pylon.storage.names import quote
from pylon.storage.sqlite.constraint_errors import ConstraintErrors
from pylon.storage.sqlite.schema.ddl import JSON_COLUMN, SEQ_COLUMN
from pylon.storage.sqlite.search import SearchIndex
from pylon.values import EntityCodec

if TYPE_CHECKING:
    from pylon.policy.rules import EntityRules

_UPDATE_TEXTS: Final = 256  # field combinations remembered for each entity


class Table:
    """One entity's codec, rules, SQL texts and search index.

    `insert` takes id, values, JSON, seq and `fill`; `select` gives JSON and seq of an id.
    `select_small` gives no JSON above `limits.JUDGED_FIRST_BYTES`; `look` gives its size, and the
    columns that `judged` makes a row of. Neither reads the pages of a large JSON.
    """

    __slots__ = ("_judged", "_updates", "codec", "delete", "entity", "fill", "has_documents",
                 "insert", "look", "refusals", "row_max_bytes", "rules", "search", "select",
                 "select_small")

    def __init__(
        self, entity: Entity, rules: EntityRules, retained_columns: Mapping[str, object],
        search: SearchIndex | None, row_max_bytes: int = limits.BODY_BYTES,
    ) -> None:
        """
        Args:
            fillers: columns that the manifest no longer names but that want a value.
            search: the index to keep, if the entity has one.
            row_max_bytes: of the JSON of a row that is inserted or grows.
        """
        self.row_max_bytes = row_max_bytes
        self.entity = entity
        self.rules = rules
        self.search = search
        self.has_documents = False  # whether any row may have one
        self.codec = EntityCodec(entity)
        self.refusals = ConstraintErrors(entity)
        self.fill = tuple(retained_columns.values())
        table = quote(entity.name)
        names = (*entity.columns, JSON_COLUMN, SEQ_COLUMN, *retained_columns)
        columns = ", ".join(quote(name) for name in names)
        marks = ", ".join("?" * len(names))
        self.insert = f"INSERT INTO {table} ({columns}) VALUES ({marks})"
        self.select = (
            f"SELECT CAST({JSON_COLUMN} AS BLOB), {SEQ_COLUMN} FROM {table} WHERE id = ?"
        )
        self._judged = tuple(name for name in entity.columns if name in rules.fields)
        size = f"octet_length({JSON_COLUMN})"
        judged = "".join(f", {quote(name)}" for name in self._judged)
        self.look = f"SELECT {size}{judged} FROM {table} WHERE id = ?"
        self.select_small = (
            f"SELECT CASE WHEN {size} <= {limits.JUDGED_FIRST_BYTES} "
            f"THEN CAST({JSON_COLUMN} AS BLOB) END, {SEQ_COLUMN} FROM {table} WHERE id = ?"
        )
        self.delete = f"DELETE FROM {table} WHERE id = ?"
        self._updates: dict[tuple[str, ...], str] = {}

    def judged(self, values: Sequence[Any]) -> dict[str, Any]:
        """The row as far as the policies of reads, updates and deletes look at it."""
        return self.codec.row_from_sql(values, self._judged)

    def update(self, fields: tuple[str, ...]) -> str:
        """Sets `fields`, JSON and seq of an id. Columns that stay are left out: their indexes
        rest."""
        text = self._updates.get(fields)
        if text is None:
            sets = ", ".join(f"{quote(f)} = ?" for f in (*fields, JSON_COLUMN, SEQ_COLUMN))
            text = f"UPDATE {quote(self.entity.name)} SET {sets} WHERE id = ?"
            if len(self._updates) < _UPDATE_TEXTS:
                self._updates[fields] = text
        return text
