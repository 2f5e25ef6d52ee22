"""Short rows: records the entities without a long row, whose patterns may run inline.

A key `short_rows:<Entity>` in `_pylon_meta` means that no row's JSON was ever longer than
`limits.SHORT_ROW_BYTES`. A start checks the rows of an entity without the key. The writer deletes
the key for good in the transaction that writes the first long row. So a usual write costs one
comparison, and a pattern costs one look-up instead of a check of each row's length.

Invariant: an entity with a long row never has the key; one without may lack it. A reader looks the
keys up at most 20 times a second. Called by the schema (`note_short_rows`), `table`
(`forget_short_rows`) and `reader` (`has_short_rows`).
"""

from __future__ import annotations

from typing import Final

import apsw

from pylon import limits
from pylon.manifest.model import Manifest
from pylon.storage.sqlite import meta
from pylon.storage.sqlite.names import quote

_KEY: Final = "short_rows:"


def note_short_rows(conn: apsw.Connection, manifest: Manifest, is_stale: bool) -> None:
    """Store the keys of entities without a long row, within the open transaction.

    Call it after all rows have their JSON.

    Args:
        is_stale: another program has written to the database: check every entity again.
    """
    for entity in manifest.entities:
        if not is_stale and has_short_rows(conn, entity.name):
            continue
        found = conn.execute(
            f"SELECT 1 FROM {quote(entity.name)} WHERE octet_length(_json) > ? "
            "OR _json IS NULL LIMIT 1", (limits.SHORT_ROW_BYTES,),
        ).get
        if found is None:
            meta.put(conn, _KEY + entity.name, "1")
        else:
            forget_short_rows(conn, entity.name)


def forget_short_rows(conn: apsw.Connection, entity: str) -> None:
    """Delete the key of an entity, within the open transaction: it writes a long row."""
    meta.delete(conn, _KEY + entity)


def has_short_rows(conn: apsw.Connection, entity: str) -> bool:
    """Whether no row of `entity` is long.

    Raises:
        apsw.Error
    """
    return meta.get(conn, _KEY + entity) is not None
