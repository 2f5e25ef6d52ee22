"""Live results: read the first rows of a live query, and send rows at the pace of their client.

Rows go out in messages of a bounded size; the next one follows when the client has taken the one
before. A result is refused before its rows are read if there are too many: a bounded count by the
index decides.

Invariant: all rows of a result are of one commit. Bounds: rows and bytes of a result, bytes of
results that wait for slow clients (`limits.LIVE_*`). Called by `live_queries`.
"""

from __future__ import annotations

from typing import Final

import orjson

from pylon import limits
from pylon.changelog.pull import read_page
from pylon.errors import LimitExceeded, Unavailable
from pylon.query.predicate import Predicate
from pylon.query.rows import Query
from pylon.storage.interface import Reader
from workers.hub.connection import Connection, Transport
from workers.ws import frames
from workers.ws.live_subscriptions import Subscription

_WAIT_S: Final = 1.0  # between checks of a client while rows wait for it


class ResultSender:
    """Sends rows to the clients of one worker."""

    __slots__ = ("_sending_bytes", "_transport")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._sending_bytes = 0  # of results that wait for their client

    def send(self, subscription: Subscription, kind: str, seq: int, rows: list[bytes]) -> None:
        """Send all rows in messages of the type `kind`. May block.

        Raises:
            Unavailable: too many bytes wait for slow clients; nothing was sent.
        """
        connection = subscription.connection
        pages = _pages(kind, seq, rows, subscription.tail)
        work_bytes = limits.LIVE_ROW_COST_BYTES * len(rows)
        del rows
        self._transport.charge(connection, sum(map(len, pages)), work_bytes=work_bytes)
        waiting_bytes = sum(map(len, pages[1:]))
        if waiting_bytes and self._sending_bytes + waiting_bytes > limits.LIVE_SENDING_BYTES:
            raise Unavailable("Too many results of live queries are on their way to slow clients")
        self._sending_bytes += waiting_bytes
        try:
            for page in pages:
                frame = self._transport.compress(page, connection.deflate_window)
                if not is_drained(connection) or not connection.send(frame):
                    break
        finally:
            self._sending_bytes -= waiting_bytes


def read_result(reader: Reader, entity: str, where: Predicate) -> tuple[int, list[bytes]]:
    """Return the head of the log, and the rows at the same commit.

    Raises:
        LimitExceeded: there are more than `limits.LIVE_ROWS`, or `limits.LIVE_RESULT_BYTES`.
    """

    def read() -> tuple[int, list[bytes]]:
        seq = reader.head_seq()
        check_row_count(reader, entity, where)
        rows: list[bytes] = []
        size_bytes = 0
        after_id: str | None = None
        while True:
            query = Query(where, limits.SNAPSHOT_PAGE_ROWS, after_id=after_id)
            page, has_more = read_page(reader, entity, query)
            rows += page
            size_bytes += sum(map(len, page))
            if size_bytes > limits.LIVE_RESULT_BYTES:
                raise _too_large()
            if not has_more:
                return seq, rows
            after_id = orjson.loads(page[-1])["id"]

    return reader.at_one_commit(read)


def check_row_count(reader: Reader, entity: str, where: Predicate) -> None:
    """Check that the condition does not hold for too many rows, without reading one.

    Raises:
        LimitExceeded: for more than `limits.LIVE_ROWS`.
    """
    if reader.count_within(entity, where, limits.LIVE_ROWS + 1) > limits.LIVE_ROWS:
        raise _too_large()


def _too_large() -> LimitExceeded:
    return LimitExceeded(
        f"A live query may have {limits.LIVE_ROWS} rows and "
        f"{limits.LIVE_RESULT_BYTES} bytes when it begins, and this one has more",
        hint="ask for less with a filter, or for the first rows with $order and $limit",
    )


def _pages(kind: str, seq: int, rows: list[bytes], tail: bytes) -> list[bytes]:
    """Return the messages of a result as frames; the last one has ``"last":true``."""
    pages: list[bytes] = []
    begin = size_bytes = 0
    for end, row in enumerate(rows):
        if end > begin and size_bytes + len(row) > limits.LIVE_PAGE_BYTES:
            pages.append(_page(kind, seq, rows[begin:end], False, tail))
            begin, size_bytes = end, 0
        size_bytes += len(row)
    pages.append(_page(kind, seq, rows[begin:], True, tail))
    return pages


def _page(kind: str, seq: int, rows: list[bytes], last: bool, tail: bytes) -> bytes:
    return frames.encode(
        frames.TEXT,
        b'{"type":"%b","seq":%d,"rows":[%b],"last":%b%b'
        % (kind.encode(), seq, b",".join(rows), b"true" if last else b"false", tail),
    )


def is_drained(connection: Connection) -> bool:
    """Wait until the outbox of a connection is empty. Return False if the connection has closed.

    The heartbeat closes a client that reads nothing. It must not close one that reads a long
    result slowly, whose answers to pings come late; so progress here counts as an answer.
    """
    previous_bytes = connection.outbox_bytes
    while connection.is_open:
        is_empty = connection.wait_drained(_WAIT_S)
        if connection.outbox_bytes < previous_bytes:
            connection.heartbeats_unanswered = 0
        if is_empty:
            return True
        previous_bytes = connection.outbox_bytes
    return False
