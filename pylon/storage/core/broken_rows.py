"""Broken rows: counts at a start the rows that do not fulfil the constraints of their fields.

A constraint that a manifest adds, and a value that an enum loses, leave the rows as they are. A
start counts them once for each version of the constraints, and again while there are some. The log
has the number (`constraints.broken`). `_pylon_meta` has a key `constraints:<Entity>`: the
constraints that were looked at, and how many rows were broken.

Bounds: `limits.BROKEN_ROWS_SCANNED` rows of an entity, from the first id on, and
`limits.BROKEN_BYTES_SCANNED` of their texts. PERF: 0.5 us for a number with a minimum, 4 us for a
text with a pattern. Called by the schema of each backend at a start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from pylon import limits, log
from pylon.manifest.model import Entity, Field, Manifest
from pylon.values.types import MISSING, check_of, expected, row_value_of

_log = log.get_logger("schema")
_KEY: Final = "constraints:"

# Reads the values of fields of the first `limits.BROKEN_ROWS_SCANNED` rows of an entity.
ReadFirst = Callable[[Entity, Sequence[Field]], Iterable[Sequence[Any]]]


class Facts(Protocol):
    """The facts of `_pylon_meta`."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, value: str) -> None: ...


class _Looked(msgspec.Struct, frozen=True):
    """The stored result of the last count: the constraints, and the number of broken rows."""

    constraints: tuple[str, ...]
    broken: int


def report_broken_rows(
    manifest: Manifest, facts: Facts, read_first: ReadFirst
) -> dict[tuple[str, str], int]:
    """Log the number of broken rows of each field that has some. Return the numbers."""
    found: dict[tuple[str, str], int] = {}
    for entity in manifest.entities:
        fields = [f for f in entity.fields if f.constraints is not None or f.values]
        if not fields:
            continue
        constraints = tuple([f"{f.name}: {expected(f)}" for f in fields])
        text = facts.get(_KEY + entity.name)
        known = None if text is None else msgspec.json.decode(text, type=_Looked)
        if known is not None and known.constraints == constraints and not known.broken:
            continue
        counts = _count(read_first(entity, fields), fields)
        for field, count in counts.items():
            if count:
                found[entity.name, field.name] = count
                _log.warning(
                    "constraints.broken", entity=entity.name, field=field.name, rows=count,
                    expected=expected(field), looked_at=limits.BROKEN_ROWS_SCANNED,
                    hint="the rows stay and may be read; an update of this field must fit",
                )
        looked = _Looked(constraints, sum(counts.values()))
        facts.put(_KEY + entity.name, msgspec.json.encode(looked).decode())
    return found


def _count(rows: Iterable[Sequence[Any]], fields: Sequence[Field]) -> dict[Field, int]:
    """Return how many rows break the constraints of each field."""
    judges = [(field, check_of(field), row_value_of(field)) for field in fields]
    counts = dict.fromkeys(fields, 0)
    size_bytes = 0
    for row in rows:
        for value, (field, check, convert) in zip(row, judges, strict=True):
            if value is None:
                continue
            if isinstance(value, str):
                size_bytes += len(value)
            if check(value if convert is None else convert(value)) is MISSING:
                counts[field] += 1
        if size_bytes > limits.BROKEN_BYTES_SCANNED:
            break
    return counts
