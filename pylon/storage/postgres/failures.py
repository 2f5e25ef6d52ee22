"""Failures: finds the requests that the database refused, and the outcome of a lost commit.

A batch that the database refuses is undone as a whole. The request at fault is found by sending the
statements again, one request at a time, behind savepoints (`find_refused`). After a lost connection
during a COMMIT nothing is answered before the outcome is known (`settle`).

Called by `batch` and `transaction`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import psycopg
from psycopg import errors

from pylon import limits, metrics
from pylon.clock import Clock
from pylon.errors import InternalError, PylonError
from pylon.log import get_logger
from pylon.storage.core.transaction import OutcomeUnknownError, OutdatedError, Shift
from pylon.storage.postgres import sequences
from pylon.storage.postgres.connect import STORE_FAILURES, error_text
from pylon.storage.postgres.flush import NO_REQUEST, Flush, Gathered
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.postgres.writer_session import WriterSession

SETTLE_S: Final = limits.WRITE_TIMEOUT_S * 0.8  # how long the outcome of a commit is asked for
# The server ended the transaction because of others; the same statements may succeed.
AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_SETTLE_PAUSE_S: Final = 0.2

_log: Final = get_logger("writer")


def find_refused(
    writer: WriterSession, session: BlockingSession, items: Sequence[Gathered], base: int,
    origin: int, last_seq: int,
) -> dict[int, PylonError]:
    """Send the statements of each request alone, and undo them all. Return the refusals, by the
    positions of the requests.

    Args:
        session: idle; it stays so.
        base: the seq before the first of the batch.
        origin: the provisional one that stands for it.
        last_seq: provisional, of the batch.

    Raises:
        psycopg.Error: the store failed.
    """
    metrics.BATCHES_EXAMINED.inc()
    last_seq = max(last_seq, origin + 1)
    refused: dict[int, PylonError] = {}
    writer.take_lock(session)
    try:
        session.execute(sequences.SET, (base + last_seq - origin,))
        for position in dict.fromkeys(item.position for item in items):
            if position == NO_REQUEST:
                continue
            flush = Flush()
            flush.add("SAVEPOINT request")
            flush.add_gathered(
                [item for item in items if item.position == position], last_seq, single=True
            )
            flush.add("SET CONSTRAINTS ALL IMMEDIATE")
            flush.add("RELEASE SAVEPOINT request")
            outcome = session.try_pipeline(flush.statements)
            error = outcome.error
            if error is None:
                continue
            if isinstance(error, STORE_FAILURES) or session.is_broken:
                raise error
            origins = flush.origins[len(outcome.results)]
            refused[position] = _refusal(origins, error)
            _log.warning("write.refused", position=position, message=error_text(error))
            session.execute("ROLLBACK TO SAVEPOINT request")
    finally:
        writer.roll_back(session)
    return refused


def settle(
    writer: WriterSession, error: psycopg.Error,
    find_committed: Callable[[BlockingSession], Shift | None], waits: Clock,
    pause: Callable[[float], None],
) -> Shift:
    """Find out whether a batch whose answer was lost was committed.

    The new connection comes after the end of the lost one, and takes the lock, so the answer is
    final.

    Args:
        find_committed: looks for the batch, under the lock.
        waits: the clock of time limits.

    Raises:
        OutdatedError: it was not.
        OutcomeUnknownError: the server does not tell in time.
    """
    until_s = waits.monotonic_s() + SETTLE_S
    while True:
        try:
            session = writer.connect()
            writer.take_lock(session)
            try:
                found = find_committed(session)
            finally:
                writer.roll_back(session)
        except psycopg.Error as problem:
            error = problem
            if waits.monotonic_s() >= until_s:
                raise OutcomeUnknownError(error_text(error)) from error
            pause(_SETTLE_PAUSE_S)
            continue
        _log.warning("write.settled", committed=found is not None)
        if found is None:
            raise OutdatedError from error
        return found


def _refusal(origins: Sequence[Gathered], error: psycopg.Error) -> PylonError:
    for item in origins:
        if item.source is not None:
            return item.source.refuse(error, item.row_json)
    return InternalError("the database refused a statement of this write")
