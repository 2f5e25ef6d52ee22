"""Any sequence of commits, captures, checkpoints, uploads, crashes and ends: what is restored for a
time or a seq is the history up to it, and nothing that was uploaded is lost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import apsw
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pylon.storage.shipping.catalogue import read_catalogue
from pylon.storage.shipping.target import RestorePoint
from tests.support.examples import count_examples
from tests.support.shipping import ShippedDatabase


class ShippingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pylon-test-"))
        self.live = ShippedDatabase(self.folder)
        self.reader: apsw.Connection | None = None
        self.first_seq = 0  # of the first snapshot of the newest generation

    def teardown(self) -> None:
        self._end_reader()
        if self.live.writer is not None:
            self.live.crash()
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        self.live.start()
        self.live.snapshot()

    @rule(count=st.integers(1, 4), rows=st.sampled_from([1, 1, 40]))
    def commit(self, count: int, rows: int) -> None:
        for _ in range(count):
            self.live.clock.advance(0.25)
            self.live.commit(rows)

    @rule()
    def capture(self) -> None:
        self.live.capture_now()

    @rule()
    def checkpoint(self) -> None:
        self.live.checkpoints.checkpoint("passive")

    @rule()
    def flusher_round(self) -> None:
        self.live.clock.advance(6)
        self.live.checkpoints.run_round()

    @rule()
    def restart_wal(self) -> None:
        if not self.live.restart_wal():
            assert self.reader is not None, "nobody holds the WAL"

    @rule()
    def begin_reader(self) -> None:
        if self.reader is None:
            self.reader = apsw.Connection(
                str(self.live.path), flags=apsw.SQLITE_OPEN_READONLY
            )
            self.reader.execute("BEGIN; SELECT count(*) FROM a").fetchall()

    @rule()
    def end_reader(self) -> None:
        self._end_reader()

    @rule(count=st.integers(1, 3))
    def upload(self, count: int) -> None:
        self.live.upload(count)

    @rule()
    def snapshot(self) -> None:
        self.live.snapshot()

    @rule()
    def foreign_checkpoint(self) -> None:
        """Another program, which checkpoints as SQLite does by itself."""
        other = apsw.Connection(str(self.live.path))
        other.execute("SELECT count(*) FROM a").fetchall()
        other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        other.close()

    @rule()
    def crash(self) -> None:
        self._end_reader()
        self.live.crash()
        self.live.start()

    @rule()
    def stop_and_start(self) -> None:
        self._end_reader()
        self.live.stop()
        self.live.start()

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """What the archive has must be the history up to the moment that is asked for."""
        self.live.capture_now()
        self.live.upload()
        history = self.live.history
        assert len(read_catalogue(self.live.archive)) == 1, "a generation began without need"
        assert self.live.restore(RestorePoint())[1] == len(history)
        if not history:
            return
        commit = data.draw(st.sampled_from(history))
        by_time = [each.seq for each in history if each.at_ms <= commit.at_ms]
        assert self.live.restore(RestorePoint(at_ms=commit.at_ms))[1] == by_time[-1]
        assert self.live.restore(RestorePoint(seq=commit.seq))[1] == commit.seq

    @invariant()
    def chain_is_whole(self) -> None:
        if self.live.writer is not None:
            assert not self.live.capture.state.broken

    def _end_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None


ShippingMachine.TestCase.settings = settings(
    max_examples=count_examples(40), stateful_step_count=30, deadline=None
)
TestShipping = ShippingMachine.TestCase
