"""Shared sessions: refuses a pooler that gives one connection's transactions to several processes.

Such a pooler (PgBouncer's transaction mode, for example) breaks what a session keeps between its
transactions: locks of the leader, LISTEN, and the time limits of reads, which then apply to the
reads of others. A pooler that keeps a server process for each connection is harmless.

A server tells each connection the pid of its process. Through a pooler that number is another one
than the server's own answer; so without a pooler nothing more is asked. Called by `connect`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import psycopg

from pylon.errors import StartRefused

_PID: Final = "SELECT pg_backend_pid()"
_NO_TRANSACTIONS: Final = "statement pooling"  # in PgBouncer's answer to BEGIN
_ROUNDS: Final = 3  # in which other clients may take the process between


def refuse_shared_sessions(
    conn: psycopg.Connection[Any], open_other: Callable[[], psycopg.Connection[Any]], place: str
) -> None:
    """Look whether another connection can take the server process of this one.

    Args:
        place: the setting and its URL, for the message.

    Raises:
        StartRefused: it can.
        psycopg.Error
    """
    pid = _pid_of(conn)
    if pid == conn.info.backend_pid:
        return
    refusal = StartRefused(
        f"{place}: a pooler in transaction or statement mode is between, which gives the locks and "
        "settings of one connection to others; name the server itself, or use the pooler's session "
        "mode (docs/postgres.md, Poolers)"
    )
    with closing(open_other()) as other:
        for _ in range(_ROUNDS):
            try:
                # A pooler gives the other transaction a process that is free: that of `conn`, or
                # with round-robin another one, and then `conn` the next.
                with other.transaction():
                    other_pid = _pid_of(other)
                    own_pid = _pid_of(conn)
            except psycopg.Error as error:
                if _NO_TRANSACTIONS in str(error):
                    raise refusal from error
                raise
            if other_pid == pid or own_pid != pid:
                raise refusal


def _pid_of(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute(_PID).fetchone()
    assert row is not None
    return int(row[0])
