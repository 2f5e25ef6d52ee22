"""Carry jobs: moves the rows of guests that the transaction of a sign-in has left.

A job is a record of `tokens` with the purpose `carry_over`. It is looked at `_PERIOD_S` after the
sign-in at the latest, and not before `_REST_S`, when no worker takes the guest's token any more.
Each row is moved by a write of its own, so that other writes come in between, and one row that
cannot be moved stops no other. A job that a crash has interrupted begins again; what it has moved
is no longer the guest's.

Bounds: `_ROWS` rows in one round of writes. Log: carry.finished, carry.failed. Run by
`workers.identity.server` in a greenlet.
"""

from __future__ import annotations

from typing import Final, NoReturn

import gevent

from pylon import limits, log
from pylon.errors import PylonError, RecordConflict
from pylon.manifest.carried_fields import carried_fields
from pylon.storage.auth_ops import Condition, DropRecords, SetRecords
from pylon.storage.auth_tables import Value
from pylon.storage.ops import Transact
from workers.identity.carry_over import JOB, read_moves
from workers.identity.identity import Identity

_PERIOD_S: Final = 10.0
_REST_S: Final = 2
_ROWS: Final = 200
_JOBS: Final = 20  # in one round
_LEASE_S: Final = 60  # a job that another process has begun is left alone for so long

_log = log.get_logger("identity")


def run_carry_jobs(identity: Identity) -> NoReturn:
    """Carry out the jobs that there are, for ever."""
    while True:
        gevent.sleep(_PERIOD_S)
        try:
            carry_out_jobs(identity)
        except PylonError as ex:  # the store cannot be reached now: the next round tries again
            _log.warning("carry.failed", code=ex.code, error=ex.message)


def carry_out_jobs(identity: Identity) -> int:
    """Carry out the jobs that are due; return how many.

    Raises:
        StoreUnavailable, QueryTimeout, WriterUnavailable, WriteQueueFull
    """
    due = [
        Condition("purpose", "=", JOB), Condition("created_at", "<=", identity.now_s() - _REST_S),
    ]
    jobs = identity.store.point(
        lambda reader: reader.records("tokens", due, ("created_at",), _JOBS)
    )
    return sum(_carry_out(identity, job) for job in jobs)


def _carry_out(identity: Identity, job: dict[str, Value]) -> bool:
    """Carry out one job, unless another process has begun it."""
    guest_id, user_id = str(job["data"]), str(job["user_id"])
    is_job = Condition("hash", "=", job["hash"])
    now_s = identity.now_s()
    begun_s = job["used_at"]
    if isinstance(begun_s, int) and begun_s > now_s - _LEASE_S:
        return False
    was = Condition("used_at", "null") if begun_s is None else Condition("used_at", "=", begun_s)
    try:
        identity.writer.submit(SetRecords("tokens", [is_job, was], {"used_at": now_s}, 1))
    except RecordConflict:
        return False
    moved = skipped = 0
    for entity, names in carried_fields(identity.app.manifest):
        after_id = ""
        while True:
            moves, _ = read_moves(
                identity, entity, names, guest_id, user_id, _ROWS, limits.SHARED_BATCH_BYTES,
                after_id,
            )
            if not moves:
                break
            after_id = moves[-1].row_id
            steps = [Transact(list(move.steps)) for move in moves if move.steps]
            replies = identity.writer.submit_all(steps) if steps else []
            for reply in replies:
                if reply.error is not None:
                    raise reply.error.to_exception()
            done = sum(
                all(result.error is None for result in reply.results or ()) for reply in replies
            )
            moved += done
            skipped += len(moves) - done
            identity.writer.submit(SetRecords("tokens", [is_job], {"used_at": identity.now_s()}))
    identity.writer.submit(DropRecords("tokens", [is_job]))
    if moved or skipped:
        _log.info("carry.finished", rows_moved=moved, rows_skipped=skipped)
    return True
