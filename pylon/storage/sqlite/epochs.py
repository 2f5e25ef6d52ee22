"""Epochs: distinguish cursors of lost commits from valid cursors (design.md §4).

The database may have lost commits that clients have received: by a restore, by a loss of power
without fsync, or by writes of another program. Then the seq jumps far above every seq used so far.
`_pylon_epochs` stores the jump. Cursors strictly between `void_from` and `first_seq` belong to lost
commits, so their clients must resync. A cursor at `void_from` stays valid.

The mark takes `first_seq` itself: it becomes the head, and the next event gets the seq after it. So
a snapshot taken right after the jump has a valid cursor above 0.

Invariant: `first_seq` is above every seq that this database, or the lost one, has used. The wall
clock in microseconds ensures that: no store commits a million events a second for long. Called by
`engine`, `transaction`, the schema and restore.
"""

from __future__ import annotations

from typing import Final

import apsw

from pylon.clock import Clock
from pylon.storage.sqlite import log, meta

_JUMP: Final = 10**9


def open_epoch(
    conn: apsw.Connection, reason: str, clock: Clock, void_from: int | None = None
) -> int:
    """Open a new epoch, within the caller's transaction or in one of its own.

    Args:
        reason: text for the operator, stored in the table.
        void_from: the last cursor that stays valid; None: the present head.

    Returns:
        `first_seq`, which is the head from now on.
    """
    head = log.head_seq(conn)
    now_ns = clock.wall_ns()
    first_seq = max(head + _JUMP, now_ns // 1000)
    conn.execute(
        "INSERT INTO _pylon_epochs (first_seq, void_from, reason, at) VALUES (?, ?, ?, ?)",
        (first_seq, head if void_from is None else void_from, reason, now_ns // 10**9),
    )
    return first_seq


def begin_run(conn: apsw.Connection, durability: str, boot_id: str, clock: Clock) -> bool:
    """Note that a run begins, and open an epoch if the last one may have lost commits.

    That is possible if the last run did not end cleanly, did not fsync its commits, and the machine
    has rebooted since (or the kernel does not tell). Call it with `synchronous=FULL`, so that a
    loss of power cannot undo the note.

    Returns:
        Whether an epoch was opened.
    """
    conn.execute("BEGIN IMMEDIATE")
    try:
        lost = (
            meta.get(conn, "clean") == "0"
            and meta.get(conn, "durability") != "full"
            and (not boot_id or meta.get(conn, "boot_id") != boot_id)
        )
        if lost:
            open_epoch(conn, "the last run ended by loss of power", clock)
        meta.put(conn, "clean", "0")
        meta.put(conn, "durability", durability)
        meta.put(conn, "boot_id", boot_id)
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
    return lost


def end_run(conn: apsw.Connection, head: int) -> None:
    """Note, within the caller's transaction, that all is written and the run ends cleanly."""
    meta.put(conn, "clean", "1")
    log.put_counter(conn, head)


def resume_run(conn: apsw.Connection) -> None:
    """Undo `end_run`, within the caller's transaction: the writer writes again."""
    meta.put(conn, "clean", "0")
