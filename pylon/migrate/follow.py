"""Follow: brings a target from the commit that it has to a later one of its source.

The rows that the change log names since then are read at the later commit, and replace those of the
target. What the log does not name (sessions, op_ids, documents, shards) is compared as a whole, and
the differences are taken over. All of it is one transaction of the target. Then the touched rows
are read again and compared.

Invariants: after `catch_up` the target is the source at one commit, except for events that the
source's retention has dropped meanwhile. Called by `pylonctl migrate --online`: again and again
while a server writes, and once more when it no longer can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from pylon.errors import MigrationFailed
from pylon.manifest.model import Manifest
from pylon.migrate.compare import differences
from pylon.migrate.move import Move
from pylon.migrate.note import Stage
from pylon.storage.transfer import (
    CHANGE_LOG,
    Key,
    Row,
    TransferSource,
    TransferTable,
    TransferTarget,
    list_tables,
)

LAG_EVENTS: Final = 1_000  # few enough to stop the server

_Change = tuple[TransferTable, Sequence[Key], Sequence[Row]]


class Follower:
    """Takes over later commits of a source. Its move has copied and verified an earlier one."""

    def __init__(self, move: Move, target: TransferTarget, manifest: Manifest) -> None:
        self._move = move
        self._target = target
        tables = list_tables(manifest)
        self._entities = {table.name: table for table in tables if table.entity is not None}
        self._log = next(table for table in tables if table.name == CHANGE_LOG)
        self._others = [
            table for table in tables if table.entity is None and table.name != CHANGE_LOG
        ]

    def catch_up(self, source: TransferSource) -> int:
        """Bring the target to the commit of the source; how many events were taken over.

        Raises:
            MigrationFailed: the source no longer has the events since the target's commit, or a
                touched row is not as it is in the source.
        """
        note = self._move.note
        assert note is not None
        facts = source.facts
        if facts.lineage != note.lineage or facts.head < note.head:
            raise MigrationFailed(
                f"{facts.place} is another database than the one that was copied: "
                "begin anew with --restart"
            )
        if facts.log_from > note.head:
            raise MigrationFailed(
                f"{facts.place} has dropped events since the copy was made, so they cannot be "
                "taken over: raise PYLON_CHANGE_LOG_RETAIN_BYTES or PYLON_CHANGE_LOG_RETAIN, and "
                "begin anew with --restart"
            )
        events = list(source.read_rows(self._log, (note.head,)))
        changes = self._changed_rows(source, events)
        touched = [(table, keys) for table, keys, _ in changes]
        changes.append((self._log, (), events))
        changes += filter(None, (self._differences(source, table) for table in self._others))
        after = msgspec.structs.replace(note.at_stage(Stage.FOLLOWED), head=facts.head)
        self._target.change_rows(changes, after.encode())
        self._move.note = after
        for table, keys in touched:
            self._compare(source, table, keys)
        return len(events)

    def compare_counts(self, source: TransferSource) -> None:
        """Compare the number of rows of each entity: the last check before the target is used.

        Raises:
            MigrationFailed: the text names the table.
        """
        for table in self._entities.values():
            wanted, found = source.count_rows(table), self._target.count_rows(table)
            if wanted != found:
                raise MigrationFailed(f"{table.name} has {found} rows in the target, not {wanted}")

    def _changed_rows(self, source: TransferSource, events: Sequence[Row]) -> list[_Change]:
        keys: dict[str, dict[Key, None]] = {}
        for event in events:
            keys.setdefault(event[1], {})[(event[2],)] = None
        return [
            (table, list(keys[name]), source.find_rows(table, list(keys[name])))
            for name, table in self._entities.items() if name in keys
        ]

    def _differences(self, source: TransferSource, table: TransferTable) -> _Change | None:
        size = table.key_size
        gone: list[Key] = []
        new: list[Row] = []
        for wanted, found in differences(
            source.read_rows(table), self._target.read_rows(table), size
        ):
            if found is not None:
                gone.append(found[:size])
            if wanted is not None:
                new.append(wanted)
        return (table, gone, new) if gone or new else None

    def _compare(self, source: TransferSource, table: TransferTable, keys: Sequence[Key]) -> None:
        size = table.key_size
        wanted: dict[Any, Row] = {row[:size]: row for row in source.find_rows(table, keys)}
        found: dict[Any, Row] = {row[:size]: row for row in self._target.find_rows(table, keys)}
        for key in keys:
            if wanted.get(key) != found.get(key):
                raise MigrationFailed(
                    f"{table.name}: the row {'/'.join(map(str, key))} differs from the source's"
                )
