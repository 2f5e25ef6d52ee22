"""A server in the test's process, as far as cursor hints need one: HTTP workers, hubs and runs.

Used by the tests of `workers.hub.start_cursors`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pylon import limits
from pylon.api.sync.hints import HintPublisher
from pylon.bus.runtime import Runtime
from pylon.changelog.hint_journal import HintReader, HintWriter
from pylon.changelog.hints import CursorHints
from pylon.changelog.marks import MarkReader, marks_path
from pylon.changelog.span import Span
from pylon.clock import ManualClock
from supervisor.hints import PreviousRun, save_hints
from workers.hub.start_cursors import StartCursors

HTTP_WORKERS = 2
CAPACITY = 64


def die(writer: HintWriter) -> None:
    """Close the file of a writer, as the kernel does for a process that is killed."""
    os.close(writer._fd)


@dataclass
class Log:
    """The log of a store; `Reader` and `History` in one."""

    head: int = 0
    pruned_to: int = 0
    void_ranges: list[tuple[int, int]] = field(default_factory=list)

    def head_seq(self) -> int:
        return self.head

    def oldest_seq(self) -> int:
        return min(self.pruned_to, self.head) + 1

    def newest_events(self, limit: int) -> Sequence[Any]:
        return ()

    def void(self) -> list[tuple[int, int]]:
        return list(self.void_ranges)

    def span(self) -> Span:
        return Span(self.head, self.oldest_seq(), list(self.void_ranges))


class LogReader:
    """The part of `Reader` that a start asks."""

    def __init__(self, log: Log) -> None:
        self.head_seq = log.head_seq
        self.oldest_seq = log.oldest_seq
        self.newest_events = log.newest_events
        self.void_ranges = log.void


class Server:
    """One machine with one data directory."""

    def __init__(self, folder: Path, capacity: int = CAPACITY) -> None:
        self.folder = folder
        self.db_path = folder / "app.db"
        self.log = Log()
        self.capacity = capacity
        self.clock = ManualClock()
        self.clock.advance(1_000)
        self.boot = 1
        self.runs = 0
        self.left_behind: dict[str, Any] = {}
        self.tellers: list[HintPublisher] = []
        self.writers: list[HintWriter] = []
        self.readers: list[HintReader] = []
        self.hubs: list[StartCursors] = []
        self.start()

    def start(self) -> None:
        previous_run = PreviousRun(self.db_path, self.left_behind, str(self.boot), self.clock)
        self.runs += 1
        self.runtime = Runtime(self.folder / f"run-{self.runs}")
        self.runtime.dir.mkdir()
        self.left_behind = {"runtime_dir": str(self.runtime.dir)}
        previous_run.begin(LogReader(self.log), self.runtime)  # type: ignore[arg-type]
        self.marks = previous_run.marks
        for number in range(HTTP_WORKERS):
            self.start_http(number)
        for number in range(2):
            self.start_hub(number)

    def stop(self) -> None:
        self._end_workers(HintWriter.close)
        save_hints(self.db_path, self.runtime, str(self.boot), self.clock)
        shutil.rmtree(self.runtime.dir)
        self.left_behind = {}

    def kill(self, *, clears_runtime: bool) -> None:
        self._end_workers(die)
        if clears_runtime:
            shutil.rmtree(self.runtime.dir)

    def _end_workers(self, end: Callable[[HintWriter], None]) -> None:
        for writer in self.writers:
            end(writer)
        for reader in self.readers:
            reader.close()
        self.writers, self.tellers, self.readers, self.hubs = [], [], [], []

    def start_http(self, number: int) -> None:
        if number < len(self.writers):
            die(self.writers.pop(number))
            self.tellers.pop(number)
        writer = HintWriter(
            self.runtime.hints, self.clock, slot=number + 1,
            capacity=self.capacity,
        )
        self.writers.insert(number, writer)
        self.tellers.insert(number, HintPublisher(writer.put, self.clock))

    def start_hub(self, number: int) -> None:
        if number < len(self.readers):
            self.readers.pop(number).close()
            self.hubs.pop(number)
        reader = HintReader(
            self.runtime.hints, self.clock,
            CursorHints(self.clock, limits.HINT_WINDOW_S), capacity=self.capacity,
        )
        reader.refresh()
        self.readers.insert(number, reader)
        self.hubs.insert(number, StartCursors(
            reader, MarkReader(marks_path(self.db_path)), self.log,  # type: ignore[arg-type]
            self.clock,
        ))

    def start_cursor(self, hub: int, key: int) -> int:
        """As `workers.hub.replay` asks."""
        hinted = self.hubs[hub].find_hint(key)
        if hinted is None:
            return self.hubs[hub].find_window(key)
        self.log.span().check(hinted)
        return hinted
