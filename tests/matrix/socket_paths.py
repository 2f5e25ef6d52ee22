"""Drivers of the paths over sockets: streams of changes, live queries, live windows, documents.

A driver of `SOCKET_READS` returns the rows of an entity that a caller gets, as those of
`read_paths` do. A channel of `CHANNELS` is open while rows change, and returns what the caller
heard as (entity, kind): the first event of a row that the caller did not have counts as an insert,
because a stream may send the whole row as an update (docs/sync.md).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any, Final

from tests.matrix.app import BOARD, ENTITIES, HIDDEN, MARK
from tests.matrix.model import DENIED
from tests.matrix.read_paths import Driver, Seen, titles
from tests.matrix.sockets import content_of, read_until_pong, send_message
from tests.matrix.stand import Caller, Stand
from tests.support.documents import LoroClient
from tests.support.websocket_client import WebSocketClient
from tests.test_sse_server import Stream

Heard = list[tuple[str, str]] | str


def connect(stand: Stand, caller: Caller, path: str) -> WebSocketClient | None:
    """Open a WebSocket; None where the scopes of a key refuse it."""
    socket = WebSocketClient(
        stand.server.port + 1, token=caller.token, path=path, upgraded=False
    )
    if socket.status == 101:
        return socket
    assert socket.status == 403 and b"SCOPE_DENIED" in socket.read_rest(), socket.head
    socket.close()
    return None


def ws_replay(stand: Stand, caller: Caller, entity: str) -> Seen:
    """Open a socket after the first change, so that it replays the others."""
    socket = connect(stand, caller, f"/?entities={entity}&since=1")
    if socket is None:
        return DENIED
    with contextlib.closing(socket):
        messages, _ = read_until_pong(socket, stand.last_seq())
    return titles(message["data"] for message in messages if "data" in message)


def sse_replay(stand: Stand, caller: Caller, entity: str) -> Seen:
    stream = open_stream(stand, caller, f"/events?entities={entity},{BOARD}&since=1")
    if stream is None:
        return DENIED
    with contextlib.closing(stream):
        events = read_stream(stand, stream)
    return titles(e["data"] for e in events if e["entity"] == entity and "data" in e)


def open_stream(stand: Stand, caller: Caller, path: str) -> Stream | None:
    """Open an event stream; None where the scopes of a key refuse it."""
    port = stand.server.port + 2
    if caller.token is None:
        stream = Stream(port, path, greeted=False)
    else:
        stream = Stream(port, path, greeted=False, Authorization=f"Bearer {caller.token}")
    if stream.head.startswith(b"HTTP/1.1 200"):
        stream.read_until(b": connected\n\n")
        return stream
    assert stream.head.startswith(b"HTTP/1.1 403"), stream.head
    assert b"SCOPE_DENIED" in stream.read_rest()
    stream.close()
    return None


def read_stream(stand: Stand, stream: Stream) -> list[dict[str, Any]]:
    """Return the events up to one that every caller gets, and that this function causes."""
    last = stand.insert(BOARD, stand.row("zed", title=f"end {next(stand.numbers)}"))
    events: list[dict[str, Any]] = []
    while True:
        _, event = stream.event()
        assert MARK not in json.dumps(event)
        if event.get("row_id") == last:
            return events
        events.append(event)


def live_query(stand: Stand, caller: Caller, entity: str) -> Seen:
    return _subscribed(stand, caller, entity, {"title": {"$in": ["of ann", "of zed"]}})


def live_window(stand: Stand, caller: Caller, entity: str) -> Seen:
    window = {"title": {"$in": ["of ann", "of zed"]}, "$order": {"title": "asc"}, "$limit": 50}
    return _subscribed(stand, caller, entity, window)


def _subscribed(stand: Stand, caller: Caller, entity: str, condition: dict[str, Any]) -> Seen:
    socket = connect(stand, caller, "/?changes=0")
    assert socket is not None
    message = {"type": "subscribe", "sub_id": "s", "entity": entity, "filter": condition}
    with contextlib.closing(socket):
        send_message(socket, message)
        rows: list[dict[str, Any]] = []
        while True:
            answer = socket.read_json()
            assert MARK not in json.dumps(answer)
            if answer["type"] == "error":
                assert answer["code"] in ("POLICY_DENIED", "SCOPE_DENIED"), answer
                return DENIED if answer["code"] == "SCOPE_DENIED" else frozenset()
            rows += answer["rows"]
            if answer["last"]:
                return titles(rows)


def document(stand: Stand, caller: Caller, entity: str) -> Seen:
    """Ask for the documents of the rows; a caller who may not have one gets nothing."""
    if entity == HIDDEN:
        assert stand.open_document(entity, stand.ann_row[entity]) is None
    socket = connect(stand, caller, "/?changes=0")
    assert socket is not None
    found = []
    with contextlib.closing(socket):
        for row_id in (stand.ann_row[entity], stand.zed_row[entity]):
            message = {"type": "crdt-subscribe", "entity": entity, "rowId": row_id}
            send_message(socket, message)
            messages, documents = read_until_pong(socket)
            if messages:
                assert [m["code"] for m in messages] == ["SCOPE_DENIED"]
                return DENIED
            found += [
                LoroClient(content_of(each, entity, row_id)).row() for each in documents
            ]
    return titles(found)


SOCKET_READS: Final[dict[str, Driver]] = {
    "ws_replay": ws_replay, "sse_replay": sse_replay, "live_query": live_query,
    "live_window": live_window, "document": document,
}
NO_DOCUMENTS: Final = frozenset({("document", HIDDEN)})


# --- While rows change -----------------------------------------------------------------------


CHANNELS: Final = ("ws", "sse", "live_query", "live_window", "pull")


def heard(events: Iterable[tuple[str, str, str, bool]]) -> list[tuple[str, str]]:
    """Return what a caller heard: of each event the entity and the kind.

    Args:
        events: entity, row id, kind, and whether the event has the row.
    """
    present: set[str] = set()
    found = []
    for entity, row_id, kind, has_row in events:
        if kind != "delete":
            assert has_row, (entity, row_id, kind)
            kind = "update" if row_id in present else "insert"
            present.add(row_id)
        else:
            assert not has_row, (entity, row_id)
            present.discard(row_id)
        found.append((entity, kind))
    return found


class Channel:
    """What one caller hears of changes, by a stream, by live queries, or by a later pull.

    `open` before the changes, `read` after them.
    """

    def __init__(self, kind: str, stand: Stand, caller: Caller) -> None:
        self._kind, self._stand, self._caller = kind, stand, caller
        self._socket: WebSocketClient | None = None
        self._stream: Stream | None = None
        self._cursor = 0
        self._subscribed = 0

    def open(self) -> None:
        """Begin to listen."""
        self._cursor = self._stand.last_seq()
        if self._kind == "ws":
            self._socket = connect(self._stand, self._caller, f"/?since={self._cursor}")
        elif self._kind == "sse":
            path = f"/events?since={self._cursor}"
            self._stream = open_stream(self._stand, self._caller, path)
        elif self._kind in ("live_query", "live_window"):
            self._socket = connect(self._stand, self._caller, "/?changes=0")
            assert self._socket is not None
            condition: dict[str, Any] = {"title": self._kind}
            if self._kind == "live_window":
                condition |= {"$order": {"title": "asc"}, "$limit": 50}
            for entity in ENTITIES:
                send_message(self._socket, {
                    "type": "subscribe", "sub_id": entity, "entity": entity, "filter": condition,
                })
                answer = self._socket.read_json()
                assert answer["sub_id"] == entity
                if answer["type"] == "error":
                    assert answer["code"] in ("POLICY_DENIED", "SCOPE_DENIED"), answer
                else:
                    assert answer["rows"] == []
                    self._subscribed += 1

    def read(self, last: str) -> Heard:
        """Return what was heard before the insert of the row `last`, or `DENIED`."""
        if self._kind == "pull":
            path = f"/api/sync/pull?since={self._cursor}"
            answer = self._stand.call("GET", path, token=self._caller.token)
            if answer.code == "SCOPE_DENIED":
                return DENIED
            assert answer.status == 200 and not answer.body["has_more"]
            return self._before(last, iter(answer.body["changes"]))
        if self._stream is not None:
            return self._before(last, (event for _, event in iter(self._stream.event, None)))
        if self._socket is None:
            return DENIED
        if self._kind.startswith("live") and not self._subscribed:
            return []
        return self._before(last, iter(self._socket.read_json, None))

    def _before(self, last: str, changes: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
        events = []
        for change in changes:
            assert MARK not in json.dumps(change)
            if change["row_id"] == last:
                break
            entity = change["entity"] if "entity" in change else change["sub_id"]
            events.append((entity, change["row_id"], change["kind"], "data" in change))
        return heard(events)

    def close(self) -> None:
        """Close what is open."""
        for each in (self._socket, self._stream):
            if each is not None:
                each.close()
