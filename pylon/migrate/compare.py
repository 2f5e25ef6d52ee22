"""Comparison: verifies that a target has exactly the rows of its source.

Both ends are read once, in the order of primary keys, and every value of every row is compared. The
digest is the SHA-256 over the JSON of all rows in that order, for the operator's records.

Called by `move` and `follow`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from pylon.errors import MigrationFailed
from pylon.storage.transfer import (
    JSON_COLUMN,
    Row,
    TransferSource,
    TransferTable,
    TransferTarget,
)

_SHOWN_CHARS: Final = 80
_REPORT_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class TableReport:
    """A table that is the same at both ends."""

    table: str
    rows: int
    digest: str


def compare_table(
    source: TransferSource, target: TransferTarget, table: TransferTable,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> TableReport:
    """Compare all rows of a table.

    Args:
        on_rows: called now and then with the number of rows that were compared.

    Raises:
        MigrationFailed: the text names the first row that differs.
    """
    digest = hashlib.sha256()
    json_at = table.columns.index(JSON_COLUMN) if table.entity is not None else None
    rows = 0
    for wanted, found in zip_longest(source.read_rows(table), target.read_rows(table)):
        if wanted != found:
            raise _difference(table, wanted, found)
        text = repr(wanted) if json_at is None else wanted[json_at]
        digest.update(text.encode())
        digest.update(b"\n")
        rows += 1
        if rows % _REPORT_ROWS == 0:
            on_rows(rows)
    return TableReport(table.name, rows, digest.hexdigest())


def compare_facts(source: TransferSource, target: TransferTarget) -> None:
    """Compare the facts that are moved beside the tables.

    Raises:
        MigrationFailed: the text names the first one that differs.
    """
    wanted, found = source.read_facts(), target.read_facts()
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise MigrationFailed(
                f"the fact {key} is {_shown(found.get(key))} in {target.place}, and "
                f"{_shown(wanted.get(key))} in {source.facts.place}"
            )


def differences(
    source: Iterator[Row], target: Iterator[Row], key_size: int
) -> Iterator[tuple[Row | None, Row | None]]:
    """Yield the rows that differ, as (source, target); None: there is none with this key."""
    wanted, found = next(source, None), next(target, None)
    while wanted is not None or found is not None:
        if wanted == found:
            wanted, found = next(source, None), next(target, None)
        elif found is None or (wanted is not None and wanted[:key_size] < found[:key_size]):
            yield wanted, None
            wanted = next(source, None)
        elif wanted is None or wanted[:key_size] > found[:key_size]:
            yield None, found
            found = next(target, None)
        else:
            yield wanted, found
            wanted, found = next(source, None), next(target, None)


def _difference(
    table: TransferTable, wanted: Row | None, found: Row | None
) -> MigrationFailed:
    if wanted is None or (found is not None and found[: table.key_size] < wanted[: table.key_size]):
        assert found is not None
        return MigrationFailed(f"{table.name}: the row {_key(table, found)} is not in the source")
    if found is None or wanted[: table.key_size] < found[: table.key_size]:
        return MigrationFailed(f"{table.name}: the row {_key(table, wanted)} is not in the target")
    columns = [
        f"{name} is {_shown(new)}, was {_shown(old)}"
        for name, old, new in zip(table.columns, wanted, found, strict=True) if old != new
    ]
    return MigrationFailed(
        f"{table.name}: the row {_key(table, wanted)} differs: {'; '.join(columns)}"
    )


def _key(table: TransferTable, row: Row) -> str:
    return "/".join(map(str, row[: table.key_size]))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
