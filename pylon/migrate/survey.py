"""Survey: reads all rows of a source, and lists what its target cannot keep.

PERF: a row whose JSON has neither an escaped NUL nor many bytes needs no look at its values, and
the types of its values are looked up as one tuple: 1.6 us a row, 11 us with each value on its own.

Invariant: nothing is written. Called by `pylonctl migrate`, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pylon.manifest.model import Manifest
from pylon.manifest.references import with_reference_indexes
from pylon.storage.transfer import (
    FOLD_PREFIX,
    JSON_COLUMN,
    ColumnKind,
    Row,
    TransferSource,
    TransferTable,
    ValueLimits,
    list_tables,
)

_SHOWN_KEYS: Final = 3
_ESCAPED_NUL: Final = "\\u0000"
_BYTES_A_CHAR: Final = 4  # of UTF-8, at most
_FOLDED_CHARS: Final = 3  # that one character may become without its case
_TYPES: Final = {
    ColumnKind.TEXT: str, ColumnKind.INT: int, ColumnKind.FLOAT: float, ColumnKind.BOOL: bool,
    ColumnKind.BYTES: bytes,
}
_NONE: Final = type(None)


@dataclass(frozen=True, slots=True)
class Survey:
    """The effect of a migration. `problems`: why it is refused; a sentence each."""

    rows_by_table: dict[str, int]
    problems: tuple[str, ...]
    left_behind: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Return the number of rows in all tables."""
        return sum(self.rows_by_table.values())


@dataclass(slots=True)
class _Rows:
    """Rows with the same problem."""

    count: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, key: str) -> None:
        self.count += 1
        if self.count <= _SHOWN_KEYS:
            self.keys.append(key)

    def __str__(self) -> str:
        shown = ", ".join(self.keys) + (", ..." if self.count > len(self.keys) else "")
        return f"{self.count} {'row' if self.count == 1 else 'rows'} ({shown})"


def survey(source: TransferSource, manifest: Manifest, limits: ValueLimits, to: str) -> Survey:
    """Read all rows of a source.

    Args:
        limits: of the target. `to`: its name, for people.
    """
    counts: dict[str, int] = {}
    problems = list(_find_long_names(manifest, limits, to))
    for table in list_tables(manifest):
        look = _TableSurvey(table, manifest, limits)
        for row in source.read_rows(table):
            look.add(row)
        counts[table.name] = look.rows
        problems += look.list_problems(to)
    return Survey(counts, tuple(problems), tuple(source.list_left_behind()))


def _find_long_names(manifest: Manifest, limits: ValueLimits, to: str) -> Iterator[str]:
    most = limits.name_bytes
    for table in list_tables(manifest) if most else ():
        if len(table.name.encode()) > most:
            yield f"{table.name}: the name is longer than the {most} bytes of {to}"
        for name in table.columns:
            if len(name.encode()) > most:
                yield f"{table.name}.{name}: the name is longer than the {most} bytes of {to}"


class _TableSurvey:
    """The problems of one table's rows."""

    def __init__(self, table: TransferTable, manifest: Manifest, limits: ValueLimits) -> None:
        self.rows = 0
        self._table = table
        self._limits = limits
        self._indexes = _indexes_of(table, manifest) if limits.index_entry_bytes else {}
        self._json_at = table.columns.index(JSON_COLUMN) if table.entity is not None else -1
        # A row with fewer characters of JSON has no index entry that is too long.
        self._short_chars = limits.index_entry_bytes // (_BYTES_A_CHAR * _FOLDED_CHARS)
        self._known_types: set[tuple[type, ...]] = set()
        self._nul: dict[str, _Rows] = {}
        self._long: dict[str, _Rows] = {}
        self._wrong: dict[str, _Rows] = {}

    def add(self, row: Row) -> None:
        """Look at a row."""
        self.rows += 1
        types = tuple(map(type, row))
        if types not in self._known_types:
            self._look_at_types(row, types)
        if self._json_at >= 0 and row[self._json_at] is not None:
            text = row[self._json_at]
            if _ESCAPED_NUL not in text and len(text) <= self._short_chars:
                return
        if not self._limits.nul_in_texts:
            for name, value in zip(self._table.columns, row, strict=True):
                if type(value) is str and "\0" in value:
                    self._nul.setdefault(name, _Rows()).add(self._key_text(row))
        for name, places in self._indexes.items():
            if sum(_size_bytes(row[at]) for at in places) > self._limits.index_entry_bytes:
                self._long.setdefault(name, _Rows()).add(self._key_text(row))

    def list_problems(self, to: str) -> Iterator[str]:
        """Yield a sentence for each kind of problem."""
        name = self._table.name
        for column, rows in self._wrong.items():
            yield f"{name}.{column}: {rows} have a value of another type than the manifest says"
        for column, rows in self._nul.items():
            yield f"{name}.{column}: {rows} have the character U+0000, which {to} cannot keep"
        for index, rows in self._long.items():
            yield (
                f"{name}: {rows} have more than {self._limits.index_entry_bytes} bytes in the "
                f"index over {index}, which {to} cannot keep"
            )

    def _look_at_types(self, row: Row, types: tuple[type, ...]) -> None:
        is_right = True
        for name, kind, found in zip(self._table.columns, self._table.kinds, types, strict=True):
            if found not in (_TYPES[kind], _NONE) or (found is _NONE and name == JSON_COLUMN):
                is_right = False
                self._wrong.setdefault(name, _Rows()).add(self._key_text(row))
        if is_right:
            self._known_types.add(types)

    def _key_text(self, row: Row) -> str:
        return "/".join(str(value)[:60] for value in row[: self._table.key_size])


def _indexes_of(table: TransferTable, manifest: Manifest) -> dict[str, list[int]]:
    """Return the places of the columns of each index, by a name for people."""
    sets: list[tuple[str, ...]] = [table.key]
    if table.entity is not None:
        full = with_reference_indexes(manifest, by_default=True).by_name[table.name]
        # An index that is not unique ends with the id, at most.
        sets += [(*index.fields, "id") for index in full.indexes]
        sets += [(name.name,) for name in full.fields if name.unique]
        sets += [(name,) for name in table.columns if name.startswith(FOLD_PREFIX)]
        if full.search is not None:
            sets += [(name, "id") for name in full.search.sortable]
    return {
        ", ".join(columns): [table.columns.index(name) for name in dict.fromkeys(columns)]
        for columns in sets
    }


def _size_bytes(value: object) -> int:
    if type(value) is str:
        return len(value) if value.isascii() else len(value.encode())
    return len(value) if type(value) is bytes else 8
