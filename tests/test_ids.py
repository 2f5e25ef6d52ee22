"""pylon.ids: row ids sort by creation and are unique across processes."""

from __future__ import annotations

import pytest

from pylon.clock import ManualClock, SeededRandom
from pylon.ids import RowIds, is_row_id


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


def test_a_forked_process_begins_another_counter() -> None:
    ids = RowIds(ManualClock(), SeededRandom(1))
    before = {ids.new()[32:] for _ in range(50)}
    ids.begin()
    assert {ids.new()[32:] for _ in range(50)} & before == set()


@pytest.mark.parametrize("text", ["", "a" * 39, "A" * 40, "g" * 40, "a" * 41, 5, None, "é" * 40])
def test_what_is_not_a_row_id(text: object) -> None:
    assert not is_row_id(text)
