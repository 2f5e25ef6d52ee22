"""Operations in SQL: stores the executed operations by identity and op_id, in `_pylon_op_ids`.

Functions on a connection; the caller translates apsw's errors. Called by `transaction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import apsw

from pylon.storage.core.transaction import DoneOp, OpName

_PUT: Final = (
    "INSERT INTO _pylon_op_ids (identity, op_id, seq, row_id, at, digest) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
FIND: Final = "SELECT seq, row_id, digest FROM _pylon_op_ids WHERE identity = ? AND op_id = ?"
_DROP: Final = (
    "DELETE FROM _pylon_op_ids WHERE (at < ? OR seq <= ?) AND (identity, op_id) IN "
    "(SELECT identity, op_id FROM _pylon_op_ids ORDER BY seq LIMIT ?)"
)


def put(conn: apsw.Connection, ops: Mapping[OpName, DoneOp], now_s: int) -> None:
    """Store executed operations."""
    conn.executemany(
        _PUT,
        [(*name, seq, row_id, now_s, digest) for name, (seq, row_id, digest) in ops.items()],
    )


def count(conn: apsw.Connection) -> int:
    """Return the number of stored operations; a scan."""
    return int(conn.execute("SELECT count(*) FROM _pylon_op_ids").get)


def drop(conn: apsw.Connection, limit: int, older_than_s: int, old_seq: int) -> int:
    """Remove old ones among the `limit` oldest. Return how many. See `LogRows.drop_ops`."""
    conn.execute(_DROP, (older_than_s, old_seq, limit))
    return conn.changes()
