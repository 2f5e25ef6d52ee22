"""The change log: seqs, images, retention, and what a cursor may rely on."""

from __future__ import annotations

import orjson
import pytest

from pylon.storage.records import LogRetention
from tests.storage_contract.backends import StoreStage
from tests.support.storage import delete, row_id, task, update

pytestmark = pytest.mark.stores


def test_seqs_grow_in_commit_order_and_batches_link(stage: StoreStage) -> None:
    heads = [stage.writer.head]
    for number in range(1, 6):
        batch = stage.commit(task(number), task(100 + number)).batch
        assert batch is not None and batch.prev_seq == heads[-1]
        heads.append(batch.events[-1].seq)
    seqs = [event.seq for event in stage.events()]
    assert seqs == sorted(set(seqs)) and stage.reader.head_seq() == stage.writer.head == seqs[-1]
    assert stage.reader.oldest_seq() == seqs[0]


def test_events_have_both_images(stage: StoreStage) -> None:
    request = task(1)
    batches = [
        stage.commit(request).batch, stage.commit(update("Task", 1, {"rank": 2})).batch,
        stage.commit(delete("Task", 1)).batch,
    ]
    inserted, updated, deleted = stage.events()
    assert [batch.events if batch else None for batch in batches] == [
        [inserted], [updated], [deleted],
    ]
    assert (inserted.kind, inserted.prev_data, inserted.data) == ("insert", None, request.row_json)
    assert (updated.kind, updated.prev_data) == ("update", request.row_json)
    row = orjson.loads(request.row_json)
    assert orjson.loads(updated.data or b"") == {**row, "rank": 2}
    assert (deleted.kind, deleted.prev_data, deleted.data) == ("delete", updated.data, None)


def test_events_are_read_in_pages_and_from_the_end(stage: StoreStage) -> None:
    for number in range(1, 8):
        stage.apply(task(number))
    assert [e.seq for e in stage.reader.events_after(2, 3)] == [3, 4, 5]
    assert [e.seq for e in stage.reader.newest_events(2)] == [6, 7]
    assert stage.reader.events_after(7, 10) == []


def test_refused_request_makes_no_event(stage: StoreStage) -> None:
    stage.apply(task(1, slug="a"))
    result = stage.commit(task(2, slug="a"))
    assert result.batch is None and stage.reader.head_seq() == 1


def test_retention_drops_old_events_in_steps_and_never_the_newest(stage: StoreStage) -> None:
    start_s = stage.clock.wall_ns() // 1_000_000_000
    stage.apply(*(task(number) for number in range(1, 21)))
    stage.clock.advance(100)
    stage.apply(*(task(number) for number in range(21, 31)))
    prune = stage.writer.maintenance.prune_log
    assert prune(LogRetention(1_000, start_s + 50, 1_000)) == 0, "fewer events than it keeps"
    assert [prune(LogRetention(25, start_s + 50, 3)) for _ in range(3)] == [3, 2, 0]
    assert stage.reader.oldest_seq() == 6
    assert prune(LogRetention(0, start_s + 50, 1_000)) == 15, "younger events stay"
    assert prune(LogRetention(0, start_s + 1_000, 1_000)) == 9, "the newest event stays"
    assert stage.reader.oldest_seq() == stage.reader.head_seq() == 30
    stage.restart()
    (reply,) = stage.apply(task(31))
    assert reply.seq == 31
    assert stage.reader.get("Task", row_id(1)) is not None


def test_orderly_restart_voids_no_cursor(stage: StoreStage) -> None:
    stage.apply(task(1))
    stage.writer.maintenance.end_run()
    stage.restart()
    assert stage.reader.void_ranges() == []
    assert stage.writer.head == 1
