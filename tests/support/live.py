"""Live queries in the test's process: a hub with its feed over a real store, and strict clients.

`LiveStage` has the parts of one ws worker without a bus. `LiveClient` applies each message and
refuses one that does not fit what it holds; `LiveSet` is one live query as a client holds it, and
`LiveWindow` one with an order and a limit.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pylon import config as settings
from pylon import limits
from pylon.app import App, build_app
from pylon.auth_context import AuthContext, Caller
from pylon.clock import ManualClock
from pylon.errors import PylonError
from pylon.manifest.model import Manifest
from pylon.query.conditions import guarded
from pylon.query.parse import parse_where
from pylon.query.rows import Query, parse_filter
from pylon.storage.events import ChangeBatch
from pylon.storage.interface import SERVER, Reader, Store
from pylon.storage.ops import (
    RowOp,
)
from pylon.storage.related import StoredRelated
from tests.support import stores
from tests.support.database import Database
from tests.support.hub_peer import arrivals
from workers.hub.connection import Connection
from workers.hub.feed import Feed
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.conversation import error_message, send_json
from workers.ws.live_queries import LiveQueries
from workers.ws.transport import WebSocketTransport

T = TypeVar("T")
Rows = dict[str, dict[str, Any]]


class LiveSet:
    """One live query as its client holds it."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.seq = 0
        self.complete = False
        self.messages = 0
        self.kinds: list[str] = []

    def take(self, message: dict[str, Any]) -> None:
        """Apply one message of the server; it must be the next that makes sense."""
        if message["type"] == "subscribed":
            assert not self.complete, "a result after the result"
            assert self.seq in (0, message["seq"]), "one result has one seq"
            self.seq, self.complete = message["seq"], message["last"]
            self.messages += 1
            for row in message["rows"]:
                assert row["id"] not in self.rows, "a row twice in a result"
                self.rows[row["id"]] = row
            return
        assert message["type"] == "diff", message
        assert "entity" not in message, "published clients would take it for a change"
        assert self.complete, "a diff within the result"
        assert message["seq"] > self.seq, "a diff twice, or out of order"
        self.seq = message["seq"]
        kind, row_id = message["kind"], message["row_id"]
        self.kinds.append(kind)
        assert (row_id in self.rows) is (kind != "insert"), (kind, message)
        if kind == "delete":
            assert "data" not in message
            del self.rows[row_id]
        else:
            assert message["data"]["id"] == row_id
            self.rows[row_id] = message["data"]


class LiveWindow:
    """One live window as its client holds it: rows in order."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.limit: int = body.get("$limit", limits.LIVE_WINDOW_ROWS)
        self.is_before = body.get("$before") is not None
        self.rows: list[dict[str, Any]] = []
        self.added: list[dict[str, Any]] = []  # by a `more` whose last message is missing
        self.seq = 0
        self.complete = False
        self.kinds: list[str] = []

    def take(self, message: dict[str, Any]) -> None:
        """Apply one message of the server; it must be the next that makes sense."""
        assert message["seq"] >= self.seq, "out of order"
        self.seq = message["seq"]
        if message["type"] in ("subscribed", "more"):
            assert self.complete is (message["type"] == "more")
            self.added += message["rows"]
            if message["last"]:
                self.complete = True
                parts = [self.added, self.rows] if self.is_before else [self.rows, self.added]
                self.rows, self.added = parts[0] + parts[1], []
                ids = self.ids
                assert len(set(ids)) == len(ids), "a row twice"
            return
        assert message["type"] == "diff", message
        assert "entity" not in message, "published clients would take it for a change"
        assert self.complete and not self.added, "a diff within rows"
        kind, row_id = message["kind"], message["row_id"]
        self.kinds.append(kind)
        assert (row_id in self.ids) is (kind != "insert"), message
        place = len(self.rows)
        if kind != "insert":
            place = self.ids.index(row_id)
            del self.rows[place]
        if kind == "delete":
            assert message.keys() == {"type", "seq", "kind", "row_id", "sub_id"}
            return
        assert kind == "update" or "after" in message
        if "after" in message:
            after = message["after"]
            place = 0 if after is None else self.ids.index(after) + 1
        assert message["data"]["id"] == row_id
        self.rows.insert(place, message["data"])
        assert len(self.rows) <= self.limit, "more rows than the limit"

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows]


class RacingStore:
    """A store whose scans let `meanwhile` happen between the read and its answer, as other
    greenlets may."""

    def __init__(self, pool: Store) -> None:
        self._pool = pool
        self.meanwhile: Callable[[], None] | None = None

    local_reads = True

    def point(self, read: Callable[[Reader], T], /) -> T:
        return self._pool.point(read)

    def point_inline(self, read: Callable[[Reader], T], /) -> T:
        return self._pool.point_inline(read)

    def release_memory(self) -> None:
        self._pool.release_memory()

    def close(self) -> None:
        self._pool.close()

    def scan(
        self, read: Callable[[Reader], T], inline: bool = True, caller: str = SERVER
    ) -> T:
        found = self._pool.point(read)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return found


class LiveStage:
    """Engine, store, feed, hub and live queries of one worker, without a bus."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        config = settings.load(
            {"PYLON_DEV_MODE": "true", **stores.settings_at(folder / "a.db")}
        ).config
        self.clock = ManualClock()
        self.app: App = build_app(config, manifest, clock=self.clock)
        self.database = Database(config.db_path, self.app, self.clock)
        self.engine, self.pool = self.database.engine, self.database.pool
        self.insert = self.database.insert
        self.update, self.delete = self.database.update, self.database.delete
        self.store = RacingStore(self.pool)
        self.hub = Hub(
            {name: self.app.rules.for_entity(name) for name in manifest.by_name},
            WebSocketTransport("ws", 1_024), self.clock, StoredRelated(self.pool.point_inline),
        )
        self.feed = Feed(None, History(self.pool), self.hub)  # type: ignore[arg-type]  # no bus
        self.feed.start()
        self.live = LiveQueries(self.app, self.store, self.feed, self.hub, self.clock)
        self.hub.on_closed(self.live.drop_connection)

    def hold_sets(self, auth: AuthContext) -> None:
        """Keep a caller's memberships as sets, as the hub does when a connection joins."""
        self.publish()
        sets = self.pool.point(
            lambda reader: self.hub.memberships.read(reader, auth, limits.MEMBERSHIP_KEYS)
        )
        self.hub.memberships.hold(auth, sets)

    def close(self) -> None:
        for connection in self.hub.connections:
            connection.abort()
        self.database.close()

    def write(self, *ops: RowOp) -> None:
        """Commit `ops` as one batch; the feed does not hear of it before `publish`."""
        self.database.commit(*ops)

    def publish(self) -> None:
        """The feed publishes all that is committed."""
        self.feed.check_head()

    def deliver(self) -> None:
        """The bus delivers all that is committed, as one batch."""
        seq = self.feed.tail.last_seq
        events = self.pool.point(lambda reader: reader.events_after(seq, 1_000))
        self.feed.take([ChangeBatch(seq, events)])

    @property
    def is_current(self) -> bool:
        return self.feed.tail.last_seq >= self.engine.head

    def query(self, entity: str, body: Any, auth: AuthContext) -> Rows:
        """What a fresh query answers."""
        allowed = self.app.rules.for_entity(entity).readable_by(auth)
        where = guarded(allowed, parse_where(self.app.manifest.by_name[entity], body))
        found = self.pool.point(lambda reader: reader.rows(entity, Query(where, 100_000)))
        return {row["id"]: row for row in map(orjson.loads, found)}


    def query_window(self, entity: str, body: Any, limit: int, auth: AuthContext) -> list[Any]:
        """What `POST /api/query` answers."""
        allowed = self.app.rules.for_entity(entity).readable_by(auth)
        query = parse_filter(
            self.app.manifest.by_name[entity], {**body, "$limit": limit}, limit, allowed
        )
        return [*map(orjson.loads, self.pool.point(lambda reader: reader.rows(entity, query)))]


class LiveClient:
    """A connection of a LiveStage and the client behind it."""

    def __init__(self, world: LiveStage, auth: AuthContext, deflate_window: int = 0) -> None:
        """`deflate_window`: the window's bits, if it takes packed messages."""
        ours, self.socket = socket.socketpair()
        ours.setblocking(False)
        self.socket.setblocking(False)
        self._world = world
        self.received = b""
        self.sets: dict[str, LiveSet] = {}
        self.windows: dict[str, LiveWindow] = {}
        self.asked: dict[str, tuple[str, Any]] = {}
        self.errors: list[dict[str, Any]] = []
        self.packed = 0  # messages that were
        self.connection = Connection(ours, world.hub.transport, world.hub, Caller(auth), "::1")
        self.connection.deflate_window = deflate_window
        world.hub.add(self.connection)
        self.connection.start()

    def say(self, **message: Any) -> None:
        """As `Conversation` has it, but at once."""
        try:
            self._world.live.handle_message(self.connection, message)
        except PylonError as ex:
            send_json(self.connection, error_message(ex, message))
        self.listen()

    def subscribe(self, sub_id: str, entity: str, body: Any) -> None:
        self.listen()
        self.sets[sub_id], self.asked[sub_id] = LiveSet(), (entity, body)
        self.say(type="subscribe", sub_id=sub_id, entity=entity, filter=body)

    def subscribe_window(self, sub_id: str, entity: str, body: Any) -> None:
        self.listen()
        self.windows[sub_id], self.asked[sub_id] = LiveWindow(body), (entity, body)
        self.say(type="subscribe", sub_id=sub_id, entity=entity, filter=body)

    def widen(self, sub_id: str, count: int) -> None:
        self.listen()
        if sub_id in self.windows:
            self.windows[sub_id].limit += count
        self.say(type="more", sub_id=sub_id, count=count)

    def listen(self) -> None:
        """Take all that has been sent."""
        for data in arrivals(self.socket, self.connection):  # another greenlet may listen too
            self.received += data
        for text in self._texts():
            message = orjson.loads(text)
            if message["type"] == "unsubscribed":
                self.sets.pop(message["sub_id"], None)
                self.windows.pop(message["sub_id"], None)
            elif message["type"] == "error":
                self.errors.append(message)
                if message["for"] != "more":
                    self.sets.pop(message.get("sub_id"), None)
                    self.windows.pop(message.get("sub_id"), None)
            elif message["sub_id"] in self.windows:
                self.windows[message["sub_id"]].take(message)
            else:
                self.sets[message["sub_id"]].take(message)

    def _texts(self) -> Sequence[bytes]:
        """The payloads of the whole frames that have arrived."""
        found = []
        while len(self.received) >= 2:
            size, head = self.received[1], 2
            if size >= 126:
                head += 2 if size == 126 else 8
                size = int.from_bytes(self.received[2:head], "big")
            if len(self.received) < head + size:
                break
            if self.received[0] & 0x0F == frames.TEXT:
                payload = self.received[head : head + size]
                if self.received[0] & 0x40:
                    inflater = zlib.decompressobj(-self.connection.deflate_window)
                    payload = inflater.decompress(payload + b"\x00\x00\xff\xff")
                    self.packed += 1
                found.append(payload)
            self.received = self.received[head + size :]
        return found
