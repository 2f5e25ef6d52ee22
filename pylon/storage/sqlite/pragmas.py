"""How every connection to the database file is set (spec/http.md §2.7).

The writer checkpoints nothing by itself: the flusher does, so that no commit waits for it.
Called by `connect` only.
"""

from __future__ import annotations

from typing import Final

import apsw

BUSY_TIMEOUT_MS: Final = 5_000
_SHARED: Final = (
    ("foreign_keys", "ON"),
    ("cache_size", "-65536"),  # KiB: 64 MB
    ("mmap_size", "268435456"),
    ("temp_store", "MEMORY"),
)


def apply_shared(conn: apsw.Connection) -> None:
    """What readers and the writer have in common."""
    conn.set_busy_timeout(BUSY_TIMEOUT_MS)
    for name, value in _SHARED:
        conn.execute(f"PRAGMA {name} = {value}")


def apply_writer(conn: apsw.Connection) -> None:
    """WAL, no automatic checkpoints, and fsync on until the start is noted durably."""
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA wal_autocheckpoint = 0")
    set_durability(conn, "full")


def set_durability(conn: apsw.Connection, durability: str) -> None:
    """`normal`: commits survive the death of processes; `full`: also loss of power."""
    level = {"normal": "NORMAL", "full": "FULL"}[durability]
    conn.execute(f"PRAGMA synchronous = {level}")


def apply_reader(conn: apsw.Connection) -> None:
    """Nothing that goes through this connection can write."""
    conn.execute("PRAGMA query_only = ON")
