"""Unique keys: the fields of an entity that must be unique together, and who has which values.

The writer asks for the owners of new values before it sends a batch, so that a taken value is the
refusal of one request and not the failure of a flush. The unique indexes of the database stay the
last word; they decide between two nodes.

Called by `table` and `prefetch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pylon.manifest.model import Entity, Field, Index
from pylon.query.evaluate import evaluator_of
from pylon.query.index_filters import index_filter
from pylon.query.predicate import TRUE
from pylon.schema.columns import (
    fold_column,
    fold_fields,
    fold_index,
    index_name,
    unique_name,
    where_fields,
)
from pylon.storage.postgres.names import fitting_name, quote
from pylon.storage.postgres.schema.ddl import COLUMN_TYPES
from pylon.values import EntityCodec, fold_case

Values = tuple[Any, ...]
Row = Mapping[str, Any]


class UniqueKey:
    """One unique index. `fields`: as an error names them. `where`: whether a row is in a partial
    index; None: every row is."""

    __slots__ = ("_codec", "_is_fold", "affected_by", "fields", "find", "find_all", "index",
                 "where")

    def __init__(
        self, entity: Entity, codec: EntityCodec, index: str, fields: tuple[str, ...],
        columns: tuple[str, ...], *, is_fold: bool = False,
        where: Callable[[Row], bool] | None = None, where_names: Sequence[str] = (),
    ) -> None:
        """
        Args:
            index: its whole name.
            columns: of the fields.
        """
        self.index = fitting_name(index)
        self.fields = fields
        self.where = where
        self.affected_by = frozenset((*fields, *where_names))
        self._codec = codec
        self._is_fold = is_fold
        table = quote(entity.name)
        row_json = ", _json" if where is not None else ""
        equal = " AND ".join(f"{quote(name)} = ${n}" for n, name in enumerate(columns, 1))
        self.find = f"SELECT id{row_json} FROM {table} WHERE {equal}"
        types = [
            "TEXT" if is_fold or name == "id" else COLUMN_TYPES[entity.by_name[name].type]
            for name in fields
        ]
        arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(types, 1))
        names = ", ".join(f"k{n}" for n in range(1, len(columns) + 1))
        joined = " AND ".join(f"t.{quote(name)} = k{n}" for n, name in enumerate(columns, 1))
        self.find_all = (
            f"SELECT n, id{row_json} FROM unnest({arrays}) WITH ORDINALITY AS asked ({names}, n) "
            f"JOIN {table} AS t ON {joined}"
        )

    def values_of(self, row: Row) -> Values | None:
        """Return the key of a whole row; None if the index does not have the row."""
        if self.where is not None and not self.where(row):
            return None
        values = tuple(self._codec.column_values(row, self.fields))
        if self._is_fold:
            values = (fold_case(values[0]),)
        return None if None in values else values


def unique_keys(entity: Entity, codec: EntityCodec) -> tuple[UniqueKey, ...]:
    """Return the unique keys of an entity, without that of `id`."""
    found = [_of_field(entity, codec, field) for field in entity.fields if field.unique]
    found += [
        UniqueKey(
            entity, codec, fold_index(entity, field).name, (field.name,), (fold_column(field),),
            is_fold=True,
        )
        for field in fold_fields(entity)
    ]
    found += [_of_index(entity, codec, index) for index in entity.indexes if index.unique]
    return tuple(found)


def _of_field(entity: Entity, codec: EntityCodec, field: Field) -> UniqueKey:
    return UniqueKey(entity, codec, unique_name(entity, field), (field.name,), (field.name,))


def _of_index(entity: Entity, codec: EntityCodec, index: Index) -> UniqueKey:
    condition = index_filter(entity, index)
    where = None if condition is TRUE else evaluator_of(condition)
    return UniqueKey(
        entity, codec, index_name(entity, index), index.fields, index.fields, where=where,
        where_names=() if where is None else sorted(where_fields(entity, index)),
    )
