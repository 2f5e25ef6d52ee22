"""Errors, ids, clocks and events: what every process shares."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import errors
from pylon.bus import messages
from pylon.clock import CpuTimeClock, ManualClock, SeededRandom, SystemClock
from pylon.errors.wire import WireError
from pylon.ids import RowIds, is_row_id
from pylon.storage.events import ChangeBatch, ChangeEvent


def subclasses(cls: type[errors.PylonError]) -> list[type[errors.PylonError]]:
    return [cls, *(s for c in cls.__subclasses__() for s in subclasses(c))]


CODED = [cls for cls in subclasses(errors.PylonError)[1:] if "code" in cls.__dict__]


@pytest.mark.parametrize("cls", CODED)
def test_every_error_survives_the_bus(cls: type[errors.PylonError]) -> None:
    if cls.__init__ is not errors.PylonError.__init__:
        assert issubclass(cls, errors.StartRefused), "only start-up errors never travel"
        return
    error = cls("what happened", hint="how to mend it", field="title")
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(WireError.of(error)))
    back = WireError(*wire).to_exception()
    assert type(back) is cls
    assert back.body() == error.body()
    assert 400 <= cls.status < 600


def test_two_errors_cannot_share_a_code() -> None:
    with pytest.raises(TypeError, match="NOT_FOUND"):
        type("Again", (errors.PylonError,), {"code": "NOT_FOUND", "__module__": "x"})


def test_row_ids_sort_by_creation_even_when_the_clock_goes_back() -> None:
    clock = ManualClock()
    ids = RowIds(clock, SeededRandom(1))
    made = [ids.new() for _ in range(3)]
    clock.advance(1)
    made.append(ids.new())
    clock.jump(-3600)
    made.append(ids.new())
    assert made == sorted(made)
    assert len(set(made)) == 5
    assert all(is_row_id(i) for i in made)


def test_two_processes_do_not_make_the_same_ids() -> None:
    clock = ManualClock()
    one, two = RowIds(clock, SeededRandom(1)), RowIds(clock, SeededRandom(2))
    assert {one.new() for _ in range(50)} & {two.new() for _ in range(50)} == set()


@pytest.mark.parametrize("text", ["", "a" * 39, "A" * 40, "g" * 40, "a" * 41, 5, None, "é" * 40])
def test_what_is_not_a_row_id(text: object) -> None:
    assert not is_row_id(text)


def test_the_system_clock_runs() -> None:
    clock = SystemClock()
    before = clock.monotonic_s()
    assert clock.monotonic_s() >= before
    assert clock.wall_ns() > 1_700_000_000 * 10**9


def test_the_work_clock_counts_work_and_hardly_waiting() -> None:
    clock, wall = CpuTimeClock(), SystemClock()
    started_s, wall_started_s = clock.monotonic_s(), wall.monotonic_s()
    threading.Event().wait(0.1)
    waited_s = clock.monotonic_s() - started_s
    assert 0 < waited_s < (wall.monotonic_s() - wall_started_s) / 2
    while clock.monotonic_s() - started_s < waited_s + 0.01:
        assert wall.monotonic_s() - wall_started_s < 10


@given(st.text(), st.text(min_size=1), st.sampled_from(["insert", "update", "delete"]))
def test_an_event_is_one_line_of_json_whatever_its_names(
    entity: str, row_id: str, kind: str
) -> None:
    row = json.dumps({"id": row_id}).encode()
    event = ChangeEvent(
        7, entity, row_id, kind, None if kind == "delete" else row, row, 1_700_000_000  # type: ignore[arg-type]
    )
    batch = messages.change_batch.decode(messages.encode(ChangeBatch(6, [event])))
    assert batch.events == [event]
    text = event.wire()
    assert b"\n" not in text
    shown = {} if kind == "delete" else {"data": {"id": row_id}}
    assert json.loads(text) == {
        "seq": 7, "entity": entity, "row_id": row_id, "kind": kind, **shown,
        "timestamp": "1700000000Z",
    }
