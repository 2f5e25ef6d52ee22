"""The supervisor's writer with the real engine, the real bus and a real file."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zmq

from pylon import limits
from pylon.bus.changes import ChangesPublisher
from pylon.bus.messages import change_batch
from pylon.bus.writer_port import LocalWriter
from pylon.clock import ManualClock
from pylon.errors import InternalError, UniqueViolation
from pylon.storage.events import ChangeBatch
from pylon.storage.ops import DropSession, OpKey, WriteReply, WriteRequest
from pylon.storage.public_rows import PublicRows
from pylon.storage.records import BatchResult
from pylon.storage.sqlite.engine import SqliteEngine
from supervisor.batch_publisher import BatchPublisher
from tests.support.wait import WAIT_S
from tests.support.writer_store import WriterStore, start_thread, start_writer

pytestmark = pytest.mark.stores


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WriterStore]:
    made = WriterStore(tmp_path)
    yield made
    made.engine.close()


def test_replies_come_after_the_commit_and_errors_stay_alone(store: WriterStore) -> None:
    writer, local = start_writer(store)
    reply = local.submit(store.insert("a"))
    assert reply.seq == writer.head
    assert store.count() == 1
    good, bad, also_good = local.submit_all(
        [store.insert("b"), store.insert("a"), store.insert("c")])
    assert (good.error, also_good.error) == (None, None)
    assert bad.error is not None
    assert isinstance(bad.error.to_exception(), UniqueViolation)
    assert store.count() == 3
    local.close()
    writer.stop()
    writer.stop()


def test_an_op_id_is_carried_out_once(store: WriterStore) -> None:
    writer, local = start_writer(store)
    op = OpKey("u", "op-1")
    first = local.submit(store.insert("a", op))
    again = local.submit(store.insert("b", op))
    assert (again.replayed, again.seq, again.row_id) == (True, first.seq, first.row_id)
    assert store.count() == 1
    local.close()
    writer.stop()


def test_many_threads_at_once(store: WriterStore) -> None:
    writer, first = start_writer(store)
    failed: list[BaseException] = []

    def run(name: str) -> None:
        local = LocalWriter(store.runtime)
        try:
            for n in range(50):
                local.submit(store.insert(f"{name}-{n}"))
        except BaseException as ex:
            failed.append(ex)
            raise
        finally:
            local.close()

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert store.count() == 300
    first.close()
    writer.stop()


def test_stop_carries_out_what_waits(store: WriterStore) -> None:
    slow = Slow(store.engine)
    writer, local = start_writer(store, slow)
    answered: list[list[WriteReply]] = []
    threads = [start_thread(lambda: answered.append(local.submit_all([store.insert("1")])))]
    assert slow.entered.wait(WAIT_S)
    sent = threading.Event()

    class Late(LocalWriter):
        """Says when it has sent."""

        def _send(self, requests: list[WriteRequest]) -> None:
            super()._send(requests)
            sent.set()

    late = Late(store.runtime)
    threads.append(start_thread(
        lambda: answered.append(late.submit_all([store.insert(str(n)) for n in range(2, 100)]))))
    assert sent.wait(WAIT_S)
    stopper = start_thread(writer.stop)
    slow.go_on.set()
    for thread in (*threads, stopper):
        thread.join(20)
    assert sorted(len(replies) for replies in answered) == [1, 98]
    assert store.count() == 99
    local.close()
    late.close()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[ChangeBatch]:
    """The batches that the writer has published."""
    batches: queue.Queue[ChangeBatch] = queue.Queue()
    monkeypatch.setattr(ChangesPublisher, "publish", lambda _, batch: batches.put(batch))
    return batches


def test_commits_that_follow_closely_are_published_together(
    store: WriterStore, published: queue.Queue[ChangeBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUBLISH_PERIOD_S", 60.0)
    writer, local = start_writer(store)
    for number in range(5):
        local.submit(store.insert(str(number)))
    writer.stop()  # publishes what it has kept
    first, rest = published.get(timeout=WAIT_S), published.get(timeout=WAIT_S)
    assert [event.seq for event in first.events] == [1]
    assert rest.prev_seq == 1 and [event.seq for event in rest.events] == [2, 3, 4, 5]
    local.close()


def test_time_and_rhythm_of_batches_are_those_of_the_injected_clock(
    store: WriterStore, published: queue.Queue[ChangeBatch]
) -> None:
    clock = ManualClock()
    clock.advance(1_000.0)
    publisher = BatchPublisher(store.runtime, PublicRows(()), clock)
    publisher.put(ChangeBatch(0, []))
    assert published.get_nowait().committed_s == 1_000.0
    clock.advance(limits.PUBLISH_IDLE_PERIOD_S / 2)
    publisher.put(ChangeBatch(0, []))
    assert publisher.wait_s == pytest.approx(limits.PUBLISH_IDLE_PERIOD_S / 2)
    publisher.publish_if_due()
    assert published.empty()
    clock.advance(limits.PUBLISH_IDLE_PERIOD_S)
    publisher.publish_if_due()
    kept = published.get_nowait()
    assert kept.committed_s == pytest.approx(1_000.0 + limits.PUBLISH_IDLE_PERIOD_S / 2)
    publisher.close()


def test_changes_that_nobody_waits_for_are_published_seldom(
    store: WriterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUBLISH_IDLE_PERIOD_S", 2.0)
    monkeypatch.setattr(limits, "PUBLISH_PERIOD_S", 0.001)
    writer, local = start_writer(store)
    with zmq.Context() as context, context.socket(zmq.SUB) as worker:
        worker.setsockopt(zmq.LINGER, 0)
        worker.setsockopt(zmq.RCVTIMEO, int(WAIT_S * 1_000))
        worker.connect(store.runtime.changes)
        for number in range(5):
            local.submit(store.insert(f"before-{number}"))
        worker.setsockopt(zmq.SUBSCRIBE, b"")
        worker.setsockopt(zmq.SUBSCRIBE, b"clients")  # a client has connected to the worker
        batch = change_batch.decode(worker.recv())
        assert batch.prev_seq == 1
        assert [event.seq for event in batch.events] == [2, 3, 4, 5]
        for number in range(5):
            local.submit(store.insert(f"meanwhile-{number}"))
            assert len(change_batch.decode(worker.recv()).events) == 1
    local.close()
    writer.stop()


def test_a_commit_is_published_though_none_follows(
    store: WriterStore, published: queue.Queue[ChangeBatch]
) -> None:
    writer, local = start_writer(store)
    for number in range(5):
        local.submit(store.insert(str(number)))
    seq = 0
    while seq < 5:
        batch = published.get(timeout=WAIT_S)
        assert batch.prev_seq == seq
        seq = batch.events[-1].seq
    local.close()
    writer.stop()


class Slow:
    """The real engine, whose first batch takes as long as the test wants."""

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine
        self.entered = threading.Event()
        self.go_on = threading.Event()

    @property
    def head(self) -> int:
        return self._engine.head

    def apply(self, requests: Sequence[WriteRequest], *, large_bytes: int | None) -> BatchResult:
        self.entered.set()
        assert self.go_on.wait(WAIT_S)
        return self._engine.apply(requests, large_bytes=large_bytes)


class Failing:
    """An engine with a defect."""

    head = 0
    defective = True

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine

    def apply(self, requests: Sequence[WriteRequest], *, large_bytes: int | None) -> BatchResult:
        if self.defective:
            raise ZeroDivisionError("defect")
        return self._engine.apply(requests, large_bytes=large_bytes)


def test_a_defect_answers_everyone_and_ends_the_supervisor_at_last(store: WriterStore) -> None:
    engine = Failing(store.engine)
    writer, local = start_writer(store, engine)
    for _ in range(limits.WRITER_FAILURES - 1):
        for reply in local.submit_all([store.insert("a"), store.insert("b")]):
            assert reply.error is not None
            assert isinstance(reply.error.to_exception(), InternalError)
            assert "defect" not in reply.error.message
    assert store.broken == []
    engine.defective = False
    assert local.submit(store.insert("a")).error is None  # a success starts the count again
    engine.defective = True
    for _ in range(limits.WRITER_FAILURES):
        local.submit_all([DropSession("none")])
    assert [type(error) for error in store.broken] == [ZeroDivisionError]
    local.close()
    writer.stop()
