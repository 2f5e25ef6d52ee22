"""pylon.changelog.hint_journal and marks: hints outlive workers; torn records, rings, boots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.changelog.hint_journal import (
    INCOMPLETE,
    NO_KEY,
    Hint,
    HintReader,
    HintWriter,
    make_journal,
    read_journal,
)
from pylon.changelog.hints import CursorHints
from pylon.changelog.marks import PERIOD_S, HeadMarks, Mark, MarkReader, window_cursor
from pylon.clock import ManualClock
from tests.support.hint_server import die

CAPACITY = 8
WORKERS = 2


class Journal:
    """One journal of small rings, its clock, and what reads and writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hints"
        self.clock = ManualClock()

    def writer(self) -> HintWriter:
        return HintWriter(self.path, self.clock, capacity=CAPACITY)

    def reader(self) -> HintReader:
        return HintReader(
            self.path, self.clock, CursorHints(self.clock), capacity=CAPACITY
        )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_a_reader_has_every_hint_of_every_writer(journal: Journal) -> None:
    early = journal.reader()
    early.refresh()
    first, second = journal.writer(), journal.writer()
    for number in range(1, 5):
        first.put(number, 10 * number)
        second.put(10 + number, number)
        early.refresh()
    late = journal.reader()
    late.refresh()
    for reader in (early, late):
        assert [reader.hints.get(n) for n in range(1, 5)] == [10, 20, 30, 40]
        assert [reader.hints.get(10 + n) for n in range(1, 5)] == [1, 2, 3, 4]
        assert reader.hints.is_complete


@pytest.mark.usefixtures("processes")
def test_a_writer_s_slot_is_free_when_its_process_dies(journal: Journal) -> None:
    """And its successor continues after its hints."""
    text = (
        "import sys, time\nfrom pathlib import Path\n"
        "from pylon.clock import SystemClock\n"
        "from pylon.changelog.hint_journal import HintWriter\n"
        f"w = HintWriter(Path(sys.argv[1]), SystemClock(), slot=1, "
        f"capacity={CAPACITY})\n"
        "w.put(1, 5)\nprint('put', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(journal.path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"put\n"
    with pytest.raises(BlockingIOError):
        HintWriter(journal.path, journal.clock, slot=1, capacity=CAPACITY)
    process.kill()
    process.wait()
    process.stdout.close()
    HintWriter(journal.path, journal.clock, slot=1, capacity=CAPACITY).put(2, 6)
    found = read_journal(journal.path, 0, CAPACITY)
    assert found is not None
    assert {hint.key: hint.cursor for hint in found[1] if hint.key} == {1: 5, 2: 6}


def test_a_torn_record_is_not_read_and_not_in_the_way(journal: Journal) -> None:
    reader, writer = journal.reader(), journal.writer()
    writer.put(1, 5)
    reader.refresh()
    writer.put(2, 6)
    with journal.path.open("r+b") as file:  # as if the writer had died within its write
        file.seek(0, os.SEEK_END)
        file.seek(file.tell() - 20)
        file.write(b"\0" * 20)
    reader.refresh()
    assert reader.hints.get(2) is None
    assert reader.hints.is_complete
    die(writer)
    journal.writer().put(3, 7)
    reader.refresh()
    assert (reader.hints.get(1), reader.hints.get(3)) == (5, 7)
    assert not reader.hints.is_complete


def test_a_writer_that_died_is_noticed_at_once_and_one_that_ended_is_not(
    journal: Journal
) -> None:
    """Nobody knows which pulls it had not written yet."""
    reader, first, second = journal.reader(), journal.writer(), journal.writer()
    reader.refresh()
    first.close()
    reader.refresh()
    assert reader.hints.is_complete
    die(second)
    reader.refresh()
    assert not reader.hints.is_complete
    journal.clock.advance(100)
    reader.refresh()
    assert reader.hints.is_complete
    late = journal.reader()
    late.refresh()  # nobody has taken the slot since
    assert not late.hints.is_complete
    found = read_journal(journal.path, 7, CAPACITY)
    assert found == ("", [Hint(NO_KEY, INCOMPLETE, 7)])


def test_a_ring_that_goes_round_says_that_hints_are_missing(journal: Journal) -> None:
    reader, writer = journal.reader(), journal.writer()
    reader.refresh()
    for key in range(1, CAPACITY):  # the first record says that the writer begins
        writer.put(key, key)
    reader.refresh()
    assert reader.hints.is_complete
    for key in range(1, CAPACITY + 2):  # more than the reader has looked at
        writer.put(100 + key, key)
    reader.refresh()
    assert not reader.hints.is_complete
    late = journal.reader()
    late.refresh()
    assert not late.hints.is_complete
    for one in (reader, late):
        assert [one.hints.get(100 + key) for key in range(2, CAPACITY + 2)] == [*range(2, 10)]
    journal.clock.advance(100)
    assert reader.hints.is_complete
    assert late.hints.is_complete


def test_old_hints_of_a_ring_are_not_missed(journal: Journal) -> None:
    writer = journal.writer()
    for key in range(1, CAPACITY + 1):
        writer.put(key, key)
    journal.clock.advance(100)
    writer.put(99, 1)
    late = journal.reader()
    late.refresh()
    assert late.hints.is_complete  # what was overwritten is older than the oldest


def test_carried_hints_and_what_is_missing_reach_the_readers(journal: Journal) -> None:
    journal.clock.advance(1_000)
    now_us = 1_000_000_000
    make_journal(
        journal.path, "boot", [Hint(1, 5, now_us), Hint(2, 6, now_us - 70_000_000)],
        journal.clock, CAPACITY,
    )
    reader = journal.reader()
    reader.refresh()
    assert (reader.hints.get(1), reader.hints.get(2)) == (5, None)
    assert reader.hints.is_complete
    make_journal(
        journal.path, "boot", [Hint(NO_KEY, INCOMPLETE, now_us)], journal.clock, CAPACITY
    )
    assert read_journal(journal.path, 0, CAPACITY) == ("boot", [Hint(NO_KEY, INCOMPLETE, now_us)])
    reader = journal.reader()
    reader.refresh()
    assert not reader.hints.is_complete


def test_too_many_carried_hints_say_that_some_are_missing(journal: Journal) -> None:
    hints = [Hint(key, key, 0) for key in range(1, 2 * CAPACITY)]
    make_journal(journal.path, "boot", hints, journal.clock, CAPACITY)
    reader = journal.reader()
    reader.refresh()
    assert not reader.hints.is_complete
    assert reader.hints.get(CAPACITY - 1) == CAPACITY - 1


def test_no_journal_is_no_hints(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none", 0) is None


# --- Marks -------------------------------------------------------------------------------------


def test_marks_tell_the_head_of_a_window_ago(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.advance(1_000)
    marks = HeadMarks(tmp_path / "m", "boot", clock)
    marks.begin(10, bottom=3)
    for head in range(11, 41):
        clock.advance(1)
        marks.record(head)
    found = MarkReader(tmp_path / "m").read()
    assert [mark.seq for mark in found] == [3, 10, 15, 20, 25, 30, 35, 40]
    assert window_cursor(found, 1_012.0).seq == 20
    assert window_cursor(found, 999.0).seq == 3
    assert window_cursor(found, -1.0).seq == 3


def test_marks_outlive_a_run_and_a_boot_makes_them_younger(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.advance(1_000)
    HeadMarks(tmp_path / "m", "boot", clock).begin(10, bottom=10)
    clock.advance(60)
    clock.jump(-86_400.0)  # the wall clock has no say
    again = HeadMarks(tmp_path / "m", "boot", clock)
    again.begin(20, bottom=0)
    assert list(MarkReader(tmp_path / "m").read()) == [
        Mark(0.0, 10), Mark(1_000.0, 10), Mark(1_060.0, 20)
    ]
    after = ManualClock()
    after.advance(5)
    HeadMarks(tmp_path / "m", "another boot", after).begin(30, bottom=0)
    assert list(MarkReader(tmp_path / "m").read()) == [
        Mark(-1_055.0, 10), Mark(-55.0, 10), Mark(5.0, 20), Mark(5.0, 30)
    ]


def test_marks_of_another_database_are_dropped(tmp_path: Path) -> None:
    clock = ManualClock()
    HeadMarks(tmp_path / "m", "boot", clock).begin(100, bottom=100)
    HeadMarks(tmp_path / "m", "boot", clock).begin(7, bottom=2)
    assert [mark.seq for mark in MarkReader(tmp_path / "m").read()] == [2, 7]


def test_many_marks_fit_into_their_page(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.advance(123_456_789.123456)
    marks = HeadMarks(tmp_path / "m", "f" * 36, clock)
    marks.begin(2**50, bottom=2**50)
    for number in range(200):
        clock.advance(7.654321)
        marks.record(2**50 + number)
    assert (tmp_path / "m").stat().st_size == 4_096
    assert MarkReader(tmp_path / "m").read()[-1].seq == 2**50 + 199


@pytest.mark.parametrize("content", [b"", b"\0" * 4_096, b"00000000 {}", b"x"])
def test_a_broken_file_of_marks_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    assert list(MarkReader(tmp_path / "m").read()) == []
    HeadMarks(tmp_path / "m", "boot", ManualClock()).begin(7, bottom=2)
    assert [mark.seq for mark in MarkReader(tmp_path / "m").read()] == [2, 7]


def test_marks_that_cannot_be_written_stop_nothing_and_are_logged_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock()
    marks = HeadMarks(tmp_path / "none" / "m", "boot", clock)
    marks.begin(7, bottom=2)
    clock.advance(PERIOD_S)
    marks.record(8)
    assert len(marks) == 3
    assert capfd.readouterr().err.count("marks.not_written") == 1
