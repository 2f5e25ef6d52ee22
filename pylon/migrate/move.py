"""Move: copies one commit of a source into an empty target, step by step.

The steps are: make the tables; copy the rows of each table in the order of its primary key; make
the indexes; compare all rows; store the facts; give the target its name. The target notes each step
in its transaction, so a killed move goes on behind it. A source that was written to since then is
copied anew.

Invariants: the source is only read. No server can start on the target before the last step.
Bounds: `_CHUNK_ROWS` rows and about `_CHUNK_CHARS` of text in a transaction. Called by
`pylonctl migrate`; `follow` for a source that is written to meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pylon.clock import Clock
from pylon.manifest.model import Manifest
from pylon.migrate.compare import TableReport, compare_facts, compare_table
from pylon.migrate.note import MigrationNote, Stage
from pylon.storage.transfer import Row, TransferSource, TransferTable, TransferTarget, list_tables

_CHUNK_ROWS: Final = 10_000
_CHUNK_CHARS: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is. `rows_per_s`: since the step began on this table."""

    step: str  # copy, verify
    table: str
    rows: int
    rows_in_all: int
    rows_per_s: float


OnProgress = Callable[[Progress], None]


class Move:
    """One migration. `note`: how far it is."""

    def __init__(
        self, target: TransferTarget, manifest: Manifest, clock: Clock, on_progress: OnProgress
    ) -> None:
        self.note: MigrationNote | None = None
        self._target = target
        self._tables = list_tables(manifest)
        self._clock = clock
        self._on_progress = on_progress

    def find_note(self, *, restart: bool) -> MigrationNote | None:
        """Return the note of a move that was not finished, if it is to go on.

        Raises:
            MigrationRefused: the target has data of another origin.
        """
        text = self._target.read_note()
        if text is None or restart:
            return None
        return MigrationNote.decode(text, self._target.place)

    def copy(
        self, source: TransferSource, found: MigrationNote | None, *, is_online: bool
    ) -> list[TableReport]:
        """Copy the commit of the source, and compare all rows. Returns what was compared; nothing
        if an earlier run has done it.

        Args:
            found: of an earlier run; it goes on if that is of the same commit.

        Raises:
            MigrationFailed: a row is not as it was in the source.
        """
        if found is None or not self._goes_on(found, source, is_online=is_online):
            self.note = MigrationNote.begin(source.facts, is_online=is_online)
            self._target.make_tables(self.note.encode())
        else:
            self.note = found
        if self.note.stage is Stage.TABLES:
            for table in self._tables:
                self._copy_table(source, table)
            self._step(Stage.ROWS, lambda note: self._target.change_rows((), note))
        if self.note.stage is Stage.ROWS:
            self._step(Stage.INDEXES, self._target.make_indexes)
        if self.note.stage is not Stage.INDEXES:
            return []
        reports = [self._compare_table(source, table) for table in self._tables]
        self._step(Stage.VERIFIED, lambda note: self._target.change_rows((), note))
        return reports

    def finish(self, source: TransferSource) -> None:
        """Store the facts, and give the target its name.

        Raises:
            MigrationFailed: a fact is not as it is in the source.
        """
        facts = source.read_facts()
        self._step(
            Stage.FACTS, lambda note: self._target.write_facts(facts, source.facts, note)
        )
        compare_facts(source, self._target)
        self._target.publish()

    def _goes_on(
        self, found: MigrationNote, source: TransferSource, *, is_online: bool
    ) -> bool:
        """Whether a move that was not finished goes on: the commit that it copied is still there,
        or all of it was copied, and what came later can be taken over."""
        if found.is_of(source.facts):
            return True
        return (
            is_online and found.stage in (Stage.VERIFIED, Stage.FOLLOWED)
            and found.lineage == source.facts.lineage
        )

    def _step(self, stage: Stage, execute: Callable[[str], None]) -> None:
        assert self.note is not None
        note = self.note.at_stage(stage)
        execute(note.encode())
        self.note = note

    def _copy_table(self, source: TransferSource, table: TransferTable) -> None:
        assert self.note is not None
        names = [known.name for known in self._tables]
        if self.note.table and names.index(table.name) < names.index(self.note.table):
            return  # an earlier run has copied it
        after = self.note.after if self.note.table == table.name else None
        rows_in_all = source.count_rows(table)
        started_s = self._clock.monotonic_s()
        before = self.note.rows.get(table.name, 0)
        for rows in _chunks(source.read_rows(table, after)):
            note = self.note.with_rows(table.name, len(rows), rows[-1][: table.key_size])
            self._target.add_rows(table, rows, note.encode())
            self.note = note
            done = note.rows[table.name]
            rate = self._rate(done - before, started_s)
            self._on_progress(Progress("copy", table.name, done, rows_in_all, rate))
        if not rows_in_all:
            self.note = self.note.with_rows(table.name, 0, None)

    def _compare_table(self, source: TransferSource, table: TransferTable) -> TableReport:
        started_s = self._clock.monotonic_s()
        rows_in_all = self.note.rows.get(table.name, 0) if self.note is not None else 0

        def report(rows: int) -> None:
            rate = self._rate(rows, started_s)
            self._on_progress(Progress("verify", table.name, rows, rows_in_all, rate))

        return compare_table(source, self._target, table, report)

    def _rate(self, rows: int, started_s: float) -> float:
        elapsed_s = self._clock.monotonic_s() - started_s
        return rows / elapsed_s if elapsed_s > 0 else 0.0


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    chars = 0
    for row in rows:
        chunk.append(row)
        # The longest values are the JSON, the images and the documents.
        chars += sum(len(value) for value in row if type(value) is str or type(value) is bytes)
        if len(chunk) >= _CHUNK_ROWS or chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk
