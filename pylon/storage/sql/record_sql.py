"""Record SQL: the statements on the auth tables, from their declarations, in a dialect.

Both backends run the texts that this module makes, with marks for the values (`RecordDialect`). So
an operation of `pylon.storage.auth_ops` means the same in both. The texts depend on the table, the
columns and the relations, and never on a value.

Invariant: no name comes into a text that the declaration lacks. Called by the readers, the
writers and the upkeep of both backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pylon.errors import SHOWN_CHARS, InvalidValue
from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import TABLE_BY_NAME, AuthTable, Column, Kind

_INT_MAX: Final = (1 << 63) - 1
_TYPES: Final[dict[Kind, type]] = {"text": str, "int": int, "bytes": bytes, "bool": int}
_COMPARED: Final = frozenset({"=", "!=", "<", "<=", ">", ">="})


@dataclass(frozen=True, slots=True)
class RecordDialect:
    """How a backend writes the values of records.

    Attributes:
        mark: returns the mark of the n-th parameter (from 1) of a statement, for a kind of column.
        encode: returns a checked value as a parameter.
    """

    mark: Callable[[int, Kind], str]
    encode: Callable[[Kind, Any], Any]


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

    def where(self, table: AuthTable, where: Sequence[Condition]) -> str:
        """Return the WHERE of conditions, with a space before it; "" for none."""
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
                terms.append(f"{column.name} {condition.relation} {mark}")
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
