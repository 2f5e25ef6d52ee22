"""System reads: the statements of a reader on Pylon's own tables, and records from their rows.

The tables are those of the change log, epochs, sessions, documents and shards. Each read is one
statement, so it sees one commit. Values come as text (`parameters`). Called by `reader`;
`relay`, `retention` and `maintenance` share what a row of the log is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from psycopg.pq.abc import PGresult

from pylon import limits
from pylon.storage.events import ChangeEvent, Kind
from pylon.storage.postgres import sequences
from pylon.storage.postgres.parameters import bytea_of
from pylon.storage.postgres.sequences import HEAD_OF, NEWEST_MARK, NEWEST_UPDATE
from pylon.storage.records import (
    DocumentUpdate,
    DocumentView,
    SessionRow,
    StoredDocument,
    StoredPlace,
    StoredShard,
)

_Row = list[bytes | None]
EVENT: Final = "seq, entity, row_id, kind, data, prev_data, timestamp"
EVENT_BYTES: Final = "coalesce(octet_length(data), 0) + coalesce(octet_length(prev_data), 0)"

OLDEST: Final = f"SELECT coalesce(({sequences.OLDEST}), {HEAD_OF} + 1)"
EVENTS_AFTER: Final = (
    f"SELECT {EVENT} FROM _pylon_change_log WHERE seq > $1 ORDER BY seq LIMIT $2"
)
EVENTS_OF: Final = (
    f"SELECT {EVENT} FROM _pylon_change_log WHERE seq > $1 AND entity = ANY ($2) "
    "ORDER BY seq LIMIT $3"
)
NEWEST_EVENTS: Final = (
    f"SELECT {EVENT} FROM (SELECT {EVENT}, row_number() OVER newest AS place, "
    f"sum({EVENT_BYTES}) OVER newest AS total "
    "FROM (SELECT * FROM _pylon_change_log ORDER BY seq DESC LIMIT $1) AS kept "
    "WINDOW newest AS (ORDER BY seq DESC ROWS UNBOUNDED PRECEDING)) AS counted "
    f"WHERE place = 1 OR total <= {limits.TAIL_BYTES} ORDER BY seq"
)
VOID_RANGES: Final = "SELECT void_from, first_seq FROM _pylon_epochs ORDER BY first_seq"
SESSION: Final = (
    "SELECT session_id, user_id, is_guest, created_at, expires_at, device, tenant_id, "
    "is_guest AND EXISTS (SELECT 1 FROM _pylon_unused_guests AS u "
    "WHERE u.session_id = s.session_id), "
    "coalesce(family, session_id), rotated_at, coalesce(auth_time, created_at), methods, "
    "coalesce(last_seen_at, created_at), token_hint "
    "FROM _pylon_auth_sessions AS s WHERE session_id = $1"
)
FAMILY_ENDS: Final = (
    "SELECT family, CASE WHEN min(expires_at) = 0 THEN 0 ELSE max(expires_at) END "
    "FROM _pylon_auth_sessions WHERE family = ANY ($1) AND rotated_at IS NULL GROUP BY family "
    # Sessions of servers before there were families.
    "UNION ALL SELECT session_id, expires_at FROM _pylon_auth_sessions "
    "WHERE session_id = ANY ($1) AND family IS NULL"
)
SHARD: Final = "SELECT id, tick, data, home, saved_at, NULL, NULL FROM _pylon_shards WHERE id = $1"
SHARD_PLACE: Final = (
    "SELECT s.home, s.generation, s.owner, s.region, "
    "EXISTS (SELECT 1 FROM _pylon_nodes AS n WHERE n.lease = s.lease "
    "AND n.lease_until > clock_timestamp()), "
    "EXISTS (SELECT 1 FROM _pylon_nodes AS n WHERE n.node = split_part(s.owner, '/', 1) "
    "AND n.lease_until > clock_timestamp()) "
    "FROM _pylon_shards AS s WHERE id = $1"
)
SHARDS: Final = (
    "SELECT s.id, s.tick, NULL, s.home, s.saved_at, s.owner, n.node IS NOT NULL "
    "FROM _pylon_shards AS s LEFT JOIN _pylon_nodes AS n "
    "ON n.lease = s.lease AND n.lease_until > clock_timestamp() ORDER BY s.id LIMIT $1"
)
_OF_ROW: Final = "WHERE o.entity = s.entity AND o.row_id = s.row_id"
DOCUMENT: Final = (
    "SELECT snapshot, "
    f"(SELECT max(number) FROM _pylon_crdt_updates AS o {_OF_ROW}), "
    "(SELECT string_agg(encode(data, 'hex'), ',' ORDER BY number) "
    f"FROM _pylon_crdt_updates AS o {_OF_ROW} AND octet_length(data) > 0), "
    "(SELECT string_agg(encode(before, 'hex') || ':' || encode(after, 'hex') || ':' || "
    "encode(convert_to(facts, 'UTF8'), 'hex'), ',' ORDER BY number) "
    f"FROM _pylon_crdt_views AS o {_OF_ROW}) "
    "FROM _pylon_crdt_snapshots AS s WHERE entity = ? AND row_id = ?"
)
UPDATES: Final = (
    "SELECT number, prev, seq, entity, row_id FROM _pylon_crdt_updates "
    "WHERE number > $1 ORDER BY number LIMIT $2"
)
UPDATE: Final = "SELECT data FROM _pylon_crdt_updates WHERE number = $1"
DOCUMENT_NUMBER: Final = f"SELECT coalesce(({NEWEST_UPDATE}), 0)"
# Each part grows with the commits of its kind.
VERSION: Final = (
    f"SELECT {HEAD_OF}, coalesce(({NEWEST_UPDATE}), 0), coalesce(({NEWEST_MARK}), 0)"
)
_NUMBER_BITS: Final = 63


def rows_of(result: PGresult) -> Iterator[_Row]:
    """Yield the rows of a result."""
    value, columns = result.get_value, range(result.nfields)
    for row in range(result.ntuples):
        yield [value(row, column) for column in columns]


def event_of(row: _Row) -> ChangeEvent:
    """Return a change of the log."""
    seq, entity, row_id, kind, data, prev_data, timestamp_s = row
    if kind == b"delete" and data is not None:
        data, prev_data = None, prev_data or data
    return ChangeEvent(
        int(seq or 0), text_of(entity), text_of(row_id), cast(Kind, text_of(kind)), data, prev_data,
        int(timestamp_s or 0),
    )


def version_of(row: _Row) -> int:
    """Return one number of the parts of `VERSION`."""
    version = 0
    for part in row:
        version = version << _NUMBER_BITS | int(part or 0)
    return version


def session_of(row: _Row) -> SessionRow:
    """Return a stored session."""
    (
        session_id, user_id, is_guest, created_at_s, expires_at_s, device, tenant_id, is_unused,
        family, rotated_at_s, auth_time_s, methods, last_seen_at_s, hint,
    ) = row
    return SessionRow(
        text_of(session_id), text_of(user_id), is_guest == b"t", int(created_at_s or 0),
        int(expires_at_s or 0), text_of(device),
        None if tenant_id is None else tenant_id.decode(), is_unused == b"t", text_of(family),
        int(rotated_at_s or 0), int(auth_time_s or 0), (methods or b"").decode(),
        int(last_seen_at_s or 0), (hint or b"").decode(),
    )


def shard_of(row: _Row) -> StoredShard:
    """Return a stored shard."""
    shard_id, tick, data, home, saved_at_s, owner, is_held = row
    return StoredShard(
        text_of(shard_id), int(tick or 0), None if data is None else bytea_of(data),
        None if home is None else home.decode(), int(saved_at_s or 0),
        None if owner is None else owner.decode(), is_held == b"t",
    )


def place_of(row: _Row) -> StoredPlace:
    """Return the placement of a stored shard."""
    home, generation, owner, region, is_held, owner_lives = row
    return StoredPlace(
        None if home is None else home.decode(), int(generation or 0),
        None if owner is None else owner.decode(), None if region is None else region.decode(),
        is_held == b"t", owner_lives == b"t",
    )


def document_of(row: _Row) -> StoredDocument:
    """Return the stored parts of a document."""
    snapshot, number, updates, views = row
    return StoredDocument(
        bytea_of(snapshot or b"\\x"),
        tuple([bytes.fromhex(part) for part in _parts_of(updates)]),
        int(number or 0),
        tuple([_view_of(part) for part in _parts_of(views)]),
    )


def update_of(row: _Row) -> DocumentUpdate:
    """Return an update of a document."""
    number, prev, seq, entity, row_id = row
    return DocumentUpdate(
        int(number or 0), int(prev or 0), int(seq or 0), text_of(entity), text_of(row_id)
    )


def text_of(value: bytes | None) -> str:
    """Return the text of a value that is not null."""
    return (value or b"").decode()


def _parts_of(joined: bytes | None) -> list[str]:
    return [] if joined is None else joined.decode("ascii").split(",")


def _view_of(part: str) -> DocumentView:
    before, after, facts = (bytes.fromhex(piece) for piece in part.split(":"))
    return DocumentView(before, after, facts.decode())
