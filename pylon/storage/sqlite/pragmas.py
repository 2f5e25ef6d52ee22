"""Pragmas: configures every connection to the database file (spec/http.md §2.7).

The writer runs no automatic checkpoints: the flusher checkpoints, so that no commit waits for it.
Called by `connect`; `set_durability` by `engine`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apsw

from pylon import limits

BUSY_TIMEOUT_MS: Final = 5_000
_SHARED: Final = (("foreign_keys", "ON"), ("temp_store", "MEMORY"))
_MAPPED: Final = ("mmap_size", "268435456")
_READER: Final = (
    ("cache_size", "-65536"),  # KiB: 64 MB
    _MAPPED,
    ("query_only", "ON"),  # nothing that goes through this connection can write
)
# The writer finds what it needs in the kernel's page cache: with 64 MB of its own and the file
# mapped it was no faster (16 us for an insert into 100,000 rows either way), and 65 MB larger.
_WRITER: Final = (
    ("cache_size", "-1024"),
    ("mmap_size", "0"),
    # The rollback journal of the change to WAL is to be gone for good: after a loss of power it
    # would take the change back, and with it all that is in the WAL.
    ("synchronous", "EXTRA"),
    ("journal_mode", "WAL"),
    ("wal_autocheckpoint", "0"),
    # When the WAL begins anew. PERF: a commit that cut the file took up to 60 ms.
    ("journal_size_limit", str(limits.WAL_KEPT_BYTES)),
)


def apply_shared(conn: apsw.Connection) -> None:
    """Apply the pragmas that readers and the writer share."""
    conn.set_busy_timeout(BUSY_TIMEOUT_MS)
    _apply(conn, _SHARED)


def apply_writer(conn: apsw.Connection) -> None:
    """Set WAL, no automatic checkpoints, and fsync until `set_durability`."""
    _apply(conn, _WRITER)
    set_durability(conn, "full")


def set_durability(conn: apsw.Connection, durability: str) -> None:
    """Set the durability. `normal`: commits survive the death of processes; `full`: also loss of
    power."""
    level = {"normal": "NORMAL", "full": "FULL"}[durability]
    conn.execute(f"PRAGMA synchronous = {level}")


def apply_reader(conn: apsw.Connection) -> None:
    """Set a large cache and the mapping of the file, and forbid writes."""
    _apply(conn, _READER)


def release_memory(conn: apsw.Connection) -> None:
    """Free a reader's page cache and unmap the file, which the next read maps again.

    The kernel keeps the pages of the file as long as it has memory for them. It takes pages that a
    process has mapped last, and counts them as its memory.
    PERF: takes 2 ms. The next read takes 0.2 ms longer, the next scan of 100,000 rows 10 %.
    """
    conn.execute("PRAGMA shrink_memory")
    _apply(conn, (("mmap_size", "0"), _MAPPED))


def _apply(conn: apsw.Connection, settings: Iterable[tuple[str, str]]) -> None:
    for name, value in settings:
        conn.execute(f"PRAGMA {name} = {value}")
