"""What a trial recorded, and the promises that it must hold to. Pure: no clock, no network.

`problems_of` returns one line for each broken promise:

- an acknowledged write is in the log once, with the seq and the row of its acknowledgement; a
  refused one is not there; one without an answer is there at most once; the log has nothing else;
- the writes of a writer to one row are in the order in which it sent them;
- an acknowledged write was acknowledged within a bound of when its writer first sent it;
- the counter that all writers raise under If-Match rises by one in each of its changes;
- a client's stream is in seq order, without repetition, and each event is the log's; between its
  snapshots it lacks no event that its policy shows, except images of rows that it lost later on;
- a client has seen no image that its policy hides, and no delete of a row that it never might see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

Kind = Literal["insert", "update", "delete"]
Outcome = Literal["acknowledged", "refused", "unknown"]


@dataclass(slots=True)
class Op:
    """One change that a writer sent, under one op_id, as often as it needed to.

    `mark` names it in the log: the value of `rank` of a note, of `n` of a tick, or of `sender` of
    the counter. A delete has none.
    """

    writer: str  # its user id
    number: int  # in the order in which the writer sent them
    kind: Kind
    entity: str
    mark: str
    row_id: str | None = None  # of an insert: once it is acknowledged
    outcome: Outcome = "unknown"
    seq: int = 0
    tries: int = 0
    nodes: set[int] = field(default_factory=set)  # that it was sent to
    sent_s: float = 0.0  # monotonic; first sent
    answered_s: float = 0.0  # acknowledged or refused

    @property
    def wait_s(self) -> float:
        """How long its writer waited for the answer."""
        return self.answered_s - self.sent_s


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the log, or one event that a client was sent."""

    seq: int
    entity: str
    row_id: str
    kind: str
    data: dict[str, Any] | None


@dataclass(slots=True)
class Stream:
    """What one client was sent. `snapshots`: (its cursor before one, its cursor behind it)."""

    name: str
    user_id: str
    events: list[Change] = field(default_factory=list)
    snapshot_rows: list[Change] = field(default_factory=list)
    snapshots: list[tuple[int, int]] = field(default_factory=list)
    cursor: int = 0
    problems: list[str] = field(default_factory=list)


def may_read(user_id: str, change: Change) -> bool:
    """The read policies of the served app (`tests.support.manifests.notes_app`)."""
    data = change.data
    if data is None:
        return False
    return change.entity == "Tick" or bool(data["shared"]) or data["ownerId"] == user_id


def mark_of(change: Change, counter_id: str) -> tuple[str, str] | None:
    """The writer and the mark that a change of the log bears; None: of a delete."""
    data = change.data
    if data is None:
        return None
    if change.row_id == counter_id:
        writer, _, mark = data["sender"].partition(" ")
        return writer, mark
    if change.entity == "Tick":
        return data["sender"].partition(" ")[0], str(data["n"])
    return data["ownerId"], str(data["rank"])


def problems_of(
    ops: Sequence[Op], log: Sequence[Change], streams: Sequence[Stream], counter_id: str,
    voids: Sequence[tuple[int, int]] = (), others_rows: frozenset[str] = frozenset(),
    echoes: Collection[int] = (),
) -> list[str]:
    """Return what is wrong; empty: nothing.

    Args:
        others_rows: ids of rows that others than the writers change.
        echoes: seqs of events that repeat a row, which nobody has sent.
        voids: ranges of seqs, without both ends, that a failover has lost: what was acknowledged or
            shown with such a seq is gone, and who saw it had to take a snapshot afterwards.
    """
    return [
        *_problems_of_log(log, counter_id),
        *_problems_of_ops(
            ops, [
                change for change in log
                if change.row_id not in others_rows and change.seq not in echoes
            ], counter_id, voids
        ),
        *(line for stream in streams for line in problems_of_stream(stream, log, voids)),
    ]


def longest_wait(ops: Sequence[Op], since_s: float, *, but: int | None = None) -> Op | None:
    """Return the acknowledged write that waited longest, of those that were not done at `since_s`.

    Args:
        but: a node; leave out the writes that were sent to it.
    """
    done = [
        op for op in ops
        if op.outcome == "acknowledged" and op.answered_s >= since_s and but not in op.nodes
    ]
    return max(done, key=lambda op: op.wait_s, default=None)


def is_void(seq: int, voids: Sequence[tuple[int, int]]) -> bool:
    """Return whether a failover has lost the change of this seq."""
    return any(before < seq < first for before, first in voids)


def _problems_of_log(log: Sequence[Change], counter_id: str) -> Iterator[str]:
    for before, after in pairwise(log):
        if after.seq <= before.seq:
            yield f"log: seq {after.seq} after {before.seq}"
    values = [change.data["n"] for change in log if change.row_id == counter_id and change.data]
    for first, second in pairwise(values):
        if second != first + 1:
            yield f"counter: {second} after {first}, an update was lost"


def _problems_of_ops(
    ops: Sequence[Op], log: Sequence[Change], counter_id: str, voids: Sequence[tuple[int, int]]
) -> Iterator[str]:
    marked: dict[tuple[str, str], list[Change]] = defaultdict(list)
    deleted: dict[str, list[Change]] = defaultdict(list)
    for change in log:
        mark = mark_of(change, counter_id)
        if mark is None:
            deleted[change.row_id].append(change)
        else:
            marked[mark].append(change)
    newest: dict[str, tuple[int, int]] = {}  # by row: number and seq of the last one
    for op in ops:
        if op.kind == "delete":
            found = deleted.pop(op.row_id or "", [])
        else:
            found = marked.pop((op.writer, op.mark), [])
        name = f"{op.kind} {op.entity}/{op.row_id} {op.mark} of {op.writer} ({op.tries} tries)"
        most = 0 if op.outcome == "refused" else 1
        if len(found) > most:
            yield f"{op.outcome}: {name} is in the log {len(found)} times"
        if op.outcome != "acknowledged" or (not found and is_void(op.seq, voids)):
            continue
        if not found:
            yield f"lost: {name} was acknowledged with seq {op.seq}"
        elif (found[0].seq, found[0].row_id) != (op.seq, op.row_id):
            yield f"told: {name} has seq {found[0].seq} in the log, its answer said {op.seq}"
        if op.row_id is not None and op.row_id != counter_id:
            number, seq = newest.get(op.row_id, (-1, -1))
            if (op.number > number) is not (op.seq > seq):
                yield f"order: {name} has seq {op.seq}, and an earlier one {seq}"
            newest[op.row_id] = max((number, seq), (op.number, op.seq))
    for rest in (*marked.values(), *deleted.values()):
        yield f"log: nobody sent {rest[0]}"


def problems_of_stream(
    stream: Stream, log: Sequence[Change], voids: Sequence[tuple[int, int]] = ()
) -> Iterator[str]:
    """Yield what is wrong with one client's stream; it must have come to the end of the log."""
    by_seq = {change.seq: change for change in log}
    yield from (f"{stream.name}: {line}" for line in stream.problems)
    last = 0
    for event in stream.events:
        source = by_seq.get(event.seq)
        if event.seq <= last:
            yield f"{stream.name}: seq {event.seq} after {last}"
        last = max(last, event.seq)
        if source is None and is_void(event.seq, voids):
            if not any(start >= event.seq for start, _ in stream.snapshots):
                yield f"{stream.name}: saw {event}, which is lost, and took no snapshot"
        elif source is None or (source.entity, source.row_id) != (event.entity, event.row_id):
            yield f"{stream.name}: {event} is not in the log, which has {source}"
        elif event.data is not None and event.data != source.data:
            yield f"{stream.name}: {event} has another image in the log: {source}"
    for event in (*stream.events, *stream.snapshot_rows):
        if event.data is not None and not may_read(stream.user_id, event):
            yield f"{stream.name}: was shown {event}"
    yield from _missing(stream, log)


def _missing(stream: Stream, log: Sequence[Change]) -> Iterator[str]:
    got = {event.seq for event in stream.events}
    last_got: dict[tuple[str, str], int] = {}
    for event in stream.events:
        last_got[event.entity, event.row_id] = event.seq
    visible_at: dict[tuple[str, str], bool] = {}  # rows whose newest image the user may read
    ever: set[tuple[str, str]] = set()
    for change in log:
        row = (change.entity, change.row_id)
        was, now = visible_at.get(row, False), may_read(stream.user_id, change)
        visible_at[row] = now
        if was or now:
            ever.add(row)
        is_sent = any(before < change.seq <= after for before, after in stream.snapshots)
        if change.seq in got:
            if row not in ever:
                yield f"{stream.name}: was told of {change}, a row that it never might read"
            continue
        if not (was or now) or is_sent or change.seq > stream.cursor:
            continue
        # A pull leaves out an image that the row has lost for this user: a later event hides it.
        if change.entity == "Tick" or last_got.get(row, 0) < change.seq:
            yield f"{stream.name}: lacks {change}"
