"""Seal jobs: after a change of the secret key, seals what earlier keys have sealed anew.

The identity process runs the job while it has several keys: at its start, and each `_PERIOD_S`, as
other nodes may have sealed with the earlier key meanwhile. A value is replaced only while it is the
one that was read, so the job may run in several processes, and beside every flow.

Log: secret.resealed, secret.unsealed (a value that no key opens), secret.failed. Run by
`workers.identity.server` in a greenlet.
"""

from __future__ import annotations

from typing import Final

import gevent

from pylon import log
from pylon.auth.sealed_values import COLUMN, TABLES, SealedTable, read_sealed
from pylon.errors import PylonError, RecordConflict, SealBroken
from pylon.storage.auth_ops import Condition, SetRecords
from pylon.storage.auth_tables import Value
from workers.identity.identity import Identity

_PERIOD_S: Final = 600.0

_log = log.get_logger("identity")


def run_seal_jobs(identity: Identity) -> None:
    """Seal what there is, for ever; return at once where there is one key."""
    while len(identity.keys.kids) > 1:
        try:
            count = reseal(identity)
        except PylonError as ex:  # the store cannot be reached now: the next round tries again
            _log.warning("secret.failed", code=ex.code, error=ex.message)
        else:
            if count:
                _log.info("secret.resealed", values=count, key=identity.keys.kids[0])
        gevent.sleep(_PERIOD_S)


def reseal(identity: Identity) -> int:
    """Seal all values of earlier keys by the newest one; return how many.

    Raises:
        StoreUnavailable, QueryTimeout, WriterUnavailable, WriteQueueFull
    """
    return sum(
        _reseal_one(identity, table, record)
        for table in TABLES
        for page in read_sealed(identity.store.point, table)
        for record in page
        if not identity.keys.is_current(str(record[COLUMN]))
    )


def _reseal_one(identity: Identity, table: SealedTable, record: dict[str, Value]) -> bool:
    """Seal one value anew, unless it has changed meanwhile."""
    before, subject = str(record[COLUMN]), str(record[table.subject])
    try:
        value = identity.keys.open(table.name, COLUMN, subject, before)
    except SealBroken as ex:
        _log.error("secret.unsealed", table=table.name, error=ex.message)
        return False
    is_same = [Condition(key, "=", record[key]) for key in table.keys]
    sealed = identity.keys.seal(table.name, COLUMN, subject, value)
    try:
        identity.writer.submit(SetRecords(
            table.name, [*is_same, Condition(COLUMN, "=", before)], {COLUMN: sealed}, 1
        ))
    except RecordConflict:
        return False
    return True
