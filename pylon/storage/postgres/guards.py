"""Guards: statements that fail if what a batch has read without the lock is no longer so.

A flush sends them behind the lock and in front of its changes. A failed one ends the transaction,
and the engine executes the batch again, locked. A refusal needs no guard: it was true when the
batch read.

Called by `batch` and `transaction`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pylon.storage.postgres.names import quote
from pylon.storage.postgres.overlay import Overlay, ReferenceKey, RowKey
from pylon.storage.postgres.statements import Statement

# A guard fails with an invalid number, whose text an operator finds in the server's log. The number
# depends on the rows, so that the server does not compute it while it plans.
_FAIL: Final = (
    "ELSE ('pylon: another node has changed what this batch relies on; it runs again ' "
    "|| %s)::int END"
)
_FAIL_BY_COUNT: Final = _FAIL % "count(*)"
_ROWS: Final = (
    f"SELECT CASE WHEN count(*) = $3 THEN 0 {_FAIL_BY_COUNT} FROM %s AS t "
    "JOIN unnest($1::text[], $2::bigint[]) AS read (id, seq) "
    "ON t.id = read.id AND t._seq IS NOT DISTINCT FROM read.seq"
)
_PARENTS: Final = (
    f"SELECT CASE WHEN count(*) = $2 THEN 0 {_FAIL_BY_COUNT} FROM %s WHERE id = ANY($1::text[])"
)
_DOCUMENTS: Final = (
    f"SELECT CASE WHEN count(*) = 0 THEN 0 {_FAIL_BY_COUNT} FROM _pylon_crdt_snapshots "
    "JOIN unnest($1::text[], $2::text[]) AS read (entity, row_id) USING (entity, row_id)"
)
# Of the rows that refer to a row only the number: of those that the batch changes it has a guard.
_REFERRING: Final = (
    f"SELECT CASE WHEN count(*) = 0 THEN 0 {_FAIL_BY_COUNT} "
    "FROM unnest($1::text[], $2::bigint[]) AS read (id, rows) "
    "WHERE rows <> (SELECT count(*) FROM %s WHERE %s = read.id)"
)
_CHECK: Final = f"SELECT CASE WHEN found = %s THEN 0 {_FAIL % 'found'} FROM (%s) AS asked (found)"


def guards_of(overlay: Overlay, *, everything: bool) -> list[Statement]:
    """Return the guards of what an overlay has without the lock.

    Args:
        everything: also of what was read and not used: later requests may rely on it.
    """
    found: list[Statement] = []
    if overlay.read_versions:
        found += _row_guards(overlay, overlay.read_versions if everything else overlay.touched)
    parents = [*overlay.parents, *(overlay.exists if everything else ())]
    if parents:
        found += _parent_guards(overlay, dict.fromkeys(parents))
    plain = [
        key for key in (overlay.documents if everything else overlay.touched)
        if overlay.documents.get(key, 0) is None
    ]
    if plain:
        found.append((_DOCUMENTS, ([key[0] for key in plain], [key[1] for key in plain])))
    if overlay.read_referring:
        found += _reference_guards(
            overlay, overlay.read_referring if everything else overlay.used_referring
        )
    if overlay.read_checks:
        for check in overlay.read_checks if everything else overlay.used_checks:
            if check in overlay.read_checks:
                answer, (text, parameters) = overlay.read_checks[check]
                found.append((_CHECK % ("TRUE" if answer else "FALSE", text), parameters))
    return found


def _row_guards(overlay: Overlay, keys: Iterable[RowKey]) -> list[Statement]:
    by_entity: dict[str, list[RowKey]] = {}
    for key in keys:
        by_entity.setdefault(key[0], []).append(key)
    return [
        (_ROWS % quote(name), (
            [key[1] for key in rows], [overlay.read_versions[key] for key in rows], len(rows),
        ))
        for name, rows in by_entity.items()
    ]


def _parent_guards(overlay: Overlay, keys: Iterable[RowKey]) -> list[Statement]:
    by_entity: dict[str, list[str]] = {}
    for key in keys:
        if overlay.exists.get(key) or key in overlay.read_versions:
            by_entity.setdefault(key[0], []).append(key[1])
    return [(_PARENTS % quote(name), (ids, len(ids))) for name, ids in by_entity.items()]


def _reference_guards(overlay: Overlay, keys: Iterable[ReferenceKey]) -> list[Statement]:
    by_field: dict[tuple[str, str], list[ReferenceKey]] = {}
    for key in keys:
        if key in overlay.read_referring:
            by_field.setdefault(key[:2], []).append(key)
    return [
        (_REFERRING % (quote(entity), quote(field)), (
            [key[2] for key in asked], [overlay.read_referring[key] for key in asked],
        ))
        for (entity, field), asked in by_field.items()
    ]
