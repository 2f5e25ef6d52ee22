"""pylon.changelog.hints and workers.hub.addresses: windows, bounds, counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pylon.changelog.hints import CursorHints, hint_key
from pylon.clock import ManualClock

WINDOW_S = 60.0


def test_the_smallest_cursor_of_a_key_counts() -> None:
    hints = CursorHints(ManualClock())
    for cursor in (30, 10, 20):
        hints.put(1, cursor)
    assert hints.get(1) == 10
    assert hints.get(2) is None


def test_a_note_lives_for_a_window_and_at_most_a_quarter_longer() -> None:
    clock = ManualClock()
    hints = CursorHints(clock, WINDOW_S)
    clock.advance(WINDOW_S / 4 - 1)
    hints.put(1, 5)
    clock.advance(WINDOW_S)
    assert hints.get(1) == 5
    clock.advance(1)
    assert hints.get(1) is None


def test_newer_notes_take_over_as_the_older_go() -> None:
    clock = ManualClock()
    hints = CursorHints(clock, WINDOW_S)
    hints.put(1, 5)
    clock.advance(WINDOW_S / 2)
    hints.put(1, 50)
    clock.advance(WINDOW_S / 2)
    assert hints.get(1) == 5
    clock.advance(WINDOW_S / 4)
    assert hints.get(1) == 50


def test_one_who_comes_and_goes_is_sent_little_more_than_a_window() -> None:
    """A pull a second for ten windows: the hint is never older than a window and a quarter."""
    clock = ManualClock()
    hints = CursorHints(clock, WINDOW_S)
    for second in range(1, int(10 * WINDOW_S)):
        clock.advance(1)
        hints.put(1, second)
        found = hints.get(1)
        assert found is not None
        assert found <= max(1, second - WINDOW_S)
        assert found >= second - 1.25 * WINDOW_S


def test_long_silence_forgets_everything() -> None:
    clock = ManualClock()
    hints = CursorHints(clock, WINDOW_S)
    hints.put(1, 5)
    clock.advance(2 * WINDOW_S)
    assert hints.get(1) is None
    assert len(hints) == 0
    hints.put(1, 6)
    clock.advance(WINDOW_S)
    assert hints.get(1) == 6


def test_a_full_bucket_rotates_early() -> None:
    hints = CursorHints(ManualClock(), WINDOW_S, max_keys=3)
    for number in range(7):
        hints.put(number + 1, number)
    assert len(hints) <= 6
    assert hints.get(1) is None
    assert [hints.get(number + 1) for number in (3, 4, 5, 6)] == [3, 4, 5, 6]


def test_buckets_together_are_bounded() -> None:
    clock = ManualClock()
    hints = CursorHints(clock, WINDOW_S, max_keys=3)
    for number in range(12):
        hints.put(number + 1, number)
        hints.put(99, number)
        clock.advance(WINDOW_S / 5)
        assert len(hints) <= 6
        assert hints.get(number + 1) == number


@given(st.lists(st.one_of(
    st.tuples(st.just("put"), st.sampled_from([1, 2, 3]), st.integers(1, 100),
              st.integers(0, 90)),
    st.tuples(st.just("wait"), st.just(0), st.integers(1, 90), st.just(0)),
), max_size=40))
def test_notes_against_a_model(steps: list[tuple[str, int, int, int]]) -> None:
    """A fresh hint is never forgotten, one older than a window and a half never remembered,
    and the answer is never above the smallest fresh hint."""
    clock = ManualClock()
    hints = CursorHints(clock, WINDOW_S)
    told: list[tuple[float, int, int]] = []
    for what, key, number, age_s in steps:
        if what == "wait":
            clock.advance(number)
        else:
            hints.put(key, number, age_s)
            told.append((clock.monotonic_s() - age_s, key, number))
        for asked in (1, 2, 3):
            ages = [(clock.monotonic_s() - at, c) for at, k, c in told if k == asked]
            found = hints.get(asked)
            fresh = [c for age, c in ages if age < WINDOW_S]
            possible = [c for age, c in ages if age < 1.5 * WINDOW_S]
            if fresh:
                assert found is not None
                assert found <= min(fresh)
            assert found is None or found in possible


def test_notes_that_were_dropped_are_said_to_be_missing_for_a_window() -> None:
    clock = ManualClock()
    hints = CursorHints(clock, WINDOW_S, max_keys=2)
    for key in range(1, 6):
        hints.put(key, 1)
    assert hints.get(1) is None
    assert not hints.is_complete
    clock.advance(1.25 * WINDOW_S)
    assert hints.is_complete


def test_keys_tell_sessions_and_addresses_apart() -> None:
    assert hint_key("abc", "10.0.0.1") == hint_key("abc", "10.0.0.2") != 0
    assert hint_key(None, "10.0.0.1") != hint_key(None, "10.0.0.2")
    assert hint_key("10.0.0.1", "") != hint_key(None, "10.0.0.1")
