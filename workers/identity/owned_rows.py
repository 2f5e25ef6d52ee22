"""Owned rows: what becomes of the rows of an account or an organisation that ends.

`empty_rows` deletes the rows that name it, or takes its id from them, as the manifest says
(`pylon.manifest.owned_fields`). It writes `limits.ACCOUNT_STEP_ROWS` rows at once, so that other
writes come in between. A killed process leaves fewer rows, and the request may be repeated.

Called by the flows of accounts and organisations, before the transaction of the end and after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.errors import NotFound, PylonError, Unavailable
from pylon.manifest.owned_fields import OwnedField
from pylon.query.conditions import equal
from pylon.query.rows import Query
from pylon.storage.ops import DeleteRow, RowOp, UpdateRow
from workers.identity.identity import Identity


def empty_rows(identity: Identity, fields: Sequence[OwnedField], value: str) -> None:
    """Delete the rows whose field has this id, or take the id from them.

    Args:
        fields: those with the word `keep`, or without a word, are left alone.

    Raises:
        Unavailable: there are more than `limits.ACCOUNT_STEPS` writes of them.
        PylonError: a row could not be changed, for example for a reference.
    """
    steps_left = limits.ACCOUNT_STEPS
    for word in ("delete", "null"):
        for field in fields:
            if field.word != word:
                continue
            while ids := _find_ids(identity, field, value):
                if not steps_left:
                    raise Unavailable(
                        "There are more rows than one request deletes",
                        hint="Send the request again; it goes on with the rest",
                    )
                steps_left -= 1
                _change(identity, [_change_of(field, row_id) for row_id in ids])


def _find_ids(identity: Identity, field: OwnedField, value: str) -> list[str]:
    query = Query(equal(field.name, value), limits.ACCOUNT_STEP_ROWS)
    rows, _ = identity.store.scan(
        lambda reader: reader.rows_within(field.entity.name, query, limits.LIST_BYTES // 4)
    )
    return [orjson.loads(row)["id"] for row in rows]


def _change_of(field: OwnedField, row_id: str) -> RowOp:
    if field.word == "delete":
        return DeleteRow(field.entity.name, row_id, ADMIN)
    return UpdateRow(field.entity.name, row_id, {field.name: None}, ADMIN)


def _change(identity: Identity, ops: Sequence[RowOp]) -> None:
    """
    Raises:
        PylonError: none of them could be changed.
    """
    errors: list[PylonError] = []
    for reply in identity.writer.submit_all(ops):
        if reply.error is not None and reply.error.code != NotFound.code:
            errors.append(reply.error.to_exception())
    if len(errors) == len(ops):  # a cascade may have to come first for some
        raise errors[0]
