"""One change: what the writer commits, the log keeps, the bus carries and clients receive.

An event describes the effect of one commit on one row; a delete of a row that the same commit had
made has neither image. Clients get the image after the change only: a delete names the row and no
more, since its receiver has the row, or must not have it.

Invariants: `seq` is positive, strictly increasing in commit order, and never used twice.
`data` is the full row after the change (None for a delete), `prev_data` the full row before
(None for an insert), both as JSON text in bytes, so that policy can be judged on both images
and nobody encodes a row again.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["insert", "update", "delete"]


class ChangeEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A committed change (spec/realtime.md §1.1)."""

    seq: int
    entity: str
    row_id: str
    kind: Kind
    data: bytes | None
    prev_data: bytes | None
    timestamp_s: int

    def wire(self) -> bytes:
        """The event as clients get it, over pull, WebSocket and SSE alike."""
        return encode(
            self.seq, self.entity, self.row_id, self.kind, self.data, self.timestamp_s
        )


class ChangeBatch(msgspec.Struct, frozen=True, array_like=True):
    """The changes of one commit.

    `prev_seq` is the head before it. A subscriber with another head has a gap, and reads it from
    the change log. Seqs may have gaps between them. `committed_s` is the time on the monotonic
    clock of the machine, which all processes of a node share, at which the node knew of the first
    change; 0 if that is not known.
    """

    prev_seq: int
    events: list[ChangeEvent]
    committed_s: float = 0.0


def kind_of(prev_data: bytes | None, data: bytes | None) -> Kind:
    """The kind of a change from one image to the other."""
    if data is None:
        return "delete"
    return "insert" if prev_data is None else "update"


def encode(
    seq: int, entity: str, row_id: str, kind: Kind, row_json: bytes | None, timestamp_s: int
) -> bytes:
    """The JSON text of a change. Entity names and row ids need no escaping beyond JSON's own.

    Args:
        row_json: the row image to show, already JSON; None leaves `data` out.
        timestamp_s: Unix seconds; on the wire a string followed by ``Z``.
    """
    head = b'{"seq":%d,"entity":%s,"row_id":%s,"kind":"%s"' % (
        seq, msgspec.json.encode(entity), msgspec.json.encode(row_id), kind.encode(),
    )
    tail = b',"timestamp":"%dZ"}' % timestamp_s
    if row_json is None:
        return head + tail
    return head + b',"data":' + row_json + tail
