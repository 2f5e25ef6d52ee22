"""Change log of the writer: the statements on `_pylon_change_log` and its head.

The head is the highest seq in use: that of the newest event, of the newest epoch, or of
`_pylon_change_seq`, which retention and epochs write. The sequence `_pylon_seq` carries the last
seq of a batch from its first statement to the others of the same flush, as `currval`; its value
outlives no transaction. Called by `transaction`, `epochs` and `maintenance`.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres.names import SEQ_SEQUENCE

# The seq of a row, event or operation: a parameter is its distance from the last one of the batch.
SEQ: Final = f"currval('{SEQ_SEQUENCE}') + "
HEAD_OF: Final = (
    "greatest((SELECT max(seq) FROM _pylon_change_log), "
    "(SELECT max(first_seq) FROM _pylon_epochs), (SELECT max(value) FROM _pylon_change_seq), 0)"
)
HEAD: Final = f"SELECT {HEAD_OF}"
# The seq from which a writer counts on, under the lock: `_pylon_seq` is never below the head, since
# commits and epochs set it. PERF: 18 us less than `HEAD_OF`.
LAST_OF: Final = (
    "greatest((SELECT max(seq) FROM _pylon_change_log), "
    f"(SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM {SEQ_SEQUENCE}))"
)
# Takes the next seqs, as many as $1 says, and notifies $2 of the last one. Under the lock.
TAKE: Final = (
    f"SELECT head, pg_notify($2, setval('{SEQ_SEQUENCE}', head + $1) || $3) "
    f"FROM (SELECT {LAST_OF} AS head) AS known"
)
# The same without an event: only the notification.
TELL: Final = f"SELECT {LAST_OF}, pg_notify($1, $2)"
# For a locked transaction, which knows its seqs.
SET: Final = f"SELECT setval('{SEQ_SEQUENCE}', $1)"
NOTIFY: Final = "SELECT pg_notify($1, $2)"

INSERT: Final = (
    "INSERT INTO _pylon_change_log (seq, entity, row_id, kind, data, prev_data, timestamp)"
)
INSERT_MARKS: Final = 7
# The seq of a batch's first event, after a lost connection: $1 is a head from before the batch.
FIND_COMMITTED: Final = (
    "SELECT seq FROM _pylon_change_log WHERE seq > $1 AND entity = $2 AND row_id = $3 "
    "AND kind = $4 AND data IS NOT DISTINCT FROM $5 AND prev_data IS NOT DISTINCT FROM $6 "
    "AND timestamp = $7 ORDER BY seq DESC LIMIT 1"
)
COUNT_BETWEEN: Final = "SELECT count(*) FROM _pylon_change_log WHERE seq >= $1 AND seq <= $2"
