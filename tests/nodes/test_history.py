"""The judge of recorded trials finds each kind of broken promise, and nothing in a sound record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.nodes.editors import problems_of_text
from tests.nodes.history import Change, Op, Outcome, Stream, longest_wait, problems_of
from tests.nodes.shards import Save, problems_of_saves

COUNTER = "c"


def note(seq: int, row: str, rank: int, owner: str = "ann", shared: bool = True) -> Change:
    data = {"id": row, "title": "t", "ownerId": owner, "rank": rank, "shared": shared}
    return Change(seq, "Note", row, "insert" if rank == 1 else "update", data)


def tick(seq: int, row: str, n: int, sender: str = "ann") -> Change:
    return Change(seq, "Tick", row, "insert", {"id": row, "n": n, "sender": sender})


class Record:
    """A sound record: a note that is shared, hidden and deleted, a tick, and a counter."""

    def __init__(self) -> None:
        self.log = [
            note(11, "a", 1), tick(12, "t", 2), note(13, "a", 3, shared=False),
            tick(14, COUNTER, 1, "ann 4"), tick(15, COUNTER, 2, "bob 1"),
            Change(16, "Note", "a", "delete", None), tick(17, "u", 6),
        ]
        self.ops = [
            Op("ann", 1, "insert", "Note", "1", "a", "acknowledged", 11),
            Op("ann", 2, "insert", "Tick", "2", "t", "acknowledged", 12),
            Op("ann", 3, "update", "Note", "3", "a", "acknowledged", 13),
            Op("ann", 4, "update", "Tick", "4", COUNTER, "acknowledged", 14),
            Op("ann", 5, "delete", "Note", "5", "a", "acknowledged", 16),
            Op("ann", 6, "insert", "Tick", "6", None, "unknown"),
            Op("bob", 1, "update", "Tick", "1", COUNTER, "acknowledged", 15),
            Op("bob", 2, "update", "Tick", "2", COUNTER, "refused"),
        ]
        hidden = Change(13, "Note", "a", "delete", None)
        first, second, _, *more, deleted, last = self.log
        self.ann = Stream("ann's", "ann", list(self.log), cursor=17)
        self.eve = Stream("eve's", "eve", [first, second, hidden, *more, last], cursor=17)
        del deleted

    def problems(self) -> list[str]:
        return problems_of(self.ops, self.log, [self.ann, self.eve], COUNTER)


def test_sound_record_has_no_problem() -> None:
    assert Record().problems() == []


def test_stream_may_have_a_snapshot_in_place_of_events() -> None:
    record = Record()
    record.ann.snapshots = [(12, 15)]
    record.ann.events = [event for event in record.log if not 12 < event.seq <= 15]
    assert record.problems() == []


def test_pull_may_leave_out_an_image_that_a_later_event_hides() -> None:
    record = Record()
    record.eve.events.pop(0)
    assert record.problems() == []


def test_what_a_failover_has_lost_is_nobodys_fault() -> None:
    record = Record()
    lost = record.log.pop(1)
    voids = [(11, 13)]
    problems = problems_of(record.ops, record.log, [record.ann], COUNTER, voids)
    assert problems == [f"ann's: saw {lost}, which is lost, and took no snapshot"]
    record.ann.snapshots = [(12, 13)]
    assert problems_of(record.ops, record.log, [record.ann], COUNTER, voids) == []


def drop(change: int) -> Callable[[Record], Any]:
    return lambda record: record.log.pop(change)


@pytest.mark.parametrize(("break_it", "word"), [
    (drop(1), "lost"),
    (drop(5), "lost"),
    (lambda r: r.log.append(tick(18, "t2", 2)), "2 times"),
    (lambda r: r.log.append(tick(18, "x", 99)), "nobody sent"),
    (lambda r: r.log.append(tick(18, COUNTER, 3, "bob 2")), "refused"),
    (lambda r: r.log.append(tick(18, "u2", 6)), "unknown"),
    (lambda r: r.log.reverse(), "log: seq"),
    (lambda r: r.log.__setitem__(4, tick(15, COUNTER, 1, "bob 1")), "an update was lost"),
    (lambda r: setattr(r.ops[1], "seq", 99), "told"),
    (lambda r: setattr(r.ops[0], "number", 4), "order"),
    (lambda r: r.ann.events.pop(1), "ann's: lacks"),
    (lambda r: r.ann.events.pop(5), "ann's: lacks"),
    (lambda r: r.eve.events.pop(2), "eve's: lacks"),
    (lambda r: r.eve.events.append(r.eve.events[-1]), "eve's: seq 17 after 17"),
    (lambda r: r.eve.events.__setitem__(2, r.log[2]), "was shown"),
    (lambda r: r.eve.snapshot_rows.append(r.log[2]), "was shown"),
    (lambda r: r.eve.events.__setitem__(1, tick(12, "t", 3)), "another image"),
    (lambda r: r.eve.events.__setitem__(1, tick(10, "t", 2)), "not in the log"),
    (lambda r: r.log.__setitem__(0, replace(note(11, "a", 1, shared=False), kind="insert")),
     "never might read"),
])
def test_each_broken_promise_is_found(break_it: Callable[[Record], Any], word: str) -> None:
    record = Record()
    break_it(record)
    assert any(word in line for line in record.problems()), record.problems()


def test_longest_wait_counts_acknowledged_writes_of_the_time() -> None:
    def op(outcome: Outcome, sent_s: float, answered_s: float, *nodes: int) -> Op:
        return Op("ann", 1, "insert", "Tick", "1", outcome=outcome, sent_s=sent_s,
                  answered_s=answered_s, nodes=set(nodes))

    early, long, short = (
        op("acknowledged", 0, 9, 1), op("acknowledged", 5, 13, 0, 1), op("acknowledged", 11, 14, 1)
    )
    ops = [early, op("unknown", 0, 0, 1), op("refused", 10, 30, 1), long, short]
    assert longest_wait(ops, 10.0) is long
    assert longest_wait(ops, 10.0, but=0) is short
    assert longest_wait(ops, 10.0, but=1) is None


@pytest.mark.parametrize(("text", "problem"), [
    ("0:1;1:1;", ""),
    ("1:1;0:1;1:2;", ""),  # 1:2 was made, and its answer got lost
    ("1:1;", "0:1 is not in the text"),
    ("0:1;1:1;0:1;", "0:1 is in the text 2 times"),
    ("0:1;1:1;7:7;", "nobody made the mark 7:7"),
])
def test_each_wrong_text_of_a_document_is_found(text: str, problem: str) -> None:
    found = problems_of_text(text, ["0:1", "1:1"], {"0:1", "1:1", "1:2"})
    assert found == [] if not problem else problem in found[0]


@pytest.mark.parametrize(("saves", "problem"), [
    ([Save("a", 1, "x", 1), Save("b", 5, "z", 1), Save("a", 1, "x", 3), Save("a", 2, "y", 4)], ""),
    ([Save("a", 2, "x", 1), Save("a", 1, "y", 2)], "after"),
    ([Save("a", 1, "x", 2), Save("a", 2, "y", 2)], "does not continue"),
    ([Save("a", 1, "x", 1), Save("a", 1, "y", 2)], "second run"),
    ([Save("a", 1, "x", 1), Save("a", 2, "y", 2), Save("a", 2, "x", 3)], "earlier generation"),
])
def test_each_state_of_a_shard_that_was_stored_wrongly_is_found(
    saves: list[Save], problem: str
) -> None:
    found = problems_of_saves(saves)
    assert found == [] if not problem else any(problem in line for line in found)
