"""A3: one transaction takes few large rows, so that others write beside them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pylon import limits
from pylon.bus.runtime import make_runtime_dir
from pylon.bus.writer_port import LocalWriter
from pylon.clock import ManualClock
from pylon.config import load
from pylon.storage.interface import WriteEngine
from pylon.storage.ops import Transact, WriteReply, WriteRequest
from pylon.storage.public_rows import PublicRows
from pylon.storage.records import BatchResult
from pylon.storage.sqlite.engine import SqliteEngine
from supervisor.writer import Writer
from tests.support.storage import apply, insert, open_engine, task, update
from tests.support.wait import wait_until


def test_one_transaction_takes_few_large_rows_and_all_small_ones(engine: SqliteEngine) -> None:
    size = limits.BATCH_LARGE_BYTES // 4 - 1_000  # two images of two rows fit
    apply(engine, *[insert("Note", n, {"text": "x" * size}) for n in range(1, 9)])
    patches = [update("Note", n, {"text": "y" * size}) for n in range(1, 9)]
    requests = [WriteRequest(n, op) for n, op in enumerate(patches)]
    requests += [WriteRequest(100 + n, task(n)) for n in range(50)]
    result = engine.apply(requests, large_bytes=limits.BATCH_LARGE_BYTES)
    assert result.large_bytes <= limits.BATCH_LARGE_BYTES
    assert [r.id for r in result.replies if r.id >= 100] == list(range(100, 150))
    assert [r.id for r in result.deferred] == [r.id for r in requests[2:8]]
    assert len(result.replies) == 52


def test_small_rows_that_grow_large_count_as_large(engine: SqliteEngine) -> None:
    size = limits.BATCH_LARGE_BYTES // 2
    apply(engine, *[insert("Note", n, {"text": "x"}) for n in range(1, 5)])
    patches = [WriteRequest(n, update("Note", n, {"text": "y" * size})) for n in range(1, 5)]
    result = engine.apply([*patches, WriteRequest(9, task(1))],
                          large_bytes=limits.BATCH_LARGE_BYTES)
    assert [r.id for r in result.replies] == [1, 9]
    assert [r.id for r in result.deferred] == [2, 3, 4]


def test_a_call_keeps_its_order_when_a_part_of_it_is_deferred(engine: SqliteEngine) -> None:
    size = limits.BATCH_LARGE_BYTES // 2
    apply(engine, *[insert("Note", n, {"text": "x" * size}) for n in (1, 2)])
    first = WriteRequest(1, update("Note", 1, {"text": "y" * size}))
    call = [
        WriteRequest(2, task(1), True),
        WriteRequest(3, update("Note", 2, {"text": "z" * size}), True),
        WriteRequest(4, task(2), False),
    ]
    other = WriteRequest(5, task(3))
    result = engine.apply([first, *call, other], large_bytes=limits.BATCH_LARGE_BYTES)
    assert [r.id for r in result.replies] == [1, 2, 5]
    assert [r.id for r in result.deferred] == [3, 4]
    again = engine.apply(list(result.deferred), large_bytes=limits.BATCH_LARGE_BYTES)
    assert [r.id for r in again.replies] == [3, 4] and again.deferred == []


def test_a_deferred_transaction_leaves_nothing_behind(engine: SqliteEngine) -> None:
    size = limits.BATCH_LARGE_BYTES // 2
    apply(engine, *[insert("Note", n, {"text": "x" * size}) for n in (1, 2)])
    head = engine.head
    steps = Transact([task(1), update("Note", 2, {"text": "z" * size})])
    result = engine.apply(
        [WriteRequest(1, update("Note", 1, {"text": "y" * size})), WriteRequest(2, steps),
         WriteRequest(3, task(2))], large_bytes=limits.BATCH_LARGE_BYTES)
    assert [r.id for r in result.replies] == [1, 3] and [r.id for r in result.deferred] == [2]
    assert engine.head == head + 2
    (done,) = engine.apply(list(result.deferred), large_bytes=limits.BATCH_LARGE_BYTES).replies
    assert done.count == 2 and engine.head == head + 4


def test_inserts_overtake_patches_of_large_rows(tmp_path: Path) -> None:
    """Sixteen clients patch rows of a megabyte without a pause; the others' inserts wait for one
    transaction of them at the most, however many patches are waiting."""
    runtime = make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config)
    engine = open_engine(tmp_path / "a.db")
    size = 1_000_000
    apply(engine, *[insert("Note", n, {"text": "x" * size}) for n in range(1, 9)])
    broken: list[BaseException] = []
    writer = Writer(runtime, engine, broken.append, PublicRows(()))
    writer.start()
    answered = [0] * 8
    stop = threading.Event()

    def attack(number: int) -> None:
        local = LocalWriter(runtime)
        while not stop.is_set():
            local.submit_all([update("Note", number + 1, {"text": "y" * size})])
            answered[number] += 1
        local.close()

    threads = [threading.Thread(target=attack, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    local = LocalWriter(runtime)
    while not all(answered):
        stop.wait(0.01)
    passed: list[int] = []
    for number in range(60):
        before = sum(answered)
        assert local.submit(task(number)).seq
        passed.append(sum(answered) - before)
    stop.set()
    for thread in threads:
        thread.join()
    local.close()
    writer.stop()
    engine.close()
    assert broken == []
    # In the order of arrival each insert would wait for about eight patches.
    assert sorted(passed)[len(passed) // 2] <= 2


def test_a_patch_of_a_large_row_waits_for_one_turn_of_a_long_batch(tmp_path: Path) -> None:
    runtime = make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config)
    engine = open_engine(tmp_path / "a.db")
    size = 1_000_000
    apply(engine, *[insert("Note", n, {"text": "x" * size}) for n in (1, 2)])
    broken: list[BaseException] = []
    writer = Writer(runtime, engine, broken.append, PublicRows(()))
    writer.start()
    head = writer.head
    patches = [update("Note", 1, {"text": f"{n:02}" + "y" * size}) for n in range(60)]

    def attack() -> None:
        batch = LocalWriter(runtime)
        batch.submit_all(patches)
        batch.close()

    thread = threading.Thread(target=attack)
    thread.start()
    local = LocalWriter(runtime)
    wait_until("the batch is being carried out", lambda: writer.head > head)
    before = writer.head
    seq = local.submit(update("Note", 2, {"text": "z" * size})).seq
    thread.join()
    local.close()
    writer.stop()
    done = engine.head - head
    engine.close()
    assert broken == [] and done == len(patches) + 1
    # In the order of arrival the patch would wait for the whole batch.
    assert seq - before < 15


def test_large_rows_rest_as_long_as_their_last_turn_took_while_others_write(
    tmp_path: Path,
) -> None:
    runtime = make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config)
    clock = ManualClock()
    budgets: list[int | None] = []

    class Costly:
        """An engine whose transactions take 0.1 s, each with one large row among small ones."""

        head = 0

        def apply(
            self, requests: Sequence[WriteRequest], *, large_bytes: int | None = None
        ) -> BatchResult:
            budgets.append(large_bytes)
            clock.advance(0.1)
            replies = [WriteReply(request.id, seq=1) for request in requests]
            return BatchResult(replies, None, 0.1, large_bytes=1_000_000, large_rows=1)

    writer = Writer(
        runtime, cast(WriteEngine, Costly()), lambda _: None, PublicRows(()), clock
    )
    writer.start()
    local = LocalWriter(runtime)
    for rest_s in (0.0, 0.0, 0.2):
        clock.advance(rest_s)
        local.submit_all([task(1), task(2)])
        wait_until("the turn has ended", lambda: writer.depth == 0)
    local.close()
    writer.stop()
    assert budgets[:3] == [limits.BATCH_LARGE_BYTES, 0, limits.BATCH_LARGE_BYTES]
