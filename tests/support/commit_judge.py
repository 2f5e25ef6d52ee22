"""Judge of batches that several nodes commit: was each accepted write allowed where it stands?

The rows are those of rooms: a Message or a Member has the `roomId` of a Room, and goes with it. Ann
may write the messages of a room while a Member with her `userId` is there. Other callers may do
all. Used by tests/test_postgres_prefetch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from pylon.storage.events import ChangeEvent
from pylon.storage.ops import DeleteRow, InsertRow, Transact, UpdateRow, WriteOp, WriteReply
from pylon.storage.postgres.engine import PostgresEngine
from pylon.storage.records import BatchResult
from tests.support.two_writers import Writers

Rows = dict[tuple[str, str], dict[str, Any]]


class Commit(NamedTuple):
    """A batch that changed rows: its operations, their replies, the seq before it and its last."""

    ops: Sequence[WriteOp]
    replies: Sequence[WriteReply]
    previous: int
    last: int


def commit(writers: Writers, engine: PostgresEngine, *ops: WriteOp) -> tuple[BatchResult, Commit]:
    result = writers.commit(engine, *ops)
    batch = result.batch
    previous, last = (0, 0) if batch is None else (batch.prev_seq, batch.events[-1].seq)
    return result, Commit(ops, result.replies, previous, last)


def judge(writers: Writers, commits: Sequence[Commit]) -> Rows:
    """Execute what was accepted once more, in the order of the commits, on a model of the rows.

    Each operation must be allowed by the rows that were there at that point: by those before its
    batch, with the changes that the batch made before it. The log alone does not show these: it has
    one event for all changes of a row in a batch. After each batch the log must have the rows of
    the model. Return them.
    """
    log = writers.events()
    ordered = sorted((c for c in commits if c.last), key=lambda found: found.previous)
    logged: Rows = {}
    follow(logged, [event for event in log if event.seq <= ordered[0].previous])
    rows = dict(logged)
    for found in ordered:
        for op, reply in zip(found.ops, found.replies, strict=True):
            replies = reply.results if reply.results is not None else [reply]
            if reply.error is None and all(r.error is None for r in replies):
                for step in op.ops if isinstance(op, Transact) else (op,):
                    execute(rows, step, f"in the batch of {found.previous + 1} to {found.last}")
        follow(logged, [event for event in log if found.previous < event.seq <= found.last])
        assert logged == rows, f"the log differs after {found.last}"
    assert log[-1].seq == ordered[-1].last
    return rows


def follow(rows: Rows, events: Sequence[ChangeEvent]) -> None:
    """Bring rows up to date with the log. No change may be lost."""
    for event in events:
        key = (event.entity, event.row_id)
        before = None if event.prev_data is None else orjson.loads(event.prev_data)
        assert rows.get(key) == before, f"a change of {key} was lost at {event.seq}"
        if event.data is None:
            rows.pop(key, None)  # made and deleted by one batch
        else:
            rows[key] = orjson.loads(event.data)


def execute(rows: Rows, op: WriteOp, place: str) -> None:
    """Carry out an operation that was accepted, and check that it was allowed."""
    assert isinstance(op, InsertRow | UpdateRow | DeleteRow)
    key = (op.entity, op.row_id)
    known = rows.get(key)
    assert (known is None) is isinstance(op, InsertRow), f"{op} had no such row {place}"
    images = [] if known is None else [known]
    if isinstance(op, InsertRow):
        images.append(orjson.loads(op.row_json))
    elif isinstance(op, UpdateRow):
        images.append({**images[0], **op.patch})
    if op.entity == "Message" and op.auth is not None and op.auth.user_id == "ann":
        for image in images:
            assert any(
                name == "Member" and (row["roomId"], row["userId"]) == (image["roomId"], "ann")
                for (name, _), row in rows.items()
            ), f"nobody might do {op} {place}"
    if not isinstance(op, DeleteRow):
        has_room = op.entity == "Room" or ("Room", images[-1]["roomId"]) in rows
        assert has_room, f"{op} has no room {place}"
        rows[key] = images[-1]
        return
    del rows[key]
    if op.entity == "Room":
        for other in [k for k, row in rows.items() if row.get("roomId") == op.row_id]:
            del rows[other]
