"""Live diffs: the text of a diff, and the way of a batch's diffs to their sockets.

Subscriptions share what is equal: those with equal sub_ids one text, those with equal compression
one frame. `Diffs` gathers the frames of one batch for each connection, so that a socket gets them
in one write.

Invariants: a connection gets the diffs in the order in which they were added. `send` never blocks
and never switches greenlets. Metrics: pylon_live_query_diffs_total. Called by `live_watches`,
`live_windows` and `live_queries`.
"""

from __future__ import annotations

import msgspec

from pylon import metrics
from pylon.changelog.change import Change
from workers.hub.connection import Connection, Transport
from workers.ws import frames
from workers.ws.live_subscriptions import Subscription


def diff_body(change: Change, kind: str) -> bytes:
    """Return the text of a diff up to its sub_id."""
    event = change.event
    data = None if kind == "delete" else event.data
    return row_body(event.seq, kind, event.row_id, b"", data)


def row_body(seq: int, kind: str, row_id: str, place: bytes, data: bytes | None) -> bytes:
    """Return the text of a diff up to its sub_id.

    It has no `entity`, because published clients treat a message with one as a change of their
    replica (spec/realtime.md §1.1).

    Args:
        place: the member `after` with a comma before it; or nothing.
        data: the row; None for a delete.
    """
    head = b'{"type":"diff","seq":%d,"kind":"%b","row_id":%b%b' % (
        seq, kind.encode(), msgspec.json.encode(row_id), place,
    )
    return head if data is None else head + b',"data":' + data


class Diffs:
    """The diffs of one batch on their way to the sockets."""

    __slots__ = ("_by_connection", "_made", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._by_connection: dict[Connection, list[bytes]] = {}
        self._made: dict[tuple[bytes, bytes, int], bytes] = {}  # by text, tail and window

    def begin_change(self) -> None:
        """Forget the frames that no later change shares."""
        self._made.clear()

    def add(self, body: bytes, member: Subscription) -> None:
        """Add a diff for a subscription.

        Args:
            body: the text up to its sub_id. PERF: equal texts should be one object.
        """
        connection = member.connection
        key = body, member.tail, connection.deflate_window
        frame = self._made.get(key)
        if frame is None:
            plain = frames.encode(frames.TEXT, body + member.tail)
            frame = self._made[key] = self._transport.compress(plain, connection.deflate_window)
        if member.backlog is not None:
            member.backlog.add(frame)
            return
        waiting = self._by_connection.get(connection)
        if waiting is None:
            self._by_connection[connection] = [frame]
        else:
            waiting.append(frame)

    def send(self) -> None:
        """Send each connection its diffs in one write."""
        sent_frames = 0
        last: list[bytes] = []
        data = b""
        for connection, waiting in self._by_connection.items():
            if waiting != last:  # PERF: equal lists hold the same objects, so comparing is quick
                last, data = waiting, waiting[0] if len(waiting) == 1 else b"".join(waiting)
            if connection.send(data, len(waiting)):
                sent_frames += len(waiting)
        metrics.LIVE_DIFFS.inc(sent_frames)
        metrics.MESSAGES_SENT.inc(sent_frames)
