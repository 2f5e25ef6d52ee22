"""Epochs: distinguish cursors of lost commits from valid cursors, on PostgreSQL.

A database server may lose commits that clients have received: by a restore, or when a standby takes
over without the end of the log. Its *history* changes then: the system identifier with a restore
from a dump, the timeline with a promotion or a restore to a point in time. Each connection of a
writer compares the history with the stored one, under the writers' lock, before its first batch; a
different one opens an epoch. Cursors up to the surviving head stay valid. Where the server does not
tell its timeline, a head below one that this node has acknowledged says the same.

Invariant: `first_seq` is above every seq that this database, or the lost one, has used (see
`pylon.storage.sqlite.epochs`). Called by `writer_session`, the schema and the migration.
"""

from __future__ import annotations

from typing import Final

import psycopg

from pylon.clock import Clock
from pylon.log import get_logger
from pylon.storage.postgres import meta
from pylon.storage.postgres.sequences import HEAD, SET
from pylon.storage.postgres.statements import Session

HISTORY: Final = "history_id"  # the key of `_pylon_meta`
_JUMP: Final = 10**9
_UNKNOWN: Final = "-"
_IDENTIFIER: Final = "SELECT system_identifier FROM pg_control_system()"
_TIMELINE: Final = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
_INSERT: Final = (
    "INSERT INTO _pylon_epochs (first_seq, void_from, reason, at) VALUES ($1, $2, $3, $4)"
)

_log: Final = get_logger("epochs")


def open_epoch(session: Session, reason: str, clock: Clock, void_from: int | None = None) -> int:
    """Open a new epoch, within the caller's transaction, which has the writers' lock.

    Args:
        reason: text for the operator, stored in the table.
        void_from: the last cursor that stays valid; None: the present head.

    Returns:
        `first_seq`, which is the head from now on.
    """
    head = head_seq(session)
    now_ns = clock.wall_ns()
    first_seq = max(head + _JUMP, now_ns // 1_000)
    session.execute(SET, (first_seq,))
    session.execute(_INSERT, (
        first_seq, head if void_from is None else void_from, reason, now_ns // 10**9,
    ))
    return first_seq


def head_seq(session: Session) -> int:
    """Return the highest seq in use; 0 in a new database."""
    return int(session.execute(HEAD).get_value(0, 0) or 0)


def read_history(session: Session) -> str:
    """Return the history of the server, outside of a transaction: `<identifier>/<timeline>`, each
    `-` where the server does not tell it."""
    return "/".join(_ask(session, question) for question in (_IDENTIFIER, _TIMELINE))


def keep_history(session: Session, history: str, acknowledged: int, clock: Clock) -> int:
    """Compare the history with the stored one, within a transaction that has the writers' lock, and
    open an epoch if the server may have lost commits.

    Args:
        history: of `read_history`.
        acknowledged: the highest seq that this node has given to anybody.

    Returns:
        The head.
    """
    known = meta.get(session, HISTORY)
    head = head_seq(session)
    if known != history:
        meta.put(session, HISTORY, history)
    reason = None
    if known is not None and known != history:
        reason = f"the server's history was {known} and is {history}"
    elif head < acknowledged:
        reason = f"the head was {acknowledged} and is {head}"
    if reason is None:
        return head
    _log.warning("epoch.opened", reason=reason, void_from=head)
    return open_epoch(session, reason, clock)


def _ask(session: Session, question: str) -> str:
    try:
        return (session.execute(question).get_value(0, 0) or b"-").decode()
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):
        return _UNKNOWN  # not allowed, or another program that speaks the protocol
