"""Sequences: the numbers of changes, of document updates and of marks, and how a writer takes them.

All are taken under the writers' lock, so they ascend in commit order. The head is the highest seq
in use: that of the newest event, of the newest epoch, or of `_pylon_change_seq`, which retention
and epochs write. The sequence `_pylon_seq` carries the last seq of a batch from its first statement
to the others of the same flush, as `currval`; its value outlives no transaction.

Called by `batch`, `log`, `table`, `epochs`, `maintenance`, `relay`, `transfer` and the readers.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres.names import DOCUMENT_SEQUENCE, SEQ_SEQUENCE

# The seq of a row, event or operation: a parameter is its distance from the last one of the batch.
SEQ: Final = f"currval('{SEQ_SEQUENCE}') + "
HEAD_OF: Final = (
    "greatest((SELECT max(seq) FROM _pylon_change_log), "
    "(SELECT max(first_seq) FROM _pylon_epochs), (SELECT max(value) FROM _pylon_change_seq), 0)"
)
HEAD: Final = f"SELECT {HEAD_OF}"
OLDEST: Final = "SELECT min(seq) FROM _pylon_change_log"
NEWEST_UPDATE: Final = "SELECT max(number) FROM _pylon_crdt_updates"
NEWEST_MARK: Final = "SELECT max(number) FROM _pylon_marks"
# The seq from which a writer counts on, under the lock: `_pylon_seq` is never below the head, since
# commits and epochs set it. PERF: 18 us less than `HEAD_OF`.
_LAST_OF: Final = (
    "greatest((SELECT max(seq) FROM _pylon_change_log), "
    f"(SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {SEQ_SEQUENCE}))"
)
_DOCUMENT_NUMBER: Final = (
    f"(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {DOCUMENT_SEQUENCE})"
)
# The last seq, and the number of the newest document update.
BASE: Final = f"SELECT {_LAST_OF}, {_DOCUMENT_NUMBER}"
# Takes the next seqs, as many as $1 says, and notifies $2 of the last one. Under the lock.
TAKE: Final = (
    f"SELECT head, pg_notify($2, setval('{SEQ_SEQUENCE}', head + $1) || $3) "
    f"FROM (SELECT {_LAST_OF} AS head) AS known"
)
# The same without an event: only the notification.
TELL: Final = f"SELECT {_LAST_OF}, pg_notify($1, $2)"
# For a locked transaction, which knows its numbers.
SET: Final = f"SELECT setval('{SEQ_SEQUENCE}', $1)"
SET_DOCUMENT_NUMBER: Final = f"SELECT setval('{DOCUMENT_SEQUENCE}', $1)"
NOTIFY: Final = "SELECT pg_notify($1, $2)"
