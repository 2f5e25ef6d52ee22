"""The size of the change log, from noted commits and from the events of others."""

from __future__ import annotations

from pylon.storage.core import log_size
from pylon.storage.core.log_size import EVENT_BYTES, LogSize
from pylon.storage.events import ChangeEvent


class Log:
    """A change log: sizes of images by seq. `reads`: the seqs after which it was read."""

    def __init__(self) -> None:
        self.size_by_seq: dict[int, int] = {}
        self.reads: list[int] = []
        self.head = 0

    def read(self, seq: int, limit: int) -> list[tuple[int, int]]:
        self.reads.append(seq)
        return [each for each in sorted(self.size_by_seq.items()) if each[0] > seq][:limit]

    def commit(self, *sizes: int) -> tuple[int, list[ChangeEvent]]:
        """Append events with images of these sizes; return what the writer notes."""
        previous, self.head = self.head, self.head + len(sizes)
        events = [
            ChangeEvent(seq, "A", "id", "update", b"x" * (size - 1), b"y", 0)
            for seq, size in enumerate(sizes, previous + 1)
        ]
        self.size_by_seq.update({e.seq: s for e, s in zip(events, sizes, strict=True)})
        return previous, events

    def size_bytes(self, oldest: int = 0) -> int:
        return sum(s + EVENT_BYTES for seq, s in self.size_by_seq.items() if seq >= oldest)


def test_noted_commits_are_not_read_from_the_log() -> None:
    log, size = Log(), LogSize()
    size.note(*log.commit(10, 20))
    size.note(*log.commit(30))
    assert size.count(1, log.head, log.read) == log.size_bytes()
    assert log.reads == []


def test_events_of_earlier_runs_and_other_programs_are_read() -> None:
    log, size = Log(), LogSize()
    log.commit(10, 20)  # before this run
    size.note(*log.commit(30))
    assert size.count(1, log.head, log.read) == log.size_bytes()
    size.note(*log.commit(40))
    log.commit(50)  # another program
    size.note(*log.commit(60))
    assert size.count(1, log.head, log.read) == log.size_bytes()
    assert log.reads == [0, 4]
    size.note(*log.commit(70))
    assert size.count(1, log.head, log.read) == log.size_bytes()
    assert log.reads == [0, 4]


def test_commit_that_was_read_before_its_note_counts_once() -> None:
    log, size = Log(), LogSize()
    late = log.commit(10)
    assert size.count(1, log.head, log.read) == log.size_bytes()
    size.note(*late)
    size.note(*log.commit(20))
    assert size.count(1, log.head, log.read) == log.size_bytes()
    assert log.reads == [0]


def test_dropped_notes_are_read() -> None:
    log, size = Log(), LogSize()
    for _ in range(log_size._NOTES + 10):
        size.note(*log.commit(5))
    assert size.count(1, log.head, log.read) == log.size_bytes()


def test_pruned_commits_are_not_counted_and_name_the_seq_to_prune_to() -> None:
    log, size = Log(), LogSize()
    for _ in range(10):
        size.note(*log.commit(*[1_000] * 50))  # each is a page
    assert size.count(1, log.head, log.read) == log.size_bytes()
    above = size.seq_above(log.size_bytes() // 2)
    assert 250 <= above <= 300 and size.seq_above(log.size_bytes()) == 0
    left = size.count(251, log.head, log.read)
    assert 0 <= left - log.size_bytes(251) <= 50 * (1_000 + EVENT_BYTES)
