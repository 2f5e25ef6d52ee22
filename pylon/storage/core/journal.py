"""Journal: collects the events and op_ids of a transaction, and writes them at its end.

It has one event for each changed row: the effect of the whole commit on the row. Two changes of a
row in one commit become one event with the seq of the first, from the image before the first to
the image after the last. So an event contains only committed images, and a row that is changed a
hundred times costs two images. A row that is inserted and deleted within the commit leaves a delete
without images, because replies already have its seq.

A change of an entity that read rules ask (``exists(...)``) leaves `limits.RELATED_SEQS` seqs free
before its own. A client for whom the change opens or closes rows gets those rows with these seqs
(`pylon.changelog.difference`), because clients drop an event whose seq is not above the last one.

A `Transact` notes its changes after `open_step`, so that `undo_step` can undo them.

Invariants: the first change of each row takes the next seq, and the seqs of events ascend. After
`undo_step` later changes reuse the seqs of the undone ones. `engine` makes one journal for each
transaction; `rows` and `documents` note their changes in it.
"""

from __future__ import annotations

from collections.abc import Collection

from pylon import limits
from pylon.storage.core.transaction import DoneOp, LogRows, OpName
from pylon.storage.events import ChangeEvent, Kind
from pylon.storage.ops import OpKey


class Journal:
    """See the module. `events`: one for each changed row. `documents`: whether a document has
    changed without an event of its row."""

    __slots__ = ("_asked", "_begun", "_head", "_index_by_seq", "_replaced", "deleted",
                 "documents", "events", "is_step", "now_s", "ops", "seq", "step_bytes")

    def __init__(self, head: int, now_s: int, asked: Collection[str] = ()) -> None:
        """Args: `asked` are the entities that read rules ask."""
        self.seq = head
        self._asked = asked
        # The indices of events, once a seq is free. PERF: without, an index is a difference.
        self._index_by_seq: dict[int, int] | None = None
        self.now_s = now_s
        self.events: list[ChangeEvent] = []
        self.ops: dict[OpName, DoneOp] = {}
        self.documents = False
        self._head = head
        # The seqs of deleted rows by entity and row id; such a row may exist again. PERF: existing
        # rows store their seq; a map of all changed rows cost an update 0.3 of 7 us.
        self.deleted: dict[tuple[str, str], int] = {}
        self._begun = head  # the seq before the open step
        self._replaced: dict[int, ChangeEvent] = {}  # by seq: events that the step has replaced
        self.is_step = False
        self.step_bytes = 0  # size of all images of the open step

    def event_of(self, version: int | None) -> ChangeEvent | None:
        """Return the event of a row in this transaction, or None. `version`: the row's last seq."""
        # Another program has written a version above our own seq.
        if version is None or not self._head < version <= self.seq:
            return None
        index = self._index_of(version)
        return None if index is None else self.events[index]

    def event_of_deleted(self, entity: str, row_id: str) -> ChangeEvent | None:
        """Return the event of a row that this transaction has deleted, or None."""
        return self.event_of(self.deleted.get((entity, row_id)))

    def next_seq(self, entity: str) -> int:
        """Return the seq of the next event of an entity."""
        # Before the first event there is no row that it could open.
        return self.seq + (limits.RELATED_SEQS if self.seq and entity in self._asked else 1)

    def note(
        self, entity: str, row_id: str, earlier: ChangeEvent | None, data: bytes | None,
        prev: bytes | None,
    ) -> int:
        """Note a change of a row from the image `prev` to `data`. Return its seq.

        Args:
            earlier: the event of the row in this transaction, if it has one.
        """
        if self.is_step:
            self.step_bytes += len(data or b"") + len(prev or b"")
        if earlier is None:
            seq = self.next_seq(entity)
            if self._index_by_seq is not None:
                self._index_by_seq[seq] = len(self.events)
            elif seq != self.seq + 1:
                self._index_by_seq = {e.seq: i for i, e in enumerate(self.events)}
                self._index_by_seq[seq] = len(self.events)
            self.seq = seq
            kind: Kind = "insert" if prev is None else "delete" if data is None else "update"
            self.events.append(ChangeEvent(seq, entity, row_id, kind, data, prev, self.now_s))
        else:
            seq, prev = earlier.seq, earlier.prev_data
            kind = "delete" if data is None else "insert" if prev is None else "update"
            if seq <= self._begun:
                self._replaced.setdefault(seq, earlier)
            self._replace(ChangeEvent(seq, entity, row_id, kind, data, prev, self.now_s))
        if data is None:
            self.deleted[entity, row_id] = seq
        return seq

    def open_step(self) -> None:
        """Begin a step, whose changes can be undone together. Steps do not nest."""
        self._begun = self.seq
        self.is_step = True
        self.step_bytes = 0

    def keep_step(self) -> None:
        """Keep the changes since `open_step`."""
        self._begun = self._head  # so that `note` keeps no replaced events until the next step
        self.is_step = False
        self._replaced.clear()

    def undo_step(self) -> None:
        """Undo the changes since `open_step`. The step must not have noted an op_id."""
        while self.events and self.events[-1].seq > self._begun:
            event = self.events.pop()
            self.deleted.pop((event.entity, event.row_id), None)
            if self._index_by_seq is not None:
                del self._index_by_seq[event.seq]
        for event in self._replaced.values():
            self._replace(event)
        self.seq = self._begun
        self.keep_step()

    def _index_of(self, seq: int) -> int | None:
        if self._index_by_seq is None:
            return seq - self._head - 1
        return self._index_by_seq.get(seq)

    def _replace(self, event: ChangeEvent) -> None:
        index = self._index_of(event.seq)
        assert index is not None
        self.events[index] = event

    def note_op(self, key: OpKey, seq: int, row_id: str) -> None:
        """Note that an operation was executed."""
        self.ops[key.identity, key.op_id] = (seq, row_id, key.digest)

    def find_op(self, rows: LogRows, key: OpKey) -> DoneOp | None:
        """Return the outcome of an operation of this or an earlier transaction, or None."""
        name = (key.identity, key.op_id)
        return self.ops.get(name) or rows.find_op(name)

    def write(self, rows: LogRows) -> None:
        """Append the events to the log, and the op_ids, as part of the transaction."""
        if self.events:
            rows.append_events(self.events)
        if self.ops:
            rows.put_ops(self.ops, self.now_s)
