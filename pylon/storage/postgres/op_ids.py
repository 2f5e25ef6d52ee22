"""Operations of the writer: the statements on `_pylon_op_ids`, the executed operations by identity
and op_id. Two nodes that execute one operation at once meet at the primary key. Called by
`transaction`.
"""

from __future__ import annotations

from typing import Final

INSERT: Final = "INSERT INTO _pylon_op_ids (seq, identity, op_id, row_id, at, digest)"
INSERT_MARKS: Final = 6
FIND: Final = (
    "SELECT identity, op_id, seq, row_id, digest FROM _pylon_op_ids "
    "JOIN unnest($1::text[], $2::text[]) AS asked (identity, op_id) USING (identity, op_id)"
)
