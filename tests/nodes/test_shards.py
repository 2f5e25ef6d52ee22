"""Shards of three nodes on one PostgreSQL, while nodes die, freeze and drain.

A trigger in the database notes every state that is stored: the generation and the owner of the
shard then, and whose connection stored it. It is the judge of "two homes never both save".
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import websocket

from pylon.storage.nodes import DEAD_AFTER_S, HEARTBEAT_S, LEASE_S
from tests.nodes.fleet import Node
from tests.support import stores
from tests.support.manifests import notes_app
from tests.support.ports import reserve_base_port
from tests.support.postgres import PostgresServer
from tests.support.server import ADMIN_TOKEN
from tests.support.shard_client import Player, user
from tests.support.wait import WAIT_S, wait_until
from tests.test_e2e_shards import APP

pytestmark = [
    pytest.mark.usefixtures("processes"), pytest.mark.slow, pytest.mark.timeout(400),
]

NAMES = ("a", "b", "c")
SHARDS = [f"steady:{number}" for number in range(6)]
# The end of a lease, the next heartbeat of another node, and its report to the workers.
TAKEN_OVER_S = LEASE_S + 2 * HEARTBEAT_S + WAIT_S
FROZEN_S = DEAD_AFTER_S + 3.0
TOLD_S = 0.5
AUDIT = """
    CREATE TABLE saves (number BIGSERIAL PRIMARY KEY, id TEXT, generation BIGINT, owner TEXT,
        tick BIGINT, writer TEXT);
    CREATE FUNCTION note_save() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.data IS DISTINCT FROM OLD.data THEN
            INSERT INTO saves (id, generation, owner, tick, writer) VALUES (NEW.id,
                NEW.generation, NEW.owner, NEW.tick, current_setting('application_name'));
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER note_save AFTER UPDATE ON _pylon_shards
        FOR EACH ROW EXECUTE FUNCTION note_save();
"""


class Trio:
    """Three nodes, and a look into their database."""

    def __init__(self, nodes: list[Node], url: str, server: PostgresServer) -> None:
        self.nodes = nodes
        self.server = server
        self.url = url
        self.token = user(nodes[0], "ada")

    def sql(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(text, values or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def owners(self) -> dict[str, tuple[str, int]]:
        """The node that has each shard under a lease that lasts, and the generation."""
        rows = self.sql(
            "SELECT s.id, n.node, s.generation FROM _pylon_shards AS s JOIN _pylon_nodes AS n "
            "ON n.lease = s.lease AND n.lease_until > clock_timestamp()"
        )
        return {shard_id: (node, generation) for shard_id, node, generation in rows}

    def node(self, name: str) -> Node:
        return self.nodes[NAMES.index(name)]

    def play(self, node: Node, shard: str, within_s: float = WAIT_S) -> Player:
        """Join a shard through a node, as soon as that admits the client."""
        until_s = time.monotonic() + within_s
        while True:
            try:
                player = Player(node, shard, token=self.token, sid="ada")
                player.frame()
            except (AssertionError, websocket.WebSocketException, OSError):
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.2)
                continue
            return player

    def read_sum(self, node: Node, shard: str) -> int:
        """The sum of a shard now, as a client of this node sees it."""
        player = self.play(node, shard)
        try:
            return total(player)
        finally:
            player.socket.close()

    def settle(self) -> None:
        """Wait until every node is up, knows the others and has a lease."""
        for node in self.nodes:
            node.wait_ready(2 * WAIT_S)
        wait_until("all live", lambda: self.sql(
            "SELECT count(*) FROM _pylon_nodes WHERE lease_until > clock_timestamp() "
            "AND roles LIKE '%%shards%%'"
        ) == [(3,)], 2 * WAIT_S)
        # They read the registry with the next heartbeat, and tell their workers.
        ((since,),) = self.sql("SELECT clock_timestamp()")
        wait_until("all have read the registry since", lambda: self.sql(
            "SELECT count(*) FROM _pylon_nodes WHERE seen_at > %s "
            "AND lease_until > clock_timestamp() AND roles LIKE '%%shards%%'", since
        ) == [(3,)], 2 * WAIT_S)
        time.sleep(TOLD_S)

    def problems(self) -> list[str]:
        """Return the faults of the states that were stored until now."""
        found = []
        last: dict[str, tuple[int, int]] = {}
        for shard_id, generation, owner, tick, writer in self.sql(
            "SELECT id, generation, owner, tick, writer FROM saves ORDER BY number"
        ):
            if writer != f"pylon-writer/{(owner or '').partition('/')[0]}":
                found.append(f"{shard_id} of {owner}: tick {tick} was stored by {writer}")
            if (generation, tick) <= last.get(shard_id, (0, 0)):
                found.append(f"{shard_id}: tick {tick} of {generation} came late")
            last[shard_id] = (generation, tick)
        assert last, "something was saved"
        return found


@pytest.fixture(scope="module")
def trio(postgres_server: PostgresServer, tmp_path_factory: Any) -> Iterator[Trio]:
    folder = tmp_path_factory.mktemp("shards")
    with stores.use(stores.TestStore(stores.POSTGRES, postgres_server.url, postgres_server)):
        url = stores.settings_at(folder / "app.db")["DATABASE_URL"]
        nodes = [
            Node(folder / name, notes_app(), {
                "DATABASE_URL": url, "PYLON_NODE": name, "PYLON_HTTP_WORKERS": "1",
                "PYLON_SSE_WORKERS": "0", "PYLON_WS_WORKERS": "0", "PYLON_SHARD_WORKERS": "1",
                "PYLON_APP": APP, "PYLON_CLUSTER_URL": f"tcp://127.0.0.1:{reserve_base_port()}",
                "PYLON_SHARD_URL": f"ws://{name}.example.com/shards",
            })
            for name in NAMES
        ]
        try:
            for node in nodes:
                node.start(ready=False)
            for node in nodes:
                node.wait_ready(2 * WAIT_S)
            made = Trio(nodes, url, postgres_server)
            made.sql(AUDIT)
            made.settle()
            yield made
        finally:
            for node in nodes:
                with suppress(ProcessLookupError):
                    node.signal_all(signal.SIGCONT)
                node.close()


@pytest.fixture(autouse=True)
def _all_nodes_run(trio: Trio) -> Iterator[None]:
    """A test that failed may have left a node ended; the next test begins with all of them."""
    yield
    ended = [
        node for node in trio.nodes if node.process is None or node.process.poll() is not None
    ]
    for node in ended:
        node.restart()
    if ended:
        trio.settle()


def close_code(player: Player) -> int:
    """The code that the server closes with; 1006: it cut the connection."""
    try:
        return player.closed()[0]
    except websocket.WebSocketConnectionClosedException:
        return 1006


def total(player: Player) -> int:
    return int(player.frame()[1]["sum"])


def until_owners(trio: Trio, fine: Callable[[dict[str, tuple[str, int]]], bool]) -> None:
    wait_until("the shards have their nodes", lambda: fine(trio.owners()), TAKEN_OVER_S)


def spread(trio: Trio) -> dict[str, tuple[str, int]]:
    """Have all shards run, on more than one node; their owners."""
    for number, shard in enumerate(SHARDS):
        trio.play(trio.nodes[number % 3], shard).socket.close()
    until_owners(trio, lambda owners: set(SHARDS) <= set(owners))
    owners = trio.owners()
    return {shard: owners[shard] for shard in SHARDS}


def a_node_with_shards(trio: Trio) -> tuple[str, list[str]]:
    owners = spread(trio)
    by_node = {name: [s for s in SHARDS if owners[s][0] == name] for name in NAMES}
    victim = max(NAMES, key=lambda name: len(by_node[name]))
    assert by_node[victim]
    return victim, by_node[victim]


def test_every_node_serves_and_commands_the_shards_of_all(trio: Trio) -> None:
    owners = spread(trio)
    assert len({node for node, _ in owners.values()}) > 1
    for node in trio.nodes:
        status, listed, _ = node.request("GET", "/api/shards", token=ADMIN_TOKEN)
        assert status == 200, listed
        workers = {shard["id"]: shard["worker"] for shard in listed}
        for shard in SHARDS:
            assert workers[shard] == f"{owners[shard][0]}/1"
            status, one, _ = node.request("GET", f"/api/shards/{shard}", token=ADMIN_TOKEN)
            assert (status, one["id"], one["running"]) == (200, shard, True)
            first = trio.read_sum(node, shard)
            assert first > 0
    target = next(name for name in NAMES if name != owners[SHARDS[0]][0])
    status, moved, _ = trio.nodes[0].request(
        "POST", f"/api/shards/{SHARDS[0]}/move", {"worker": f"{target}/1"}, token=ADMIN_TOKEN
    )
    assert (status, moved) == (200, {"released": True})
    until_owners(trio, lambda found: found.get(SHARDS[0], ("", 0))[0] == target)
    status, _, _ = trio.nodes[0].request(
        "POST", f"/api/shards/{SHARDS[0]}/move", {"worker": None}, token=ADMIN_TOKEN
    )
    assert status == 200
    assert trio.problems() == []


def test_the_shards_of_a_killed_node_go_on_elsewhere(trio: Trio) -> None:
    victim, its = a_node_with_shards(trio)
    before = trio.owners()
    others = [node for node in trio.nodes if node is not trio.node(victim)]
    seen = {shard: trio.read_sum(others[0], shard) for shard in its}
    trio.node(victim).kill()
    until_owners(trio, lambda owners: all(
        owners.get(shard, (victim, 0))[0] != victim for shard in its
    ))
    after = trio.owners()
    for shard in its:
        assert after[shard][1] > before[shard][1], "a higher generation"
        # Saved every ten ticks of 20 ms: it goes on from a second before at the most.
        assert trio.read_sum(others[0], shard) > seen[shard] - 50
    assert trio.problems() == []
    trio.node(victim).restart()
    trio.settle()


def test_a_frozen_node_that_wakes_saves_nothing(trio: Trio) -> None:
    victim, its = a_node_with_shards(trio)
    frozen = trio.node(victim)
    other = next(node for node in trio.nodes if node is not frozen)
    held = [trio.play(frozen, shard) for shard in its]
    frozen.signal_all(signal.SIGSTOP)
    begun_s = time.monotonic()
    status, listed, headers = other.request("GET", "/api/shards", token=ADMIN_TOKEN)
    assert status == 200, listed
    assert headers["x-pylon-missing-workers"] == f"{victim}/1"
    assert {shard["id"] for shard in listed} >= set(SHARDS) - set(its)
    assert not {shard["id"] for shard in listed} & set(its)
    until_owners(trio, lambda owners: all(
        owners.get(shard, (victim, 0))[0] != victim for shard in its
    ))
    sums = {shard: trio.read_sum(other, shard) for shard in its}
    time.sleep(max(0.0, begun_s + FROZEN_S - time.monotonic()))
    saved = trio.sql("SELECT count(*) FROM saves")[0][0]
    frozen.signal_all(signal.SIGCONT)
    # 1006: the time of a write that was under way went by while the node stood still.
    assert {close_code(player) for player in held} <= {1012, 1006}
    wait_until("the others save on", lambda: trio.sql(
        "SELECT count(*) FROM saves"
    )[0][0] > saved + 20, WAIT_S)
    assert trio.problems() == []
    owners = trio.owners()
    for shard in its:
        assert owners[shard][0] != victim
        assert trio.read_sum(frozen, shard) > sums[shard], "through the cluster port"
    trio.settle()


def test_a_drain_hands_shards_over_with_all_that_ticked(trio: Trio) -> None:
    victim, its = a_node_with_shards(trio)
    ended = trio.node(victim)
    other = next(node for node in trio.nodes if node is not ended)
    held = {shard: trio.play(ended, shard) for shard in its}
    last = {shard: total(player) for shard, player in held.items()}
    assert ended.process is not None
    ended.process.send_signal(signal.SIGTERM)
    for shard, player in held.items():
        while True:
            try:
                last[shard] = total(player)
            except AssertionError as ex:
                assert "1012" in str(ex), ex
                break
    begun_s = time.monotonic()
    for shard in its:
        assert trio.read_sum(other, shard) >= last[shard], "nothing that a client saw is lost"
    took_s = time.monotonic() - begun_s
    assert took_s < LEASE_S, "they need not wait for the end of the lease"
    assert ended.process.wait(WAIT_S) == 0, ended.log()
    assert trio.problems() == []
    ended.restart()
    trio.settle()


@pytest.mark.parametrize("away_s", [2.0, LEASE_S + 2.0], ids=["short", "long"])
def test_an_outage_of_the_database_loses_nothing_that_ticked(trio: Trio, away_s: float) -> None:
    owners = spread(trio)
    held = {shard: trio.play(trio.node(owners[shard][0]), shard) for shard in SHARDS}
    trio.server.stop()
    begun_s = time.monotonic()
    last: dict[str, int] = {}
    ended: set[str] = set()
    while time.monotonic() < begun_s + away_s:
        for shard, player in held.items():
            if shard in ended:
                continue
            try:
                last[shard] = total(player)
            except AssertionError as ex:
                assert "1012" in str(ex), ex
                assert time.monotonic() - begun_s > LEASE_S / 2, "the lease has not ended yet"
                ended.add(shard)
        time.sleep(0 if ended != set(SHARDS) else 0.1)
    trio.server.start()
    assert ended == (set() if away_s < LEASE_S / 2 else set(SHARDS))
    trio.settle()
    if not ended:
        assert trio.owners().items() >= owners.items(), "under the same claims"
    for number, shard in enumerate(SHARDS):
        assert trio.read_sum(trio.nodes[number % 3], shard) >= last[shard]
    assert trio.problems() == []


def test_players_ask_again_after_the_matchmakers_node_has_died(trio: Trio) -> None:
    def ask(node: Node, method: str, path: str, name: str, body: Any = None) -> Any:
        status, answer, _ = node.request(method, path, body, token=tokens[name])
        return answer if status == 200 else None

    tokens = {name: user(trio.nodes[0], name) for name in ("eve", "joe")}
    duel = {"criteria": {"mode": "duel"}}
    wait_until("eve waits", lambda: (
        ask(trio.nodes[0], "POST", "/api/matchmaking", "eve", duel) or {}
    ).get("status") == "queued")
    victim = trio.owners()[":matchmaker"][0]
    node = next(node for node in trio.nodes if node is not trio.node(victim))
    assert ask(node, "GET", "/api/matchmaking", "eve")["status"] == "queued"
    trio.node(victim).kill()
    wait_until("her place is lost", lambda: (
        ask(node, "GET", "/api/matchmaking", "eve") or {}
    ).get("status") == "idle", TAKEN_OVER_S)
    for name in tokens:
        wait_until(f"{name} asks again", lambda name=name: ask(
            node, "POST", "/api/matchmaking", name, duel
        ) is not None, TAKEN_OVER_S)
    found: dict[str, Any] = {}

    def is_matched() -> bool:
        found.update(ask(node, "GET", "/api/matchmaking", "joe") or {})
        return found.get("status") == "matched"

    wait_until("they are matched", is_matched, TAKEN_OVER_S)
    owner = trio.owners()[found["shard_id"]][0]
    assert owner != victim
    assert found["url"] == f"ws://{owner}.example.com/shards"
    trio.node(victim).restart()
    trio.settle()
