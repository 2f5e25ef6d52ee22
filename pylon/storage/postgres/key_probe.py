"""Key probe: the fact by which a start knows its secret key again (`pylon.auth.keys`), in
`_pylon_meta` under `key_probe`.

All nodes have one key, so one of them sets the probe and the others compare. Called by
`pylon.storage.postgres.backend`.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres import meta
from pylon.storage.postgres.schema.live import has_table
from pylon.storage.postgres.wire import BlockingSession

KEY: Final = "key_probe"
_ADD: Final = "INSERT INTO _pylon_meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING"
_CHANGE: Final = "UPDATE _pylon_meta SET value = $2 WHERE key = $1 AND value = $3"


def read_probe(session: BlockingSession) -> str | None:
    """Return the probe of the database; None: it has none."""
    return meta.get(session, KEY) if has_table(session, "_pylon_meta") else None


def replace_probe(session: BlockingSession, probe: str, before: str | None) -> str | None:
    """Set the probe if it is still `before`. Return the probe that the database has then."""
    if before is None:
        session.execute(_ADD, (KEY, probe))
    else:
        session.execute(_CHANGE, (KEY, probe, before))
    return meta.get(session, KEY)
