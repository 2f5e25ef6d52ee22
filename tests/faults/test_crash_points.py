"""A crash at each write: the files open, and hold a prefix of the acknowledged history.

A run of batches, checkpoints and a clean end is recorded once for each durability. Then the files
are made as the death of the process would leave them after each operation, with the next write cut
at each sector, and as losses of power might leave them. Promise 1 of design.md.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from pylon.clock import ManualClock
from tests.faults.write_journal import SECTOR_BYTES, WriteJournal, put_files, recorded
from tests.support.examples import count_examples
from tests.support.storage import apply, delete, open_engine, row_id, task, update

Rows = dict[str, str]  # the title of each row, by its id
BATCHES: Final = count_examples(40)
POWER_LOSSES: Final = count_examples(300)
FILE: Final = "app.db"
SLOTS: Final = 12  # rows that the batches change


@dataclass(frozen=True, slots=True)
class Run:
    """A recorded run.

    Attributes:
        ready: the number of operations after which the database was open.
        acknowledged: the number of operations at the end of each batch, and its head.
        history: the rows at each head.
    """

    journal: WriteJournal
    durability: str
    ready: int
    acknowledged: list[tuple[int, int]]
    history: dict[int, Rows]

    def least_head(self, operations: int) -> int:
        """Return the newest head that was acknowledged before so many operations."""
        return max((head for at, head in self.acknowledged if at <= operations), default=0)

    def most_head(self, operations: int) -> int:
        """Return the newest head that may be in the files after so many operations."""
        return min(
            (head for at, head in self.acknowledged if at > operations), default=max(self.history)
        )


def record(folder: Path, durability: str) -> Run:
    """Carry out batches with checkpoints between them, and a clean end."""
    rng = random.Random(7)
    rows: Rows = {}
    history: dict[int, Rows] = {0: {}}
    acknowledged = []
    with recorded(folder) as journal:
        engine = open_engine(folder / FILE, ManualClock(), durability=durability, boot_id="one")
        ready = len(journal.operations)
        for number in range(1, BATCHES + 1):
            slots = rng.sample(range(1, SLOTS + 1), rng.randint(1, 4))
            ops: list[Any] = []
            for slot in slots:
                title = f"{number} {'x' * rng.choice((1, 900, 6_000))}"
                if row_id(slot) not in rows:
                    ops.append(task(slot, title=title))
                    rows[row_id(slot)] = title
                elif rng.random() < 0.2:
                    ops.append(delete("Task", slot))
                    del rows[row_id(slot)]
                else:
                    ops.append(update("Task", slot, {"title": title}))
                    rows[row_id(slot)] = title
            assert all(reply.error is None for reply in apply(engine, *ops))
            acknowledged.append((len(journal.operations), engine.head))
            history[engine.head] = dict(rows)
            if number % 13 == 0:
                engine.maintenance.checkpoint()
            if number % 29 == 0:
                engine.maintenance.flush_all()
        engine.maintenance.end_run()
        engine.close()
    return Run(journal, durability, ready, acknowledged, history)


@pytest.fixture(scope="module", params=["normal", "full"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield record(tmp_path_factory.mktemp("recorded"), request.param)


def head_and_rows(folder: Path) -> tuple[int, Rows]:
    """Open the files as SQLite does after a crash; return the head of the log and the rows."""
    conn = apsw.Connection(str(folder / FILE))
    try:
        assert conn.pragma("integrity_check") == "ok"
        if conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'Task'").get is None:
            return 0, {}  # the power went before the first checkpoint
        head = conn.execute("SELECT coalesce(max(seq), 0) FROM _pylon_change_log").get
        found = conn.execute("SELECT id, _json FROM Task").fetchall()
        return int(head), {str(row): json.loads(str(text))["title"] for row, text in found}
    finally:
        conn.close()


def check(run: Run, folder: Path, least: int, most: int) -> int:
    head, rows = head_and_rows(folder)
    assert least <= head <= most
    assert rows == run.history[head]
    return head


def test_the_run_is_recorded(run: Run) -> None:
    """All kinds of operations are in it, and its last files have all of its rows."""
    kinds = {(op.kind, Path(op.file).suffix) for op in run.journal.operations}
    assert {
        ("write", ".db"), ("write", ".db-wal"), ("sync", ".db"), ("sync", ".db-wal"),
    } <= kinds
    assert len(run.journal.operations) > 10 * BATCHES


def test_a_death_at_each_write_leaves_a_prefix(run: Run, tmp_path: Path) -> None:
    heads = set()
    for count, files in run.journal.states(run.ready):
        folder = put_files(tmp_path / "crash", files)
        heads.add(check(run, folder, run.least_head(count), run.most_head(count)))
    assert heads == set(run.history)


def test_a_torn_write_leaves_a_prefix(run: Run, tmp_path: Path) -> None:
    rng = random.Random(11)
    torn = 0
    operations = run.journal.operations
    for count, files in run.journal.states(run.ready):
        data = operations[count].data if count < len(operations) else b""
        if len(data) <= SECTOR_BYTES:
            continue
        cut = rng.randrange(0, len(data), SECTOR_BYTES) or SECTOR_BYTES // 2
        folder = put_files(tmp_path / "torn", run.journal.torn(files, count, cut))
        check(run, folder, run.least_head(count), run.most_head(count))
        torn += 1
    assert torn > 5 * BATCHES


def test_a_loss_of_power_leaves_a_prefix(run: Run, tmp_path: Path) -> None:
    """With `full` no acknowledged write is missing; with `normal` the newest ones may be."""
    rng = random.Random(13)
    lost = 0
    for _ in range(POWER_LOSSES):
        count = rng.randrange(run.ready, len(run.journal.operations) + 1)
        files = run.journal.files_after_power_loss(count, rng)
        folder = put_files(tmp_path / "power", files)
        least = run.least_head(count)
        head = check(
            run, folder, least if run.durability == "full" else 0, run.most_head(count)
        )
        lost += head < least
    assert (lost > 0) == (run.durability == "normal")


def test_a_start_after_a_crash_goes_on(run: Run, tmp_path: Path) -> None:
    """The engine opens the files, keeps the log whole, and writes the next seq."""
    for count, files in run.journal.states(run.ready):
        if count % 97:
            continue
        folder = put_files(tmp_path / "start", files)
        head, rows = head_and_rows(folder)
        engine = open_engine(
            folder / FILE, ManualClock(), durability=run.durability, boot_id="one"
        )
        assert engine.head == head
        (reply,) = apply(engine, task(SLOTS + 1, title="after"))
        assert (reply.error, reply.seq) == (None, head + 1)
        engine.close()
        assert head_and_rows(folder) == (head + 1, {**rows, row_id(SLOTS + 1): "after"})
