"""Notes of a migration: how far it has come, kept in the target until it is done.

A target writes the note in the transaction of each step. So a killed migration goes on behind the
last step that the target has. Called by `move` and `follow`.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from pylon.errors import MigrationRefused
from pylon.storage.transfer import Key, SourceFacts

_FORMAT = 1


class Stage(Enum):
    """The last step that was done."""

    TABLES = "tables"  # made, and being filled
    ROWS = "rows"  # all copied
    INDEXES = "indexes"  # made
    VERIFIED = "verified"  # all rows are those of the copied commit
    FOLLOWED = "followed"  # a later commit of the source was taken over
    FACTS = "facts"  # all is there


class MigrationNote(msgspec.Struct, frozen=True):
    """`head` is that of the commit which the target has, or will have once all rows are copied."""

    store: str
    place: str
    lineage: str
    stamp: str
    head: int
    is_online: bool
    stage: Stage = Stage.TABLES
    rows: dict[str, int] = {}  # copied rows of each table
    table: str = ""  # the table that is being copied
    after: tuple[str | int, ...] | None = None  # its last copied key
    format: int = _FORMAT

    @classmethod
    def begin(cls, facts: SourceFacts, *, is_online: bool) -> MigrationNote:
        """Return the note of a migration that has copied nothing."""
        return cls(
            facts.store, facts.place, facts.lineage, facts.stamp, facts.head, is_online
        )

    @classmethod
    def decode(cls, text: str, place: str) -> MigrationNote:
        """Read a note.

        Raises:
            MigrationRefused: another version wrote it.
        """
        try:
            note = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as ex:
            raise MigrationRefused(
                f"{place} has the note of another version's migration: {ex}",
                hint="finish it with that version, or begin anew with --restart",
            ) from ex
        return note

    def encode(self) -> str:
        """Return the text that `decode` reads."""
        return msgspec.json.encode(self).decode()

    def is_of(self, facts: SourceFacts) -> bool:
        """Whether it is of this commit of the source."""
        return (self.store, self.lineage, self.stamp) == (facts.store, facts.lineage, facts.stamp)

    def at_stage(self, stage: Stage) -> MigrationNote:
        """Return the note after a step."""
        return msgspec.structs.replace(self, stage=stage, table="", after=None)

    def with_rows(self, table: str, rows: int, after: Key | None) -> MigrationNote:
        """Return the note after the copy of more rows of a table."""
        return msgspec.structs.replace(
            self, rows={**self.rows, table: self.rows.get(table, 0) + rows}, table=table,
            after=after,
        )
