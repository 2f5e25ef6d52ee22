"""Answers of a prefetch: functions that take the result of a read ahead into the overlay.

Each maker knows what its statement asks, since a row that is not in the result is known not to be
there. Called by `prefetch` and `prefetch_cascades`.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from psycopg.pq.abc import PGresult

from pylon.storage.core.transaction import DocumentKey, OpName, OutdatedError
from pylon.storage.postgres.overlay import Check, KnownRow, Overlay, RowKey
from pylon.storage.postgres.statements import Statement
from pylon.storage.postgres.unique_keys import UniqueKey, Values

Take = Callable[[PGresult], None]
Read = tuple[Statement, Take]


def take_row(overlay: Overlay, key: RowKey, row: KnownRow, *, locked: bool) -> None:
    """Note a row.

    Raises:
        OutdatedError: another statement of this prefetch has read another version of it.
    """
    known = overlay.rows.setdefault(key, row)
    if known is None or known[1] != row[1]:
        raise OutdatedError(f"{key[0]}/{key[1]}")
    if not locked:
        overlay.read_versions[key] = row[1]


def take_rows(overlay: Overlay, name: str, ids: list[str], *, locked: bool) -> Take:
    """Return what takes rows by their ids, the first statement that reads rows."""
    def take(result: PGresult) -> None:
        rows = overlay.rows
        for row_id in ids:
            rows[name, row_id] = None
        for n in range(result.ntuples):
            key = (name, (result.get_value(n, 0) or b"").decode())
            seq = result.get_value(n, 2)
            version = None if seq is None else int(seq)
            rows[key] = (result.get_value(n, 1), version)
            if not locked:
                overlay.read_versions[key] = version

    return take


def take_ids(overlay: Overlay, name: str, ids: list[str]) -> Take:
    """Return what takes which ids exist."""
    def take(result: PGresult) -> None:
        for row_id in ids:
            overlay.exists[name, row_id] = False
        for n in range(result.ntuples):
            overlay.exists[name, (result.get_value(n, 0) or b"").decode()] = True

    return take


def take_documents(overlay: Overlay, keys: list[DocumentKey]) -> Take:
    """Return what takes the numbers of documents."""
    def take(result: PGresult) -> None:
        for key in keys:
            overlay.documents[key] = None
        for n in range(result.ntuples):
            entity, row_id = result.get_value(n, 0) or b"", result.get_value(n, 1) or b""
            number = int(result.get_value(n, 2) or 0)
            overlay.documents[entity.decode(), row_id.decode()] = number

    return take


def take_ops(overlay: Overlay, names: list[OpName]) -> Take:
    """Return what takes executed operations."""
    def take(result: PGresult) -> None:
        for name in names:
            overlay.ops[name] = None
        for n in range(result.ntuples):
            identity, op_id, seq, row_id, digest = (result.get_value(n, c) for c in range(5))
            overlay.ops[(identity or b"").decode(), (op_id or b"").decode()] = (
                int(seq or 0), (row_id or b"").decode(), None if digest is None else digest.decode()
            )

    return take


def take_owners(overlay: Overlay, unique: UniqueKey, values: list[Values]) -> Take:
    """Return what takes the owners of unique values."""
    def take(result: PGresult) -> None:
        for key in values:
            overlay.owners[unique, key] = None
        for n in range(result.ntuples):
            row = result.get_value(n, 2) if unique.where is not None else None
            if unique.where is None or unique.where(orjson.loads(row or b"{}")):
                key = values[int(result.get_value(n, 0) or 1) - 1]
                overlay.owners[unique, key] = (result.get_value(n, 1) or b"").decode()

    return take


def take_check(
    overlay: Overlay, check: Check, statement: Statement, *, locked: bool
) -> Take:
    """Return what takes the answer of a check."""
    def take(result: PGresult) -> None:
        answer = result.get_value(0, 0) == b"t"
        overlay.put_check(check, answer)
        if not locked:
            overlay.read_checks[check] = answer, statement

    return take


def take_sessions(overlay: Overlay, ids: list[str]) -> Take:
    """Return what takes which sessions exist."""
    def take(result: PGresult) -> None:
        for session_id in ids:
            overlay.sessions[session_id] = False
        for n in range(result.ntuples):
            overlay.sessions[(result.get_value(n, 0) or b"").decode()] = True

    return take
