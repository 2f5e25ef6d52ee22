"""Turns on the writer's connection: batches, and steps of maintenance between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pylon.clock import ManualClock
from pylon.errors import SchemaRefused, WriterUnavailable
from pylon.storage.records import IndexSpec, LogRetention
from pylon.storage.sqlite.turn_lock import TurnLock
from tests.support.storage import apply, open_engine, open_reader, task


def in_thread(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_batch_waits_for_one_step_at_most() -> None:
    turns, order = TurnLock(), []
    is_in_step, may_end = threading.Event(), threading.Event()

    def maintain() -> None:
        for number in range(3):
            with turns.behind(60):
                order.append(f"step {number}")
                is_in_step.set()
                may_end.wait(60)

    def write() -> None:
        turns.acquire()
        order.append("batch")
        turns.release()

    steps = in_thread(maintain)
    is_in_step.wait(60)
    batch = in_thread(write)
    while not turns._is_wanted:
        pass
    may_end.set()
    batch.join(60)
    steps.join(60)
    assert order == ["step 0", "batch", "step 1", "step 2"]


def test_a_step_that_gets_no_turn_in_time_is_refused() -> None:
    turns = TurnLock()
    turns.acquire()
    with pytest.raises(WriterUnavailable), turns.behind(0.01):
        pass
    turns.release()
    with turns.behind(60):
        other: list[BaseException] = []

        def wait() -> None:
            try:
                with turns.behind(0.01):
                    pass
            except WriterUnavailable as ex:
                other.append(ex)

        in_thread(wait).join(60)
        assert len(other) == 1


def test_a_step_that_fails_changes_nothing_and_the_next_batch_goes_on(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.db", ManualClock())
    apply(engine, task(1))
    with pytest.raises(SchemaRefused):
        engine.maintenance.put_indexes([IndexSpec("Task", "by_nothing", ("nothing",), False)])
    assert [reply.seq for reply in apply(engine, task(2))] == [2]
    engine.close()


def test_steps_and_batches_of_many_threads_interleave(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.db", ManualClock())
    for first in range(0, 300, 30):
        apply(engine, *[task(n) for n in range(first, first + 30)])
    dropped: list[int] = []

    def prune() -> None:
        while count := engine.maintenance.prune_log(LogRetention(50, 2**40, 7)):
            dropped.append(count)

    pruners = [in_thread(prune) for _ in range(2)]
    for number in range(300, 340):
        assert apply(engine, task(number))[0].seq == number + 1
    for pruner in pruners:
        pruner.join(60)
    prune()
    reader = open_reader(tmp_path / "a.db")
    assert reader.head_seq() == 340 and sum(dropped) == 340 - 50
    assert [event.seq for event in reader.events_after(0, 1_000)] == list(range(291, 341))
    reader.close()
    engine.close()
