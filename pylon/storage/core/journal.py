"""Journal: what a transaction has done so far, which is written at its end.

The journal keeps one event for each row: the effect of the whole commit on it. Two changes of a
row in one commit become one event, from the image before the first to the image after the last,
and both have the seq of the first. So no image leaves that no commit ever showed, and a row that
is changed a hundred times costs two images. A row that came and went within the commit leaves a
delete without images, since its seq has been given out.

A `Transact` notes its changes after `open_step`, so that `undo_step` can take them back.

Invariants: seqs go up by one with each row that changes, from the head, and each has an event;
changes that `undo_step` takes back leave no trace, and later changes get their seqs. Events are in
the order of their seqs. `engine` makes one journal for each transaction; `rows` and `documents`
note their changes in it.
"""

from __future__ import annotations

from pylon.storage.core.transaction import DoneOp, LogRows, OpName
from pylon.storage.events import ChangeEvent, Kind
from pylon.storage.ops import OpKey


class Journal:
    """See the module. `events` has one for each row that changed. `clean`: the run ends in order
    with this transaction. `documents`: one has changed without an event of its row."""

    __slots__ = ("_begun", "_head", "_is_step", "_replaced", "clean", "deleted", "documents",
                 "events", "now_s", "ops", "seq", "step_bytes")

    def __init__(self, head: int, now_s: int) -> None:
        self.seq = head
        self.now_s = now_s
        self.events: list[ChangeEvent] = []
        self.ops: dict[OpName, DoneOp] = {}
        self.clean = False
        self.documents = False
        self._head = head
        # The seqs of rows that were deleted, by entity and row id; they may be there again. PERF:
        # rows that are there tell their seq themselves; a map of all cost an update 0.3 of 7 us.
        self.deleted: dict[tuple[str, str], int] = {}
        self._begun = head  # the seq before the open step
        self._replaced: dict[int, ChangeEvent] = {}  # by that step; by seq
        self._is_step = False
        self.step_bytes = 0  # of all images that the open step has noted

    def event_of(self, version: int | None) -> ChangeEvent | None:
        """The event that a row has so far, by the row's version: the seq of its last change."""
        # Above our own seq: another program has written it.
        if version is None or not self._head < version <= self.seq:
            return None
        return self.events[version - self._head - 1]

    def event_of_deleted(self, entity: str, row_id: str) -> ChangeEvent | None:
        """The event of a row that this transaction has deleted."""
        return self.event_of(self.deleted.get((entity, row_id)))

    def note(
        self, entity: str, row_id: str, earlier: ChangeEvent | None, data: bytes | None,
        prev: bytes | None,
    ) -> int:
        """Note a change of a row, from the image `prev` to `data`, and give its seq.

        Args:
            earlier: the event that the row has so far.
        """
        if self._is_step:
            self.step_bytes += len(data or b"") + len(prev or b"")
        if earlier is None:
            seq = self.seq = self.seq + 1
            kind: Kind = "insert" if prev is None else "delete" if data is None else "update"
            self.events.append(ChangeEvent(seq, entity, row_id, kind, data, prev, self.now_s))
        else:
            seq, prev = earlier.seq, earlier.prev_data
            kind = "delete" if data is None else "insert" if prev is None else "update"
            if seq <= self._begun:
                self._replaced.setdefault(seq, earlier)
            self.events[seq - self._head - 1] = ChangeEvent(
                seq, entity, row_id, kind, data, prev, self.now_s
            )
        if data is None:
            self.deleted[entity, row_id] = seq
        return seq

    def open_step(self) -> None:
        """Begin a step, whose changes can be undone together. Steps do not nest."""
        self._begun = self.seq
        self._is_step = True
        self.step_bytes = 0

    def keep_step(self) -> None:
        """Keep the changes since `open_step`."""
        self._begun = self._head  # so that nothing is remembered until the next step
        self._is_step = False
        self._replaced.clear()

    def undo_step(self) -> None:
        """Forget what was noted since `open_step`; its op_ids must not have been noted yet."""
        begin = self._begun - self._head
        for event in self.events[begin:]:
            self.deleted.pop((event.entity, event.row_id), None)
        del self.events[begin:]
        for seq, event in self._replaced.items():
            self.events[seq - self._head - 1] = event
        self.seq = self._begun
        self.keep_step()

    def note_op(self, key: OpKey, seq: int, row_id: str) -> None:
        """Note that an operation has been carried out."""
        self.ops[key.identity, key.op_id] = (seq, row_id, key.digest)

    def find_op(self, rows: LogRows, key: OpKey) -> DoneOp | None:
        """What became of an operation that was carried out, in this transaction or earlier."""
        name = (key.identity, key.op_id)
        return self.ops.get(name) or rows.find_op(name)

    def write(self, rows: LogRows) -> None:
        """Append the events to the log, and the op_ids, as part of the transaction."""
        if self.events:
            rows.append_events(self.events)
        if self.ops:
            rows.put_ops(self.ops, self.now_s)
