"""Guards: statements that fail if what a batch has read without the lock is no longer so.

A flush sends them behind the lock and in front of its changes. A failed one ends the transaction,
and the engine executes the batch again, locked.

Called by `batch`.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres.names import quote
from pylon.storage.postgres.overlay import Overlay, RowKey
from pylon.storage.postgres.statements import Statement

# A guard fails with an invalid number, whose text an operator finds in the server's log.
_FAIL: Final = (
    "ELSE ('pylon: another node has changed what this batch relies on; it runs again ' "
    "|| count(*))::int END"
)
_ROWS: Final = (
    f"SELECT CASE WHEN count(*) = $3 THEN 0 {_FAIL} FROM %s AS t "
    "JOIN unnest($1::text[], $2::bigint[]) AS read (id, seq) "
    "ON t.id = read.id AND t._seq IS NOT DISTINCT FROM read.seq"
)
_PARENTS: Final = (
    f"SELECT CASE WHEN count(*) = $2 THEN 0 {_FAIL} FROM %s WHERE id = ANY($1::text[])"
)
_DOCUMENTS: Final = (
    f"SELECT CASE WHEN count(*) = 0 THEN 0 {_FAIL} FROM _pylon_crdt_snapshots "
    "JOIN unnest($1::text[], $2::text[]) AS read (entity, row_id) USING (entity, row_id)"
)


def guards_of(overlay: Overlay, *, everything: bool) -> list[Statement]:
    """Return the guards of what an overlay has without the lock.

    Args:
        everything: also rows that were read and not changed: later requests may rely on them.
    """
    if not overlay.read_versions and not overlay.parents:
        return []
    found: list[Statement] = []
    by_entity: dict[str, list[RowKey]] = {}
    for key in overlay.read_versions if everything else overlay.touched:
        by_entity.setdefault(key[0], []).append(key)
    for name, keys in by_entity.items():
        found.append((_ROWS % quote(name), (
            [key[1] for key in keys], [overlay.read_versions[key] for key in keys], len(keys),
        )))
    parents: dict[str, list[str]] = {}
    for key in overlay.parents:
        if overlay.exists.get(key) or key in overlay.read_versions:
            parents.setdefault(key[0], []).append(key[1])
    for name, ids in parents.items():
        found.append((_PARENTS % quote(name), (ids, len(ids))))
    plain = [
        key for key in (overlay.documents if everything else overlay.touched)
        if overlay.documents.get(key, 0) is None
    ]
    if plain:
        found.append((_DOCUMENTS, ([key[0] for key in plain], [key[1] for key in plain])))
    return found
