"""Change log in SQL: reads, appends and drops events of `_pylon_change_log`.

The head is the highest seq in use: that of the newest event, of the newest epoch's mark, or of the
counter in `_pylon_change_seq`, which the Rust server updates. It never decreases.

This module also reads a log of the Rust server, whose timestamps may be text and whose deletes may
have the row in `data`. Invariant: returned events obey `pylon.storage.events`. Called by `reader`,
`transaction`, `epochs`, the schema, backups and transfers.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import apsw

from pylon import limits
from pylon.storage.core.transaction import LoggedEvent
from pylon.storage.events import ChangeEvent

# Binds the members of a `ChangeEvent`, whose images are bytes of UTF-8.
INSERT: Final = (
    "INSERT INTO _pylon_change_log (seq, entity, row_id, kind, data, prev_data, timestamp) "
    "VALUES (?, ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?)"
)
# Where a seq may be in use, by table.
_SEQ_COLUMNS: Final = {
    "_pylon_change_log": "seq", "_pylon_epochs": "first_seq", "_pylon_change_seq": "value",
}
_HEAD: Final = "SELECT max({})".format(", ".join(
    f"ifnull((SELECT max({column}) FROM {table}), 0)" for table, column in _SEQ_COLUMNS.items()
))
_OLDEST: Final = (
    "SELECT seq, timestamp, ifnull(octet_length(data), 0) + ifnull(octet_length(prev_data), 0) "
    "FROM _pylon_change_log ORDER BY seq LIMIT ?"
)
_SIZES: Final = (
    "SELECT seq, ifnull(octet_length(data), 0) + ifnull(octet_length(prev_data), 0) "
    "FROM _pylon_change_log WHERE seq > ? ORDER BY seq LIMIT ?"
)
_COLUMNS: Final = (
    "SELECT seq, entity, row_id, kind, CAST(data AS BLOB), CAST(prev_data AS BLOB), timestamp "
    "FROM _pylon_change_log"
)


def head_seq(conn: apsw.Connection) -> int:
    """Return the highest seq in use; 0 in a new database."""
    return int(conn.execute(_HEAD).get)


def find_head_seq(conn: apsw.Connection, tables: Collection[str]) -> int:
    """Return the highest seq in use in a database that has only some of the tables, since this
    Pylon may never have opened it.

    Args:
        tables: those that the database has.
    """
    return max((
        int(conn.execute(f"SELECT ifnull(max({column}), 0) FROM {table}").get)
        for table, column in _SEQ_COLUMNS.items() if table in tables
    ), default=0)


def put_counter(conn: apsw.Connection, seq: int) -> None:
    """Set the counter of seqs, within the open transaction."""
    conn.execute("INSERT OR REPLACE INTO _pylon_change_seq (id, value) VALUES (1, ?)", (seq,))


def oldest_seq(conn: apsw.Connection) -> int:
    """Return the oldest retained event's seq; head + 1 if the log is empty."""
    oldest = conn.execute("SELECT min(seq) FROM _pylon_change_log").get
    return head_seq(conn) + 1 if oldest is None else int(oldest)


def oldest_logged_seq(conn: apsw.Connection) -> int:
    """Return the oldest retained event's seq; 0 if the log is empty."""
    return int(conn.execute("SELECT coalesce(min(seq), 0) FROM _pylon_change_log").get)


def events_after(conn: apsw.Connection, seq: int, limit: int) -> list[ChangeEvent]:
    """Return the first `limit` events above `seq`, ascending."""
    rows = conn.execute(f"{_COLUMNS} WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))
    return [_event(row) for row in rows]


def events_of(
    conn: apsw.Connection, entities: Collection[str], seq: int, limit: int
) -> list[ChangeEvent]:
    """Return the first `limit` events of some entities with a seq above `seq`, ascending."""
    marks = ",".join("?" * len(entities))
    rows = conn.execute(
        f"{_COLUMNS} WHERE seq > ? AND entity IN ({marks}) ORDER BY seq LIMIT ?",
        (seq, *entities, limit),
    )
    return [_event(row) for row in rows]


def newest_events(conn: apsw.Connection, limit: int) -> list[ChangeEvent]:
    """Return the newest events, ascending: at most `limit`, and about `limits.TAIL_BYTES`."""
    events: list[ChangeEvent] = []
    size_bytes = 0
    cursor = conn.execute(f"{_COLUMNS} ORDER BY seq DESC LIMIT ?", (limit,))
    for row in cursor:
        event = _event(row)
        size_bytes += len(event.data or b"") + len(event.prev_data or b"")
        if events and size_bytes > limits.TAIL_BYTES:
            cursor.close()
            break
        events.append(event)
    events.reverse()
    return events


def count(conn: apsw.Connection) -> int:
    """Return the number of events; a scan."""
    return int(conn.execute("SELECT count(*) FROM _pylon_change_log").get)


def oldest(conn: apsw.Connection, limit: int) -> list[LoggedEvent]:
    """Return the oldest events, ascending, without their images."""
    return [
        LoggedEvent(seq, timestamp_s(timestamp), size_bytes)
        for seq, timestamp, size_bytes in conn.execute(_OLDEST, (limit,))
    ]


def drop(conn: apsw.Connection, to_seq: int) -> int:
    """Remove the events up to a seq. Return how many."""
    conn.execute("DELETE FROM _pylon_change_log WHERE seq <= ?", (to_seq,))
    return conn.changes()


def sizes(conn: apsw.Connection, seq: int, limit: int) -> list[tuple[int, int]]:
    """Return the seqs and the sizes of both images of the first events after a seq."""
    rows: list[Any] = conn.execute(_SIZES, (seq, limit)).fetchall()
    return rows


def void_ranges(conn: apsw.Connection) -> list[tuple[int, int]]:
    """Return (void_from, first_seq) of each epoch, oldest first."""
    rows = conn.execute("SELECT void_from, first_seq FROM _pylon_epochs ORDER BY first_seq")
    return [(int(low), int(high)) for low, high in rows]


def timestamp_s(value: object) -> int:
    """Return Unix seconds from an integer, `<seconds>Z` or ISO 8601; 0 for other values."""
    if isinstance(value, (int, float)):
        return int(value)
    text = str(value)
    digits = text.removesuffix("Z")
    if digits.isdecimal():
        return int(digits)
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return 0


def _event(row: tuple[Any, ...]) -> ChangeEvent:
    seq, entity, row_id, kind, data, prev_data, timestamp = row
    if kind == "delete" and data is not None:
        data, prev_data = None, prev_data or data
    return ChangeEvent(seq, entity, row_id, kind, data, prev_data, timestamp_s(timestamp))
