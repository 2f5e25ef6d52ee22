"""Record SQL: the statements on the auth tables, from their declarations, in a dialect.

Both backends run the texts that this module makes, with marks for the values (`RecordDialect`). So
an operation of `pylon.storage.auth_ops` means the same in both. The texts depend on the table, the
columns and the relations, and never on a value.

Invariant: no name comes into a text that the declaration lacks. Called by the readers, the
writers and the upkeep of both backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from pylon.errors import SHOWN_CHARS, InvalidValue
from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import TABLE_BY_NAME, TABLES, AuthTable, Column, Kind

_INT_MAX: Final = (1 << 63) - 1
_TYPES: Final[dict[Kind, type]] = {"text": str, "int": int, "bytes": bytes, "bool": int}
_COMPARED: Final = frozenset({"=", "!=", "<", "<=", ">", ">="})


class RecordDialect(msgspec.Struct, frozen=True):
    """How a backend writes tables of records, and their values.

    Attributes:
        mark: returns the mark of the n-th parameter (from 1) of a statement, for a kind of column.
        encode: returns a checked value as a parameter.
        types: of columns.
        volatile: the words for a table that a crash may empty.
        suffix: of CREATE TABLE.
    """

    mark: Callable[[int, Kind], str]
    encode: Callable[[Kind, Any], Any]
    types: Mapping[Kind, str]
    volatile: str = "TABLE"
    suffix: str = ""


class RecordStatement(NamedTuple):
    """The text of a statement and its parameters."""

    text: str
    parameters: tuple[Any, ...]


def table_of(name: str) -> AuthTable:
    """Return a declared table.

    Raises:
        ValueError: there is none of that name. A defect of the caller.
    """
    table = TABLE_BY_NAME.get(name)
    if table is None:
        raise ValueError(f'there is no auth table "{name}"')
    return table


def select(
    dialect: RecordDialect, table: AuthTable, where: Sequence[Condition], order: Sequence[str],
    limit: int,
) -> RecordStatement:
    """Return the statement that reads whole records, in the order of the declared columns."""
    parts = _Parts(dialect)
    names = ", ".join(column.name for column in table.columns)
    condition = parts.where(table, where)
    terms = [_order_term(table, term) for term in order]
    ordered = {term.lstrip("-") for term in order}
    terms += [name for name in table.key if name not in ordered]
    last = parts.add("int", limit)
    return parts.statement(
        f"SELECT {names} FROM {table.sql_name}{condition} ORDER BY {', '.join(terms)} LIMIT {last}"
    )


def count(
    dialect: RecordDialect, table: AuthTable, where: Sequence[Condition]
) -> RecordStatement:
    """Return the statement that counts records."""
    parts = _Parts(dialect)
    return parts.statement(f"SELECT count(*) FROM {table.sql_name}{parts.where(table, where)}")


def total(
    dialect: RecordDialect, table: AuthTable, column: str, where: Sequence[Condition]
) -> RecordStatement:
    """Return the statement that adds up an int column of records."""
    parts = _Parts(dialect)
    name = _column(table, column).name
    return parts.statement(
        f"SELECT coalesce(sum({name}), 0) FROM {table.sql_name}{parts.where(table, where)}"
    )


def _order_term(table: AuthTable, term: str) -> str:
    column = _column(table, term.removeprefix("-"))
    if term.startswith("-"):
        return f"{column.name} DESC{' NULLS LAST' if column.optional else ''}"
    return f"{column.name}{' NULLS FIRST' if column.optional else ''}"


def _column(table: AuthTable, name: str) -> Column:
    column = table.by_column.get(name)
    if column is None:
        raise ValueError(f'the auth table "{table.name}" has no column "{name}"')
    return column


def _check_value(table: AuthTable, column: Column, value: object) -> None:
    """
    Raises:
        TypeError, ValueError: the value is of another kind, or null where the column may not be.
        InvalidValue: a text with a NUL, or a number out of range: it may come from a client.
    """
    if value is None:
        if not column.optional:
            raise ValueError(f"{table.name}.{column.name} may not be null")
        return
    if not isinstance(value, _TYPES[column.kind]):
        raise TypeError(
            f"{table.name}.{column.name} takes {column.kind}, not a {type(value).__name__}"
        )
    if isinstance(value, str) and "\0" in value:
        raise InvalidValue(f"{column.name} has a NUL character", field=column.name)
    if isinstance(value, int) and not -_INT_MAX <= value <= _INT_MAX:
        raise InvalidValue(
            f"{column.name} is out of range: {str(value)[:SHOWN_CHARS]}", field=column.name
        )


class _Parts:
    """The parameters of a statement, while its text is made."""

    __slots__ = ("_dialect", "_parameters")

    def __init__(self, dialect: RecordDialect) -> None:
        self._dialect = dialect
        self._parameters: list[Any] = []

    def add(self, kind: Kind, value: Any) -> str:
        """Add a parameter. Return its mark."""
        self._parameters.append(
            None if value is None else self._dialect.encode(kind, value)
        )
        return self._dialect.mark(len(self._parameters), kind)

    def add_checked(self, table: AuthTable, name: str, value: Any) -> str:
        """Add the value of a column. Return its mark."""
        column = _column(table, name)
        _check_value(table, column, value)
        return self.add(column.kind, value)

    def where(
        self, table: AuthTable, where: Sequence[Condition], expected: int | None = None
    ) -> str:
        """Return the WHERE of conditions, with a space before it; "" for none.

        Args:
            expected: the WHERE selects nothing if the conditions select another number.
        """
        text = self._where(table, where)
        if expected is None:
            return text
        if expected < 1:
            raise ValueError("use CheckRecords to expect no record")
        again = self._where(table, where)
        number = self.add("int", expected)
        return (
            f"{text} {'AND' if text else 'WHERE'} "
            f"(SELECT count(*) FROM {table.sql_name}{again}) = {number}"
        )

    def _where(self, table: AuthTable, where: Sequence[Condition]) -> str:
        terms = []
        for condition in where:
            column = _column(table, condition.column)
            if condition.relation == "null":
                terms.append(f"{column.name} IS NULL")
            elif condition.relation == "not null":
                terms.append(f"{column.name} IS NOT NULL")
            elif condition.relation in _COMPARED:
                if condition.value is None:
                    raise ValueError(f'compare {column.name} with a null by "null"')
                mark = self.add_checked(table, column.name, condition.value)
                sign = "<>" if condition.relation == "!=" else condition.relation
                terms.append(f"{column.name} {sign} {mark}")
            else:
                raise ValueError(f'there is no relation "{condition.relation}"')
        return f" WHERE {' AND '.join(terms)}" if terms else ""

    def statement(self, text: str) -> RecordStatement:
        """Return the statement."""
        return RecordStatement(text, tuple(self._parameters))


def decode_row(
    table: AuthTable, values: Sequence[Any], decoders: Mapping[Kind, Callable[[Any], Any]]
) -> dict[str, Any]:
    """Return a record from the columns of a row of `select`."""
    return {
        column.name: None if value is None else decoders[column.kind](value)
        for column, value in zip(table.columns, values, strict=True)
    }


def insert(
    dialect: RecordDialect, table: AuthTable, values: Mapping[str, Any], *, replaces: bool
) -> RecordStatement:
    """Return the statement that inserts a record. It changes no row if the key, or a value that
    must be unique, is taken.

    Args:
        replaces: replace the record that has the key.
    """
    if table.has_own_writes:
        raise ValueError(f'records of "{table.name}" are made by an operation of their own')
    unknown = values.keys() - table.by_column.keys()
    if unknown:
        raise ValueError(f'the auth table "{table.name}" has no columns {sorted(unknown)}')
    parts = _Parts(dialect)
    names = [column.name for column in table.columns]
    marks = [parts.add_checked(table, name, values.get(name)) for name in names]
    head = f"INSERT INTO {table.sql_name} ({', '.join(names)})"
    if not replaces:
        return parts.statement(f"{head} VALUES ({', '.join(marks)}) ON CONFLICT DO NOTHING")
    # Only the key may be another record's, so the others are looked up first.
    taken = []
    for columns in table.unique:
        same = [f"{name} = {parts.add_checked(table, name, values.get(name))}" for name in columns]
        other = [f"{name} = {parts.add_checked(table, name, values[name])}" for name in table.key]
        taken.append(
            f"NOT EXISTS (SELECT 1 FROM {table.sql_name} WHERE {' AND '.join(same)} "
            f"AND NOT ({' AND '.join(other)}))"
        )
    sets = ", ".join(f"{name} = excluded.{name}" for name in names if name not in table.key)
    # SQLite needs a WHERE here to tell ON CONFLICT from a join.
    return parts.statement(
        f"{head} SELECT {', '.join(marks)} WHERE {' AND '.join(taken) or 'true'} "
        f"ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {sets}"
    )


def update(
    dialect: RecordDialect, table: AuthTable, where: Sequence[Condition],
    values: Mapping[str, Any], added: Mapping[str, int], expected: int | None,
) -> RecordStatement:
    """Return the statement that sets columns, or changes no row where the conditions select
    another number of records than `expected`."""
    parts = _Parts(dialect)
    fixed = {*table.key, *(name for names in table.unique for name in names)}
    sets = []
    for name, value in values.items():
        sets.append(f"{name} = {parts.add_checked(table, name, value)}")
    for name, number in added.items():
        if _column(table, name).kind != "int" or name in values:
            raise ValueError(f"nothing can be added to {table.name}.{name}")
        sets.append(f"{name} = coalesce({name}, 0) + {parts.add_checked(table, name, number)}")
    if not sets or fixed & {*values, *added}:
        raise ValueError(f'an update of "{table.name}" sets columns, and none of its keys')
    condition = parts.where(table, where, expected)
    return parts.statement(f"UPDATE {table.sql_name} SET {', '.join(sets)}{condition}")


def delete(
    dialect: RecordDialect, table: AuthTable, where: Sequence[Condition], expected: int | None
) -> RecordStatement:
    """Return the statement that deletes records, or changes no row where the conditions select
    another number of records than `expected`."""
    if table.has_own_writes:
        raise ValueError(f'records of "{table.name}" end by an operation of their own')
    parts = _Parts(dialect)
    condition = parts.where(table, where, expected)
    return parts.statement(f"DELETE FROM {table.sql_name}{condition}")


def session_ids(
    dialect: RecordDialect, where: Sequence[Condition], keep: Sequence[str], limit: int | None
) -> RecordStatement:
    """Return the statement that finds the sessions that the conditions select, but those of `keep`:
    the id and the family of each."""
    table = TABLE_BY_NAME["sessions"]
    parts = _Parts(dialect)
    others = [Condition("session_id", "!=", session_id) for session_id in keep]
    text = (
        "SELECT session_id, coalesce(family, session_id) "
        f"FROM {table.sql_name}{parts.where(table, [*where, *others])}"
    )
    if limit is not None:
        text += f" ORDER BY created_at, session_id LIMIT {parts.add('int', limit)}"
    return parts.statement(text)


def prunes(
    dialect: RecordDialect, limit: int, now_s: int, kept_s: Mapping[str, int]
) -> dict[str, RecordStatement]:
    """Return, by table, the statements that delete at most `limit` expired records. Args: see
    `pylon.storage.interface.Maintenance.prune_records`."""
    return {
        table.name: _prune(dialect, table, now_s - kept_s.get(table.name, 0), limit)
        for table in TABLES if table.expires is not None
    }


def _prune(
    dialect: RecordDialect, table: AuthTable, before_s: int, limit: int
) -> RecordStatement:
    parts = _Parts(dialect)
    before = parts.add("int", before_s * table.expires_per_s)
    last = parts.add("int", limit)
    key = ", ".join(table.key)
    return parts.statement(
        f"DELETE FROM {table.sql_name} WHERE ({key}) IN (SELECT {key} FROM {table.sql_name} "
        f"WHERE {table.expires} > 0 AND {table.expires} < {before} LIMIT {last})"
    )


def note_keys_used(
    dialect: RecordDialect, key_ids: Sequence[str], now_s: int
) -> Iterator[RecordStatement]:
    """Yield the statements that note the use of API keys."""
    for key_id in key_ids:
        where = [Condition("id", "=", key_id)]
        yield update(
            dialect, TABLE_BY_NAME["api_keys"], where, {"last_used_at": now_s}, {}, None
        )


def create_table(dialect: RecordDialect, table: AuthTable) -> str:
    """Return the statement that makes a missing table."""
    columns = [column_definition(dialect, column) for column in table.columns]
    kind = dialect.volatile if table.is_volatile else "TABLE"
    return (
        f"CREATE {kind} IF NOT EXISTS {table.sql_name} ({', '.join(columns)}, "
        f"PRIMARY KEY ({', '.join(table.key)})){dialect.suffix}"
    )


def column_definition(dialect: RecordDialect, column: Column) -> str:
    """Return the name and the type of a column."""
    return f"{column.name} {dialect.types[column.kind]}{'' if column.optional else ' NOT NULL'}"


def create_indexes(table: AuthTable) -> dict[str, str]:
    """Return the statements that make the missing indexes of a table, by their names."""
    found = {}
    for kind, groups in (("INDEX", table.indexes), ("UNIQUE INDEX", table.unique)):
        for columns in groups:
            name = f"{table.sql_name}_by_{'_'.join(columns)}"
            found[name] = (
                f"CREATE {kind} IF NOT EXISTS {name} ON {table.sql_name} ({', '.join(columns)})"
            )
    return found
