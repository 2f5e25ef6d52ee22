"""What a transaction has done so far: the events and op_ids that are written at its end.

Invariants: seqs go up by one from the head; what `back_to` undoes leaves no trace, and its seqs
are given to others. One journal for each transaction of the engine.
"""

from __future__ import annotations

from typing import Final

import apsw

from pylon.bus.messages import OpKey
from pylon.changelog.event import ChangeEvent, Kind
from pylon.storage.sqlite import log

_PUT_OP_ID: Final = (
    "INSERT INTO _pylon_op_ids (identity, op_id, seq, row_id, at, digest) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
_FIND_OP_ID: Final = (
    "SELECT seq, row_id, digest FROM _pylon_op_ids WHERE identity = ? AND op_id = ?"
)
# Of an operation that was carried out: seq, row id (of several: their ids as JSON), digest.
Done = tuple[int, str, str | None]


class Journal:
    """See the module. `clean`: the run ends in order with this transaction. `documents`: one
    has changed without an event of its row."""

    __slots__ = ("_lines", "clean", "documents", "events", "now_s", "ops", "seq")

    def __init__(self, head: int, now_s: int) -> None:
        self.seq = head
        self.now_s = now_s
        self.events: list[ChangeEvent] = []
        self.ops: dict[tuple[str, str], Done] = {}
        self.clean = False
        self.documents = False
        self._lines: list[tuple[int, str, str, str, str | None, str | None, int]] = []

    def note(
        self, entity: str, row_id: str, kind: Kind,
        data: bytes | None, text: str | None, prev: bytes | None,
    ) -> int:
        """Note a change and give its seq. `text` is `data`, decoded."""
        seq = self.seq = self.seq + 1
        now_s = self.now_s
        self.events.append(ChangeEvent(seq, entity, row_id, kind, data, prev, now_s))
        self._lines.append(
            (seq, entity, row_id, kind, text, None if prev is None else prev.decode(), now_s)
        )
        return seq

    def note_op(self, key: OpKey, seq: int, row_id: str) -> None:
        """Note that an operation has been carried out."""
        self.ops[key.identity, key.op_id] = (seq, row_id, key.digest)

    def find_op(self, conn: apsw.Connection, key: OpKey) -> Done | None:
        """What became of an operation that was carried out, in this transaction or earlier."""
        name = (key.identity, key.op_id)
        done: Done | None = self.ops.get(name) or conn.execute(_FIND_OP_ID, name).get
        return done

    def back_to(self, seq: int) -> None:
        """Forget the changes above `seq`; their op_ids must not have been noted yet."""
        undone = self.seq - seq
        if undone:
            del self.events[-undone:]
            del self._lines[-undone:]
            self.seq = seq

    def write(self, conn: apsw.Connection) -> None:
        """Append the events to the log, and the op_ids, as part of the transaction."""
        if self._lines:
            conn.executemany(log.INSERT, self._lines)
        if self.ops:
            conn.executemany(
                _PUT_OP_ID,
                [(*name, seq, row_id, self.now_s, digest)
                 for name, (seq, row_id, digest) in self.ops.items()],
            )
