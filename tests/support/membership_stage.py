"""A hub, pulls and a store whose policies ask memberships, in the test's process.

`MembershipStage` has the parts of one ws worker without a bus, with its replay. `Replica` is a
client: it holds the rows of the events that it gets, drops an event whose seq is not above its
cursor as published clients do, and refuses an image that its caller could never read.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import gevent
import orjson

from pylon import config as settings
from pylon.app import build_app
from pylon.auth_context import ADMIN, AuthContext, Caller
from pylon.changelog.feed import Feed as LogFeed
from pylon.changelog.pull import build_delta, stream_snapshot
from pylon.changelog.scope import parse_scope
from pylon.clock import ManualClock
from pylon.errors import PylonError, ResyncRequired
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import RuleSet
from pylon.query.rows import Query
from pylon.storage.interface import Reader, Store
from pylon.storage.related import StoredRelated
from tests.support.database import Database
from tests.support.hub_peer import arrivals
from tests.support.remote_store import RemoteStore
from workers.hub.connection import Connection
from workers.hub.feed import Feed
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.hub.related_replay import RelatedReplay
from workers.ws import frames
from workers.ws.live_queries import LiveQueries
from workers.ws.transport import WebSocketTransport

MEMBER = "exists(Member, roomId == data.roomId, userId == auth.userId)"
READ_RULES = {
    "Member": "data.userId == auth.userId",
    "Ban": "false",
    "Room": "true",
    "Message": MEMBER,
    "Note": f"data.ownerId == auth.userId || {MEMBER}",
    "Open": "!exists(Ban, roomId == data.roomId, userId == auth.userId)",
    "Deep": "exists(Room, name == data.roomId, exists(Member, roomId == Room.name,"
            " userId == auth.userId))",
    "Priced": "exists(Member, userId == auth.userId, price == data.price)",
    "Unpriced": "!exists(Member, userId == auth.userId, price == data.price)",
    "Since": "exists(Member, userId == auth.userId, at == data.at)",
    "Ranked": "exists(Member, roomId == data.roomId, userId == auth.userId, level >= data.level)",
}
_FIELDS = {
    "Member": ("roomId", "userId", "level", "price", "at", "note"),
    "Ban": ("roomId", "userId"),
    "Room": ("name",),
}
_JUDGED_FIELDS = ("text", "roomId", "ownerId", "level", "price", "at")
_TYPES = {"level": "int", "price": "decimal", "at": "datetime"}


def _entity(name: str) -> dict[str, Any]:
    fields = [
        {"name": field, "type": _TYPES.get(field, "string"), "optional": True}
        for field in _FIELDS.get(name, _JUDGED_FIELDS)
    ]
    indexes = []
    if name in ("Member", "Ban"):
        indexes = [{"name": f"by_{name}", "fields": ["userId", "roomId"], "unique": False}]
        if name == "Member":
            indexes += [
                {"name": f"by_{field}", "fields": ["userId", field], "unique": False}
                for field in ("price", "at")
            ]
    elif name == "Room":
        indexes = [{"name": "by_name", "fields": ["name"], "unique": False}]
    else:
        indexes = [{"name": f"{name}_by_room", "fields": ["roomId"], "unique": False}]
    return {"name": name, "fields": fields, "indexes": indexes, "crdt": False}


MEMBERSHIP_MANIFEST: dict[str, Any] = {
    "name": "memberships",
    "entities": [_entity(name) for name in READ_RULES],
    "policies": [
        {"name": name, "entity": name, "allowRead": rule} for name, rule in READ_RULES.items()
    ],
}


class MembershipStage:
    """See the module."""

    def __init__(self, folder: Path, *, is_remote: bool = False) -> None:
        """Args: `is_remote`: reads switch greenlets, as those of another server do."""
        config = settings.load(
            {"PYLON_DEV_MODE": "true", "PYLON_DB_PATH": str(folder / "a.db")}
        ).config
        self.clock = ManualClock()
        manifest = parse_manifest(orjson.dumps(MEMBERSHIP_MANIFEST).decode(), "manifest.json")
        self.app = build_app(config, manifest, clock=self.clock)
        self.database = Database(config.db_path, self.app, self.clock)
        self.pool: Store = self.database.pool
        if is_remote:
            self.pool = RemoteStore(self.database.pool)
        rules = {name: self.app.rules.for_entity(name) for name in manifest.by_name}
        self.hub = Hub(
            rules, WebSocketTransport("ws", 1_024), self.clock,
            StoredRelated(self.pool.point_inline),
        )
        self.feed = Feed(None, History(self.pool), self.hub)  # type: ignore[arg-type]  # no bus
        self.feed.start()
        self.replay = RelatedReplay(self.hub, self.app.rules, self.pool, self.feed)
        self.caught_up: list[Connection] = []
        self.refused: list[PylonError] = []
        self.hub.on_behind(self.resume)
        self._running: list[gevent.Greenlet] = []
        self.live = LiveQueries(self.app, self.pool, self.feed, self.hub, self.clock)
        self.hub.on_closed(self.live.drop_connection)
        self.live.on_restart(
            lambda *task: self._running.append(gevent.spawn(self.live.handle_message, *task))
        )
        self.replicas: list[Replica] = []
        # By caller: every image of every row that the caller could read at a commit.
        self.readable: dict[AuthContext, set[tuple[str, bytes]]] = {}

    def close(self) -> None:
        gevent.joinall(self._running)
        for connection in self.hub.connections:
            connection.abort()
        self.database.close()

    def resume(self, connection: Connection, cursor: int) -> None:
        self.caught_up.append(connection)
        self.start(connection, cursor)

    def start(self, connection: Connection, cursor: int) -> None:
        """Bring a connection up to date in a greenlet."""
        self._running.append(gevent.spawn(self._run, connection, cursor))

    def _run(self, connection: Connection, cursor: int) -> None:
        try:
            self.replay.run(connection, cursor)
        except PylonError as error:
            self.refused.append(error)
            connection.abort()

    def carry_out(
        self, ops: list[tuple[str, str, int, dict[str, Any]]], number: int,
        one_commit: bool = False,
    ) -> None:
        """Put or drop rows; the feed does not hear of it before `settle`."""
        commits = [ops] if one_commit else [[op] for op in ops]
        for commit in commits:
            made = []
            known = {(name, row_id) for name in READ_RULES for row_id in self.rows(name, ADMIN)}
            for action, entity, row_number, values in commit:
                row_id = f"{row_number:040x}"
                key = entity, row_id
                body = {**values, "text": f"t{number}"} if entity not in _FIELDS else values
                body = {k: v for k, v in body.items() if v is not None}
                if action == "drop" and key in known:
                    known.discard(key)
                    made.append(self.database.delete(entity, row_id))
                elif action == "put" and key in known:
                    made.append(self.database.update(entity, row_id, **body))
                elif action == "put":
                    known.add(key)
                    made.append(self.database.insert(entity, row_id, **body))
            if made:
                self.database.commit(*made)
            for auth, seen in self.readable.items():
                seen |= {
                    (entity, orjson.dumps(row)) for entity in READ_RULES
                    for row in self.rows(entity, auth).values()
                }

    def settle(self) -> None:
        """The feed publishes all that is committed, and everybody gets it."""
        self.feed.check_head()
        while self._running:
            running, self._running = self._running, []
            gevent.joinall(running)
        for replica in self.replicas:
            replica.listen()

    def rows(
        self, entity: str, auth: AuthContext, rules: RuleSet | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return the rows that a caller may read, by the store; `rules` may be those of a scope."""
        where = (rules or self.app.rules).for_entity(entity).readable_by(auth)

        def read(reader: Reader) -> list[bytes]:
            return reader.rows(entity, Query(where, 10_000))

        return {row["id"]: row for row in map(orjson.loads, self.pool.point(read))}


class Replica:
    """A client of a `MembershipStage`."""

    def __init__(
        self, stage: MembershipStage, auth: AuthContext, is_live: bool = True,
        entities: list[str] | None = None, filters: dict[str, Any] | None = None,
    ) -> None:
        """Args: `entities` and `filters` are those of its scope."""
        self._stage = stage
        self.auth = auth
        self.scope = parse_scope(stage.app.rules, stage.app.manifest, entities, filters)
        self._rules = stage.app.rules if self.scope is None else self.scope.rules
        self.cursor = 0
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []  # others than events
        stage.readable.setdefault(auth, set())
        self._is_live = is_live
        self._received = b""
        if is_live:
            stage.replicas.append(self)

    def pull(self) -> None:
        """Pull to the head of the log; a refused cursor begins again."""
        has_more = True
        while has_more:
            if self.cursor == 0:
                self.rows.clear()
                text = b"".join(stream_snapshot(
                    self._stage.pool, self._stage.app.manifest, self._stage.app.rules, self.auth,
                    scope=self.scope,
                ))
            else:
                try:
                    feed = LogFeed(self._stage.pool)
                    text = build_delta(feed, self._rules, self.auth, self.cursor).body
                except ResyncRequired:
                    self.cursor = 0
                    continue
            answer = orjson.loads(text)
            for event in answer["changes"]:
                self._apply(event)
            has_more = answer["has_more"]
            assert not has_more or answer["cursor"]["last_seq"] > self.cursor
            self.cursor = max(self.cursor, answer["cursor"]["last_seq"])

    def connect(self) -> None:
        """Pull, then connect at the cursor, as published clients do."""
        self.pull()
        self._open(self.cursor)

    def connect_at(self, cursor: int) -> None:
        """Connect without a cursor; the server begins at an earlier one."""
        self._open(cursor)

    def _open(self, cursor: int) -> None:
        ours, self._socket = socket.socketpair()
        ours.setblocking(False)
        self._socket.setblocking(False)
        hub = self._stage.hub
        self.connection = Connection(ours, hub.transport, hub, Caller(self.auth), "::1")
        self.connection.scope = self.scope
        hub.add(self.connection)
        self.connection.start()
        if not self._stage.replay.finish_at_once(self.connection, cursor):
            self._stage.start(self.connection, cursor)

    def reconnect(self) -> None:
        """Lose the connection with what is under way, and come back."""
        self.disconnect()
        self.connect()

    def disconnect(self) -> None:
        """Lose the connection with what is under way."""
        self.connection.abort()
        self._socket.close()
        self._received = b""

    def listen(self) -> list[dict[str, Any]]:
        """Take the live events that have arrived, and return all messages so far."""
        for data in arrivals(self._socket, self.connection):
            self._received += data
        while len(self._received) >= 2:
            size, head = self._received[1], 2
            if size >= 126:
                head += 2 if size == 126 else 8
                size = int.from_bytes(self._received[2:head], "big")
            if len(self._received) < head + size:
                break
            if self._received[0] & 0x0F == frames.TEXT:
                event = orjson.loads(self._received[head : head + size])
                if "type" in event:
                    self.messages.append(event)
                elif event["seq"] > self.cursor:
                    self._apply(event)
                    self.cursor = event["seq"]
            self._received = self._received[head + size :]
        return self.messages

    def kinds(self) -> list[tuple[str, str]]:
        """Return entity and kind of the events so far."""
        return [(event["entity"], event["kind"]) for event in self.events]

    def _apply(self, event: dict[str, Any]) -> None:
        key = event["entity"], event["row_id"]
        self.events.append(event)
        if event["kind"] == "delete":
            assert "data" not in event
            self.rows.pop(key, None)
            return
        image = (event["entity"], orjson.dumps(event["data"]))
        assert image in self._images(), f"{self.auth.user_id} never could read {event}"
        self.rows[key] = event["data"]

    def _images(self) -> set[tuple[str, bytes]]:
        return self._stage.readable[self.auth] | {
            (entity, orjson.dumps(row)) for entity in READ_RULES
            for row in self._stage.rows(entity, self.auth).values()
        }

    def check(self, when: str) -> None:
        """Compare with what the caller may read now."""
        expected = {
            (entity, row_id): row for entity in READ_RULES
            if self.scope is None or self.scope.includes(entity)
            for row_id, row in self._stage.rows(entity, self.auth, self._rules).items()
        }
        assert self.rows == expected, f"{self.auth.user_id}, {when}"
