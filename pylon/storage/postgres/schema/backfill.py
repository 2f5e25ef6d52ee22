"""Backfill: computes columns of present rows in Python, in short steps, while other nodes write.

`_json` is written anew when the fields of an entity change, `_words` when its search config does,
and a fold column when its field becomes unique without regard to case. A step takes the next rows
by id under the writers' lock, so no writer changes them meanwhile, and commits. It has at most
`ROWS_MAX` rows; the number follows from the time that the last step took (`STEP_S`), because
writers wait that long. A row whose JSON changes gets a version that it never had.

`_pylon_meta` has a key `backfill:<Entity>` with the progress, in the transaction of each step, so
that a start goes on where a killed one was. Called by `apply`, `rewrite` and `manager`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pylon.clock import Clock, SystemClock
from pylon.manifest.model import Entity, Field
from pylon.query.words import text_fields
from pylon.schema.columns import JSON_COLUMN, SEQ_COLUMN, fold_column, fold_fields
from pylon.storage.postgres import meta
from pylon.storage.postgres.epochs import head_seq
from pylon.storage.postgres.locks import WRITER, lock_key
from pylon.storage.postgres.names import SEQ_SEQUENCE, WORDS_COLUMN, quote
from pylon.storage.postgres.parameters import Item, Parameter
from pylon.storage.postgres.schema.catalogue import decoder_of
from pylon.storage.postgres.schema.ddl import COLUMN_TYPES
from pylon.storage.postgres.schema.results import text_rows
from pylon.storage.postgres.statements import Statement
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.postgres.word_vector import vector_of
from pylon.values import EntityCodec, fold_case

ROWS_MAX: Final = 1_000
STEP_S: Final = 0.05  # aimed at: what a writer may have to wait
_ROWS_FIRST: Final = 50
_ROWS_MIN: Final = 5
_KEY: Final = "backfill:"
_SET_HEAD: Final = "UPDATE _pylon_change_seq SET value = $1 WHERE id = 1 AND value < $1"
# Writers count on from the sequence: without it the next events would have seqs below the head, and
# no reader would look for them.
_SET_SEQ: Final = (
    f"SELECT setval('{SEQ_SEQUENCE}', greatest($1::bigint, last_value)) FROM {SEQ_SEQUENCE}"
)


@dataclass(frozen=True, slots=True)
class Goal:
    """Values to write. `purpose`: tells one backfill of an entity from another. `after_seq`:
    only rows of a later version, and of these only those that have other values."""

    purpose: str
    has_json: bool = False
    has_words: bool = False
    folds: tuple[str, ...] = ()  # fields
    after_seq: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.has_json or self.has_words or self.folds)


class _Progress(msgspec.Struct, frozen=True):
    purpose: str
    after: str


@dataclass(frozen=True, slots=True)
class _Column:
    """A column that is written, and how its value follows from a row and from the SQL values."""

    name: str
    cast: str
    value_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Item]


def backfill(
    session: BlockingSession, entity: Entity, goal: Goal, clock: Clock | None = None
) -> int:
    """Write the columns of a goal for every row of an entity. Return the number of rows.

    Within an open transaction it is all one step; the caller has the writers' lock then.

    Args:
        clock: measures the steps.

    Raises:
        psycopg.Error
    """
    if goal.is_empty:
        return 0
    waits = clock or SystemClock()
    is_within = session.is_in_transaction
    key = _KEY + entity.name
    known = meta.get(session, key)
    after = ""
    if known is not None and not is_within:
        progress = msgspec.json.decode(known, type=_Progress)
        after = progress.after if progress.purpose == goal.purpose else ""
    begin: list[Statement] = []
    if not is_within:
        begin = [
            ("BEGIN", ()),
            ("SELECT pg_advisory_xact_lock($1)", (lock_key(session, WRITER),)),
        ]
    writer = RowWriter(session, entity, goal)
    rows, count = _ROWS_FIRST, 0
    while True:
        started_s = waits.monotonic_s()
        done, last_id = writer.run_step(begin, after, rows)
        count += done
        is_last = done < rows
        end: list[Statement] = []
        if is_last:
            end.append(("DELETE FROM _pylon_meta WHERE key = $1", (key,)))
        else:
            progress = _Progress(goal.purpose, last_id)
            end.append((meta.PUT, (key, msgspec.json.encode(progress).decode())))
        if not is_within:
            end.append(("COMMIT", ()))
        session.pipeline(end)
        if is_last:
            return count
        after = last_id
        taken_s = waits.monotonic_s() - started_s
        if taken_s < STEP_S / 2:
            rows = min(ROWS_MAX, rows * 2)
        elif taken_s > STEP_S:
            rows = max(_ROWS_MIN, rows // 2)


class RowWriter:
    """The statements of one backfill."""

    def __init__(self, session: BlockingSession, entity: Entity, goal: Goal) -> None:
        self._session = session
        self._codec = EntityCodec(entity)
        self._has_json = goal.has_json
        self._names = entity.columns
        kinds = {field.name: COLUMN_TYPES[field.type] for field in entity.fields}
        self._decoders = [decoder_of(kinds.get(name, "TEXT")) for name in self._names]
        self._columns = _columns_of(entity, goal, self._codec)
        table = quote(entity.name)
        self._select = (
            f"SELECT {', '.join(map(quote, self._names))} FROM {table} "
            f"WHERE id > $1{_later(goal)} ORDER BY id LIMIT $2"
        )
        places = range(2, len(self._columns) + 2)
        sets = [
            f"{quote(column.name)} = n.c{place}{column.cast}"
            for place, column in zip(places, self._columns, strict=True)
        ]
        if goal.has_json:
            sets.append(f"{SEQ_COLUMN} = ${len(self._columns) + 2}")
        arrays = ", ".join(f"${place}::text[]" for place in (1, *places))
        names = ", ".join(("id", *(f"c{place}" for place in places)))
        self._update = (
            f"UPDATE {table} AS t SET {', '.join(sets)} "
            f"FROM unnest({arrays}) AS n ({names}) WHERE t.id = n.id"
        )
        if goal.after_seq is not None:
            stored = ", ".join(f"t.{quote(column.name)}" for column in self._columns)
            wanted = ", ".join(
                f"n.c{place}{column.cast}"
                for place, column in zip(places, self._columns, strict=True)
            )
            self._update += f" AND ({stored}) IS DISTINCT FROM ({wanted})"

    def run_step(self, begin: Sequence[Statement], after: str, rows: int) -> tuple[int, str]:
        """Write the next rows after an id. Return how many, and the id of the last one.

        Args:
            begin: statements that go before, in the same flush.
        """
        ids, values = self.read(begin, after, rows)
        if not ids:
            return 0, after
        parameters: list[Parameter] = [ids, *values]
        version = 0
        if self._has_json:
            version = head_seq(self._session) + 1
            parameters.append(version)
        changed = self._session.execute(self._update, parameters).command_tuples
        if version and changed:
            self._session.execute(_SET_HEAD, (version,))
            self._session.execute(_SET_SEQ, (version,))
        return len(ids), str(ids[-1])

    def read(
        self, begin: Sequence[Statement], after: str, rows: int
    ) -> tuple[list[Item], list[list[Item]]]:
        """Return the ids of the next rows after an id, and for each column the values to write."""
        *_, found = self._session.pipeline([*begin, (self._select, (after, rows))])
        ids: list[Item] = []
        values: list[list[Item]] = [[] for _ in self._columns]
        for texts in text_rows(found):
            sql_values = [
                None if text is None else decode(text)
                for text, decode in zip(texts, self._decoders, strict=True)
            ]
            row = self._codec.row_from_sql(sql_values)
            by_name = dict(zip(self._names, sql_values, strict=True))
            ids.append(row["id"])
            for column, out in zip(self._columns, values, strict=True):
                out.append(column.value_of(row, by_name))
        return ids, values


def _columns_of(entity: Entity, goal: Goal, codec: EntityCodec) -> list[_Column]:
    columns = []
    if goal.has_json:
        columns.append(_Column(JSON_COLUMN, "", lambda row, _: codec.encode(row)))
    if goal.has_words and text_fields(entity):
        columns.append(_Column(
            WORDS_COLUMN, "::tsvector", lambda row, _: vector_of(entity, row)
        ))
    columns += [
        _Column(fold_column(field), "", _fold_of(field))
        for field in fold_fields(entity) if field.name in goal.folds
    ]
    return columns


def _later(goal: Goal) -> str:
    return "" if goal.after_seq is None else f" AND {SEQ_COLUMN} > {goal.after_seq}"


def _fold_of(field: Field) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Item]:
    return lambda _, values: fold_case(values[field.name])
