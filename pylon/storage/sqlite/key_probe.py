"""Key probe: the fact by which a start knows its secret key again (`pylon.auth.keys`), in
`_pylon_meta` under `key_probe`.

Backups and migrations bring it along. Called by `pylon.storage.sqlite.backend`.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

import apsw

from pylon.storage.sqlite import meta
from pylon.storage.sqlite.connect import open_reader, open_writer, translate
from pylon.storage.sqlite.schema.history import has_table

KEY: Final = "key_probe"


def read_probe(path: Path) -> str | None:
    """Return the probe of a database file; None: it has none.

    Raises:
        StoreUnavailable
    """
    with closing(open_reader(path)) as conn:
        try:
            return meta.get(conn, KEY) if has_table(conn, "_pylon_meta") else None
        except apsw.Error as ex:
            raise translate(ex) from ex


def replace_probe(path: Path, probe: str, before: str | None) -> str | None:
    """Set the probe if it is still `before`. Return the probe that the database has then.

    Raises:
        StoreUnavailable
    """
    try:
        with closing(open_writer(path)) as conn:
            with conn:
                if meta.get(conn, KEY) == before:
                    meta.put(conn, KEY, probe)
            return meta.get(conn, KEY)
    except apsw.Error as ex:
        raise translate(ex) from ex
