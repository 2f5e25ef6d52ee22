"""pylon.changelog.notes and workers.hub.addresses: windows, bounds, counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pylon.changelog.notes import CursorNotes, note_key
from pylon.clock import ManualClock

WINDOW_S = 60.0


def test_the_smallest_cursor_of_a_key_counts() -> None:
    notes = CursorNotes(ManualClock())
    for cursor in (30, 10, 20):
        notes.put("s:a", cursor)
    assert notes.get("s:a") == 10
    assert notes.get("s:b") is None


def test_a_note_lives_for_a_window_and_at_most_a_quarter_longer() -> None:
    clock = ManualClock()
    notes = CursorNotes(clock, WINDOW_S)
    clock.advance(WINDOW_S / 4 - 1)
    notes.put("k", 5)
    clock.advance(WINDOW_S)
    assert notes.get("k") == 5
    clock.advance(1)
    assert notes.get("k") is None


def test_newer_notes_take_over_as_the_older_go() -> None:
    clock = ManualClock()
    notes = CursorNotes(clock, WINDOW_S)
    notes.put("k", 5)
    clock.advance(WINDOW_S / 2)
    notes.put("k", 50)
    clock.advance(WINDOW_S / 2)
    assert notes.get("k") == 5
    clock.advance(WINDOW_S / 4)
    assert notes.get("k") == 50


def test_one_who_comes_and_goes_is_sent_little_more_than_a_window() -> None:
    """A pull a second for ten windows: the note is never older than a window and a quarter."""
    clock = ManualClock()
    notes = CursorNotes(clock, WINDOW_S)
    for second in range(1, int(10 * WINDOW_S)):
        clock.advance(1)
        notes.put("k", second)
        found = notes.get("k")
        assert found is not None
        assert found <= max(1, second - WINDOW_S)
        assert found >= second - 1.25 * WINDOW_S


def test_long_silence_forgets_everything() -> None:
    clock = ManualClock()
    notes = CursorNotes(clock, WINDOW_S)
    notes.put("k", 5)
    clock.advance(2 * WINDOW_S)
    assert notes.get("k") is None
    assert len(notes) == 0
    notes.put("k", 6)
    clock.advance(WINDOW_S)
    assert notes.get("k") == 6


def test_a_full_bucket_rotates_early() -> None:
    notes = CursorNotes(ManualClock(), WINDOW_S, max_keys=3)
    for number in range(7):
        notes.put(f"k{number}", number)
    assert len(notes) <= 6
    assert notes.get("k0") is None
    assert [notes.get(f"k{number}") for number in (3, 4, 5, 6)] == [3, 4, 5, 6]


def test_buckets_together_are_bounded() -> None:
    clock = ManualClock()
    notes = CursorNotes(clock, WINDOW_S, max_keys=3)
    for number in range(12):
        notes.put(f"k{number}", number)
        notes.put("all", number)
        clock.advance(WINDOW_S / 5)
        assert len(notes) <= 6
        assert notes.get(f"k{number}") == number


@given(st.lists(st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(1, 100)),
    st.tuples(st.just("wait"), st.just(""), st.integers(1, 90)),
), max_size=40))
def test_notes_against_a_model(steps: list[tuple[str, str, int]]) -> None:
    """A fresh note is never forgotten, one older than a window and a quarter never remembered,
    and the answer is never above the smallest fresh note."""
    clock = ManualClock()
    notes = CursorNotes(clock, WINDOW_S)
    told: list[tuple[float, str, int]] = []
    for what, key, number in steps:
        if what == "wait":
            clock.advance(number)
        else:
            notes.put(key, number)
            told.append((clock.monotonic_s(), key, number))
        for asked in "abc":
            ages = [(clock.monotonic_s() - at, c) for at, k, c in told if k == asked]
            found = notes.get(asked)
            fresh = [c for age, c in ages if age < WINDOW_S]
            possible = [c for age, c in ages if age < 1.25 * WINDOW_S]
            if fresh:
                assert found is not None
                assert found <= min(fresh)
            assert found is None or found in possible


def test_keys() -> None:
    assert note_key("abc", "10.0.0.1") == "s:abc"
    assert note_key(None, "10.0.0.1") == "ip:10.0.0.1"
