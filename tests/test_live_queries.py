"""Live queries: the result and the diffs together are always what a fresh query answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gevent
import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pylon import limits, metrics
from pylon.auth_context import (
    ADMIN,
    ANONYMOUS,
    AuthContext,
    Caller,
)
from pylon.changelog.tail import Tail
from pylon.manifest_loader import parse_manifest
from pylon.storage.records import LogRetention
from tests.support.examples import count_examples
from tests.support.live import LiveClient, LiveSet, LiveStage
from tests.support.measured import total
from tests.support.stage import MANIFEST, READ_RULES
from tests.support.storage import row_id
from tests.support.wait import run_greenlets_until
from workers.hub.connection import Connection
from workers.ws import live_results

pytestmark = pytest.mark.stores

APP = parse_manifest(orjson.dumps(MANIFEST).decode(), "manifest.json")
ADA, BOB = AuthContext(user_id="ada"), AuthContext(user_id="bob")
CONTEXTS = [ANONYMOUS, ADMIN, ADA, BOB, AuthContext(user_id="ada", tenant_id="t")]
ENTITIES = [name for name in READ_RULES if name != "Secret"]
FILTERS: list[dict[str, Any]] = [
    {}, {"text": "a"}, {"text": {"$in": ["a", "b"]}}, {"text": {"$in": []}}, {"shared": True},
    {"shared": None}, {"ownerId": "ada"}, {"ownerId": {"$exists": False}, "text": {"$ne": "a"}},
    {"text": {"$like": "A"}}, {"$or": [{"text": "b"}, {"shared": False}]}, {"id": row_id(1)},
    {"$and": [{"text": {"$gte": "b"}}, {"ownerId": {"$nin": ["bob"]}}]},
]
WRITE = st.tuples(
    st.sampled_from(ENTITIES), st.integers(1, 4),
    st.fixed_dictionaries({}, optional={
        "text": st.sampled_from(["a", "b", "ab"]),
        "ownerId": st.sampled_from(["ada", "bob", None]),
        "shared": st.sampled_from([True, False, None]),
    }) | st.none(),  # a delete
)
WRITES = st.lists(WRITE, min_size=1, max_size=6)


class Machine(RuleBasedStateMachine):
    """Random writes; clients with random live queries, and a feed that lags as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.world = LiveStage(Path(self.folder.name), APP)
        # A short tail, so that catching up also reads the log.
        self.world.feed._tail = Tail(self.world.engine.head, max_events=3)
        self.there: set[tuple[str, int]] = set()
        self.clients = [LiveClient(self.world, auth) for auth in CONTEXTS]

    def teardown(self) -> None:
        self.world.close()
        self.folder.cleanup()

    def commit(self, writes: list[tuple[str, int, dict[str, Any] | None]]) -> None:
        ops: list[Any] = []
        for entity, number, body in writes:
            place = entity, number
            if body is None and place in self.there:
                ops.append(self.world.delete(entity, row_id(number)))
                self.there.discard(place)
            elif body is not None and place in self.there:
                ops.append(self.world.update(entity, row_id(number), **body))
            elif body is not None:
                ops.append(self.world.insert(entity, row_id(number), **{"text": "", **body}))
                self.there.add(place)
        if ops:
            self.world.write(*ops)

    @rule(writes=WRITES, publish=st.booleans())
    def write(self, writes: list[tuple[str, int, dict[str, Any] | None]], publish: bool) -> None:
        self.commit(writes)
        if publish:
            self.world.publish()

    @rule(
        who=st.integers(0, len(CONTEXTS) - 1), sub_id=st.sampled_from(["1", "2", "drei"]),
        entity=st.sampled_from(ENTITIES), body=st.sampled_from(FILTERS),
        meanwhile=WRITES | st.none(), publish=st.booleans(),
    )
    def subscribe(
        self, who: int, sub_id: str, entity: str, body: Any,
        meanwhile: list[tuple[str, int, dict[str, Any] | None]] | None, publish: bool,
    ) -> None:
        if meanwhile is not None:
            self.world.store.meanwhile = lambda: self.write(meanwhile, publish)
        client = self.clients[who]
        client.subscribe(sub_id, entity, body)
        self.world.store.meanwhile = None
        allowed = entity != "Member" or client.connection.caller.auth.user_id is not None
        assert (sub_id in client.sets) is allowed
        if not allowed:
            assert client.errors.pop()["code"] == "POLICY_DENIED"

    @rule(who=st.integers(0, len(CONTEXTS) - 1), sub_id=st.sampled_from(["1", "2", "none"]))
    def unsubscribe(self, who: int, sub_id: str) -> None:
        self.clients[who].say(type="unsubscribe", sub_id=sub_id)
        assert sub_id not in self.clients[who].sets

    @rule(who=st.integers(0, len(CONTEXTS) - 1), auth=st.sampled_from(CONTEXTS))
    def become(self, who: int, auth: AuthContext) -> None:
        client = self.clients[who]
        asked = sorted(client.sets)
        self.world.live.drop_connection(client.connection)
        client.connection.caller = Caller(auth)
        client.listen()
        assert sorted(e["sub_id"] for e in client.errors) == asked
        assert {e["code"] for e in client.errors} <= {"IDENTITY_CHANGED"}
        client.errors.clear()

    @rule(who=st.integers(0, len(CONTEXTS) - 1))
    def reconnect(self, who: int) -> None:
        client = self.clients[who]
        client.connection.abort()
        self.clients[who] = LiveClient(self.world, client.connection.caller.auth)

    @rule()
    def publish(self) -> None:
        self.world.publish()

    @invariant()
    def every_client_has_what_a_query_answers(self) -> None:
        for client in self.clients:
            client.listen()
            assert client.errors == []
            assert client.connection.is_open
            if self.world.is_current:
                for sub_id, held in client.sets.items():
                    assert held.complete
                    wanted = self.world.query(
                        *client.asked[sub_id], client.connection.caller.auth
                    )
                    assert held.rows == wanted, (sub_id, client.asked[sub_id])
        count = sum(len(client.sets) for client in self.clients)
        assert total(metrics.LIVE_QUERIES) == count


def test_each_set_is_what_a_query_answers() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine, settings=settings(max_examples=count_examples(80), stateful_step_count=25),
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LiveStage]:
    made = LiveStage(tmp_path, APP)
    yield made
    made.close()


def test_diffs_are_exact(world: LiveStage) -> None:
    client = LiveClient(world, ADA)
    world.write(world.insert("Note", row_id(1), text="a", shared=True))
    client.subscribe("s", "Note", {"text": "a"})
    assert client.sets["s"].seq == world.engine.head
    for op in (
        world.insert("Note", row_id(2), text="b", shared=True),  # outside the filter
        world.insert("Note", row_id(3), text="a", ownerId="bob"),  # outside the policy
        world.insert("Note", row_id(4), text="a", ownerId="ada"),
        world.update("Note", row_id(2), text="a"),
        world.update("Note", row_id(3), shared=True),
        world.update("Note", row_id(4), shared=True),
        world.update("Note", row_id(1), text="b"),  # leaves the filter
        world.update("Note", row_id(3), shared=None),  # leaves the policy
        world.delete("Note", row_id(3)),
        world.delete("Note", row_id(1)),
        world.delete("Note", row_id(4)),
        world.insert("Public", row_id(9), text="a"),
    ):
        world.write(op)
        world.publish()
    client.listen()
    held = client.sets["s"]
    assert held.kinds == ["insert", "insert", "insert", "update", "delete", "delete", "delete"]
    assert held.rows.keys() == {row_id(2)}
    before = total(metrics.LIVE_DIFFS)
    client.say(type="unsubscribe", sub_id="s")
    world.write(world.update("Note", row_id(2), text="b"))
    world.publish()
    assert total(metrics.LIVE_DIFFS) == before
    assert len(world.live._watches) == 0


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        ({"entity": "Public"}, "INVALID_DATA", "sub_id"),
        ({"sub_id": 1, "entity": "Public"}, "INVALID_DATA", "sub_id"),
        ({"sub_id": "", "entity": "Public"}, "INVALID_DATA", "sub_id"),
        ({"sub_id": "x" * 201, "entity": "Public"}, "INVALID_DATA", "200"),
        ({"sub_id": "s"}, "POLICY_DENIED", "denied"),
        ({"sub_id": "s", "entity": "Nope"}, "POLICY_DENIED", "denied"),
        ({"sub_id": "s", "entity": "Secret"}, "POLICY_DENIED", "denied"),
        ({"sub_id": "s", "entity": "Public", "filter": []}, "INVALID_QUERY", "object"),
        ({"sub_id": "s", "entity": "Public", "filter": {"$offset": 1}}, "INVALID_QUERY", "$or"),
        ({"sub_id": "s", "entity": "Public", "filter": {"$search": "a"}}, "INVALID_QUERY", "$or"),
        ({"sub_id": "s", "entity": "Public", "filter": {"x": 1}}, "INVALID_COLUMN", "valid"),
    ],
)
def test_refusals_name_the_subscription(
    world: LiveStage, message: dict[str, Any], code: str, says: str
) -> None:
    client = LiveClient(world, ADA)
    client.say(type="subscribe", **message)
    (error,) = client.errors
    assert (error["for"], error["code"]) == ("subscribe", code)
    assert says in error["message"]
    if isinstance(message.get("sub_id"), str):
        assert error["sub_id"] == message["sub_id"]
    assert total(metrics.LIVE_QUERIES) == 0


def test_a_refused_subscription_ends_the_one_that_it_replaces(world: LiveStage) -> None:
    client = LiveClient(world, ADA)
    client.subscribe("s", "Public", {})
    client.say(type="subscribe", sub_id="s", entity="Secret")
    world.write(world.insert("Public", row_id(1), text="a"))
    world.publish()
    client.listen()
    assert [error["code"] for error in client.errors] == ["POLICY_DENIED"]
    assert total(metrics.LIVE_QUERIES) == 0


def test_limits(world: LiveStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LIVE_QUERIES", 2)
    monkeypatch.setattr(limits, "LIVE_QUERIES_TOTAL", 3)
    monkeypatch.setattr(limits, "LIVE_SCANNED", 1)
    monkeypatch.setattr(limits, "LIVE_BYTES", 4_000)
    monkeypatch.setattr(limits, "LIVE_ROWS", 1)
    ada, bob = LiveClient(world, ADA), LiveClient(world, BOB)

    def answer(client: LiveClient, sub_id: str, entity: str, body: Any) -> str:
        client.subscribe(sub_id, entity, body)
        return client.errors.pop()["code"] if client.errors else "ok"

    assert answer(ada, "1", "Public", {}) == "ok"
    assert answer(ada, "1", "Public", {}) == "ok", "it is replaced, not added"
    assert answer(bob, "1", "Public", {}) == "ok", "the same once more is no further one"
    assert answer(bob, "2", "Public", {"shared": {"$ne": True}}) == "LIMIT_EXCEEDED"
    many = {"text": {"$in": [f"{n}" for n in range(50)]}}
    assert answer(bob, "2", "Public", many) == "LIMIT_EXCEEDED"
    assert answer(bob, "2", "Public", {"text": "a"}) == "ok"
    assert answer(bob, "3", "Public", {"text": "b"}) == "LIMIT_EXCEEDED"
    assert answer(ada, "2", "Public", {"text": "b"}) == "UNAVAILABLE"
    bob.connection.abort()
    assert answer(ada, "2", "Public", {"text": "b"}) == "ok"
    world.write(*(world.insert("Note", row_id(n), text="a", shared=True) for n in (1, 2)))
    assert answer(ada, "2", "Note", {"text": "a"}) == "LIMIT_EXCEEDED"
    assert answer(ada, "2", "Note", {"id": row_id(1)}) == "ok"


def test_large_results_come_in_several_messages(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIVE_PAGE_BYTES", 1_000)
    monkeypatch.setattr(limits, "SNAPSHOT_PAGE_ROWS", 7)
    world.write(*(world.insert("Public", row_id(n), text="x" * 200) for n in range(40)))
    world.write(world.insert("Public", row_id(40), text="y" * 5_000))
    client = LiveClient(world, ADA)
    client.subscribe("s", "Public", {})
    held = client.sets["s"]
    assert held.complete and len(held.rows) == 41
    assert held.messages >= 10
    monkeypatch.setattr(limits, "LIVE_RESULT_BYTES", 10_000)
    client.subscribe("s", "Public", {})
    assert client.errors.pop()["code"] == "LIMIT_EXCEEDED"
    monkeypatch.setattr(limits, "LIVE_RESULT_BYTES", 100_000)
    monkeypatch.setattr(limits, "LIVE_SENDING_BYTES", 5_000)
    client.subscribe("s", "Public", {})
    assert client.errors.pop()["code"] == "UNAVAILABLE"


def test_results_and_diffs_are_packed_for_those_who_agreed(world: LiveStage) -> None:
    clients = [LiveClient(world, ADA, deflate_window) for deflate_window in (0, 12, 10)]
    world.write(world.insert("Public", row_id(1), text="x" * 2_000))
    for client in clients:
        client.subscribe("s", "Public", {})
    world.write(world.insert("Public", row_id(2), text="y" * 2_000), world.delete(
        "Public", row_id(1)
    ))
    world.publish()
    for client in clients:
        client.listen()
        assert client.sets["s"].rows.keys() == {row_id(2)}
    assert [client.packed for client in clients] == [0, 2, 2]


def test_a_client_that_takes_its_result_slowly_counts_as_alive(
    world: LiveStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    wait_drained = Connection.wait_drained

    def counted(connection: Connection, timeout_s: float) -> bool:
        looks.append(timeout_s)
        return wait_drained(connection, timeout_s)

    monkeypatch.setattr(Connection, "wait_drained", counted)
    monkeypatch.setattr(live_results, "_WAIT_S", 0.005)
    world.write(*(world.insert("Public", row_id(n), text="x" * 10_000) for n in range(400)))
    client = LiveClient(world, ADA)
    client.sets["s"] = LiveSet()
    message = {"type": "subscribe", "sub_id": "s", "entity": "Public"}
    asking = gevent.spawn(world.live.handle_message, client.connection, message)
    run_greenlets_until("the outbox fills", lambda: client.connection.outbox_bytes > 0)
    client.connection.heartbeats_unanswered = 1
    looks.clear()
    run_greenlets_until("the feed looks on", lambda: len(looks) > 3)
    assert client.connection.heartbeats_unanswered == 1, "it takes nothing"
    client.received += client.socket.recv(200_000)
    run_greenlets_until("a pong", lambda: client.connection.heartbeats_unanswered == 0)
    while not asking.dead:
        client.listen()
    client.listen()
    assert len(client.sets["s"].rows) == 400


def test_what_the_log_no_longer_has_ends_the_subscription(world: LiveStage) -> None:
    client = LiveClient(world, ADA)

    def meanwhile() -> None:
        for n in range(20):
            world.write(world.insert("Public", row_id(n), text="a"))
        world.publish()
        world.feed._tail = Tail(world.engine.head)
        world.engine.maintenance.prune_log(LogRetention(0, 2**40, 1_000))

    world.store.meanwhile = meanwhile
    client.subscribe("s", "Public", {})
    assert [error["code"] for error in client.errors] == ["RESYNC_REQUIRED"]
    assert total(metrics.LIVE_QUERIES) == 0


def test_a_client_that_does_not_read_is_closed_and_forgotten(world: LiveStage) -> None:
    client, other = LiveClient(world, ADA), LiveClient(world, ADA)
    client.subscribe("s", "Public", {})
    other.subscribe("s", "Public", {"text": "b"})
    for n in range(40):
        world.write(world.insert("Public", row_id(n), text="x" * 100_000))
        world.publish()
    assert not client.connection.is_open
    client.listen()
    world.write(world.insert("Public", row_id(99), text="b"))
    world.publish()
    other.listen()
    assert other.sets["s"].rows.keys() == {row_id(99)}
    client.connection.abort()
    assert total(metrics.LIVE_QUERIES) == 1


def test_only_what_a_change_concerns_is_judged(world: LiveStage) -> None:
    """By the filter's equality, or by the owner that the policy asks for."""
    clients = [LiveClient(world, AuthContext(user_id=f"u{n}")) for n in range(50)]
    for n, client in enumerate(clients):
        client.subscribe("text", "Public", {"text": f"t{n}"})
        client.subscribe("mine", "Mine", {})
    watches = world.live._watches._by_entity
    assert not watches["Public"].scanned and not watches["Mine"].scanned
    world.write(
        world.insert("Public", row_id(1), text="t7"),
        world.insert("Mine", row_id(2), text="x", ownerId="u7"),
    )
    world.publish()
    changes = world.feed.tail.changes_after(0) or []
    affected = [list(watches[c.event.entity].find_affected(c)) for c in changes]
    assert [len(found) for found in affected] == [1, 1]


def test_queries_that_nothing_can_match_come_and_go_with_others(world: LiveStage) -> None:
    client, nobody = LiveClient(world, ADA), LiveClient(world, ANONYMOUS)
    client.subscribe("none", "Mine", {"text": {"$in": []}})
    nobody.subscribe("none", "Mine", {})
    client.subscribe("some", "Mine", {})
    for one, sub_id in ((client, "some"), (client, "none"), (nobody, "none")):
        one.say(type="unsubscribe", sub_id=sub_id)
    assert total(metrics.LIVE_QUERIES) == len(world.live._watches) == 0


def test_equal_queries_share_a_watch_and_a_frame(world: LiveStage) -> None:
    clients = [LiveClient(world, auth) for auth in (ADA, BOB, ADMIN)]
    for client in clients:
        client.subscribe("s", "Public", {"text": "a", "shared": True})
    clients[0].subscribe("t", "Public", {"shared": True, "text": "a"})
    assert len(world.live._watches) == 1
    world.write(world.insert("Public", row_id(1), text="a", shared=True))
    world.publish()
    for client in clients:
        client.listen()
        assert all(held.rows.keys() == {row_id(1)} for held in client.sets.values())
