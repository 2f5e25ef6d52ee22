"""Shards on two nodes over one PostgreSQL: claims, fences, and what becomes of states.

Two registries play a worker of each node. The rows of the nodes are in the registry of nodes; a
test ends a lease there, by the database's clock, or lets the manual clock of the workers pass it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from pylon import limits, metrics
from pylon.bus.messages import NodeState
from pylon.errors import Draining, ShardNotFound, SubscribeFailed, Unavailable
from pylon.realtime import kinds
from pylon.realtime.placement import MATCHMAKER
from pylon.storage.nodes import NodeFacts
from pylon.storage.ops import PutShard, WriteRequest
from pylon.storage.postgres import registry as node_registry
from pylon.storage.postgres.schema.ddl import LATER_COLUMNS
from tests.support import stores
from tests.support.api import DirectShards, DirectWriter
from tests.support.lease_stage import (
    LEASE_LEFT_S,
    Node,
    Stage,
    SwitchingStore,
    total,
)
from tests.support.postgres import PostgresServer
from tests.support.realtime import Counters, registered
from tests.support.storage import open_engine
from workers.hub.close_codes import SERVICE_RESTART
from workers.shards.leases import SETTLING_S, ShardLeases
from workers.shards.matchmaking import Matchmaking


@pytest.fixture
def stage(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Stage]:
    kind = registered(
        Counters, save_every_ticks=2, idle_ticks_before_shutdown=4, tick_budget_s=0
    )
    with (
        stores.use(stores.TestStore(stores.POSTGRES, postgres_server.url, postgres_server)),
        kind,
    ):
        made = Stage(tmp_path)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def pair(stage: Stage) -> tuple[Node, Node]:
    a, b = Node(stage, "a"), Node(stage, "b")
    a.report(b)
    b.report(a)
    return a, b


def test_tables_of_an_earlier_version_get_the_columns_of_leases(stage: Stage) -> None:
    stage.engine.apply([WriteRequest(1, PutShard("sim:1", 7, b"state"))])
    for table, column, _ in LATER_COLUMNS:
        stage.run(f"ALTER TABLE {table} DROP COLUMN {column}")
    stage.engine.close()
    stage.engine = open_engine(stage.folder / "app.db")  # the next start
    a = Node(stage, "a")
    a.report()
    place = stage.store.point(lambda reader: reader.shard_place("sim:1"))
    assert place is not None
    assert (place.generation, place.owner, place.is_held) == (0, None, False)
    assert a.leases.claim("sim:1") > 0
    assert stage.stored() == b"state"


def test_a_shard_has_one_home_while_the_lease_lasts(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5, ticks=2)
    for view in (a, b):
        home = view.placement.find("sim:1")
        assert (home.name, home.is_here) == ("a/1", view is a)
        assert home.generation == a.leases.generation_of("sim:1")
    with pytest.raises(SubscribeFailed, match="another process"):
        b.registry.find_or_make("sim:1")
    with pytest.raises(SubscribeFailed, match="another process"):
        b.registry.get_or_make("sim:1", {})
    with pytest.raises(SubscribeFailed, match="another process"):
        b.registry.end("sim:1", 1000, "no")
    with pytest.raises(SubscribeFailed, match="another process"):
        b.registry.move("sim:1", "b/1", 1012, "no")
    assert b.registry.list_shards() == []
    assert shard.running
    assert client.ended is None


def test_the_shards_of_a_dead_node_go_on_from_their_last_state(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5, ticks=2)
    a.add_unsaved(shard, client, 1)
    a.end_lease()
    a.stage.run("DELETE FROM _pylon_nodes WHERE node = 'a'")
    b.report()
    assert b.placement.find("sim:1").name == "b/1"
    other, there = b.join()
    b.run(1)
    assert total(there) == 5
    assert other.running


def test_a_frozen_worker_neither_ticks_nor_saves_when_it_wakes(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5, ticks=2)
    a.add_unsaved(shard, client, 1)
    ticks = shard.tick
    # Frozen: no heartbeat, no tick. Its clock goes on.
    a.end_lease()
    other, there = b.join()
    b.add(other, there, 10, ticks=2)
    refused = metrics.SHARD_SAVES_REFUSED._value.get()
    # It wakes before anybody has told its worker something.
    a.clock.advance(60.0)
    assert a.run(3) == 0
    assert shard.tick == ticks
    assert client.ended is None
    a.take_lease()
    a.report(b)
    assert client.ended is not None
    assert client.ended[0] == SERVICE_RESTART
    assert a.registry.list_shards() == []
    a.settle()
    assert metrics.SHARD_SAVES_REFUSED._value.get() == refused + 1
    stored = a.stage.stored()
    assert stored is not None
    b.run(1)
    assert total(there) == 15, "five as saved, and ten"
    with pytest.raises(SubscribeFailed):
        a.join()


def test_an_older_generation_that_does_not_know_it_is_fenced(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5, ticks=2)
    a.end_lease()  # while a is sure of it, as after a failover that lost a heartbeat
    other, there = b.join()
    a.add(shard, client, 1, ticks=2)
    assert client.ended is not None, "the refused save has ended it"
    assert client.ended[0] == SERVICE_RESTART
    assert a.registry.list_shards() == []
    b.run(2)
    assert total(there) == 5
    assert other.running


def test_what_ticked_before_an_outage_is_stored_after_it(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5, ticks=2)
    a.writer.is_away = True
    a.add(shard, client, 1)
    a.clock.advance(LEASE_LEFT_S)
    assert a.run(2) == 0, "the lease has ended by the worker's clock"
    a.leases.lose_all()
    assert client.ended is not None
    assert client.ended[0] == SERVICE_RESTART
    with pytest.raises(SubscribeFailed, match="lease"):
        a.join()
    a.end_lease()
    a.writer.is_away = False
    gevent.sleep(limits.SHARD_SAVE_RETRY_S * 1.2)
    a.take_lease()
    a.report(b)
    assert a.placement.find("sim:1").name != "", "it is anybody's"
    _, there = b.join()
    b.run(1)
    assert total(there) == 6, "nothing that had ticked is lost"


def test_after_an_outage_a_shard_returns_to_the_node_that_has_its_newest_state(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    for number in range(6):
        shard, client = a.join(f"sim:{number}")
        a.add(shard, client, 5, ticks=1)
    a.writer.is_away = True
    a.clock.advance(LEASE_LEFT_S)
    a.leases.lose_all()
    a.end_lease()
    a.take_lease()  # the supervisor was faster than the writer
    a.report(b)
    for number in range(6):
        for view in (a, b):
            home = view.placement.find(f"sim:{number}")
            assert (home.name, home.generation) == ("a/1", None)
    waits = Unavailable("it waits for the pending state")
    with pytest.raises(Unavailable), gevent.Timeout(0.05, waits):
        a.registry.find_or_make("sim:1")
    a.writer.is_away = False
    gevent.sleep(limits.SHARD_SAVE_RETRY_S * 1.2)
    _, client = a.join("sim:1")
    a.run(1)
    assert total(client) == 5


def test_after_an_outage_nobody_takes_the_shards_of_a_node_that_may_come_back(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    shard, client = a.join()
    a.writer.is_away = True
    a.add(shard, client, 5, ticks=1)  # not stored
    for node in pair:
        node.clock.advance(LEASE_LEFT_S)
        node.leases.lose_all()
        node.end_lease()
    b.take_lease()
    b.report()  # it is back first
    with pytest.raises(SubscribeFailed, match="may still store"):
        b.registry.find_or_make("sim:1")
    assert b.registry.find_or_make("sim:2").running, "nobody had this one"
    a.take_lease()
    a.report(b)
    a.writer.is_away = False
    gevent.sleep(limits.SHARD_SAVE_RETRY_S * 1.2)
    _, there = b.join()
    b.run(1)
    assert total(there) == 5
    # It waits a few seconds only.
    for node in pair:
        node.end_lease()
    b.take_lease()
    b.report()
    b.clock.advance(SETTLING_S)
    assert b.registry.find_or_make("sim:1").running


def test_a_claim_that_ends_while_the_shard_is_read_makes_nothing(pair: tuple[Node, Node]) -> None:
    a, b = pair
    read = a.registry._stored._store.point
    answers = []

    def lose_the_lease(ask: Any) -> Any:
        answer = read(ask)
        answers.append(answer)
        if len(answers) == 2:  # the read behind the claim
            a.end_lease()
            a.take_lease()
            a.report(b)
        return answer

    a.registry._stored._store = SwitchingStore(a.stage.store, lose_the_lease)  # type: ignore[assignment]
    with pytest.raises(SubscribeFailed, match="claim"):
        a.registry.find_or_make("sim:1")
    assert a.registry.list_shards() == []
    assert a.leases.claimed_ids() == []


def test_drain_saves_releases_and_closes_so_that_another_node_goes_on_at_once(
    pair: tuple[Node, Node],
) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5, ticks=1)  # not saved yet
    assert a.registry.drain(SERVICE_RESTART, "bye") == 0
    assert client.ended == (SERVICE_RESTART, "bye")
    with pytest.raises(Draining):
        a.registry.find_or_make("sim:2")
    _, there = b.join()  # the lease of a has not ended
    b.run(1)
    assert total(there) == 5


def test_an_idle_shard_is_saved_and_free(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5)
    shard.unsubscribe(client, a.clock.monotonic_s())
    a.registry.reschedule(shard)
    a.run(10)
    assert a.registry.list_shards() == []
    assert a.leases.claimed_ids() == []
    _, there = b.join()
    b.run(1)
    assert total(there) == 5


def test_an_administrator_moves_a_shard_to_another_node(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5)
    assert a.registry.move("sim:1", "a/1", SERVICE_RESTART, "moved") is False, "it is here"
    assert client.ended is None
    assert a.registry.move("sim:1", "b/1", SERVICE_RESTART, "moved") is True
    assert client.ended == (SERVICE_RESTART, "moved")
    assert a.placement.find("sim:1").name == b.placement.find("sim:1").name == "b/1"
    _, there = b.join()
    b.run(1)
    assert total(there) == 5
    # A shard at rest is moved as well.
    assert a.registry.move("sim:7", "b/1", SERVICE_RESTART, "moved") is False
    assert a.placement.find("sim:7").name == "b/1"
    assert a.leases.claimed_ids() == []


def test_a_shard_at_rest_is_ended_under_a_claim(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5)
    a.registry.drain(SERVICE_RESTART, "bye")
    b.registry.end("sim:1", 1000, "ended")
    assert b.stage.stored() is None
    assert b.leases.claimed_ids() == []
    with pytest.raises(ShardNotFound):
        b.registry.end("sim:1", 1000, "ended")


def test_a_finished_shard_leaves_nothing(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    shard, client = a.join()
    shard._simulation.state.last_ticks = 3  # type: ignore[union-attr]
    a.add(shard, client, 5, ticks=5)
    assert not shard.running
    assert a.stage.run("SELECT count(*) FROM _pylon_shards").get_value(0, 0) == b"0"
    a.clock.advance(limits.SHARD_KEPT_S + 1)
    a.report()
    a.registry.list_shards()
    a.settle()
    assert a.leases.claimed_ids() == []


def test_clients_that_come_at_once_share_one_claim(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    jobs = [gevent.spawn(a.registry.find_or_make, "sim:1") for _ in range(5)]
    jobs += [gevent.spawn(a.registry.get_or_make, "sim:1", {}) for _ in range(5)]
    gevent.joinall(jobs, raise_error=True)
    assert len({id(job.value) for job in jobs}) == 1
    place = a.stage.store.point(lambda reader: reader.shard_place("sim:1"))
    assert place is not None
    assert place.generation == a.leases.generation_of("sim:1")
    assert (place.owner, place.is_held, place.owner_lives) == ("a/1", True, True)
    assert a.registry._stored._locks == {}


def test_a_refused_visitor_leaves_no_claim(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    shard = a.registry.find_or_make("sim:1")
    a.registry.settle_join(shard, is_in=False)
    a.settle()
    assert a.stage.run("SELECT count(*) FROM _pylon_shards").get_value(0, 0) == b"0"


def test_the_successor_of_a_killed_worker_claims_at_once(pair: tuple[Node, Node]) -> None:
    a, b = pair
    shard, client = a.join()
    a.add(shard, client, 5, ticks=2)
    generation = a.leases.generation_of("sim:1")
    assert generation is not None
    successor = ShardLeases(a.writer, a.clock, "1")
    successor.take_report(NodeState(False, "a", (a.facts,), a.lease, a.clock.monotonic_s() + 8))
    assert successor.claim("sim:1") > generation
    sibling = ShardLeases(a.writer, a.clock, "2")
    sibling.take_report(NodeState(False, "a", (a.facts,), a.lease, a.clock.monotonic_s() + 8))
    with pytest.raises(SubscribeFailed):
        sibling.claim("sim:1")
    # A later start of the node has another lease, and need not wait for the end of the former.
    a.stage.run(*node_registry.register(NodeFacts("a", "a2", ("shards",), "1")))
    assert sibling.claim("sim:1")
    reply, = b.writer.submit_all([PutShard("sim:1", 9, b"late", generation)])
    assert reply.error is not None
    assert reply.error.code == "SHARD_LEASE_LOST"


def test_the_region_of_params_is_kept_with_the_shard(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    a.registry.get_or_make("sim:1", {"region": "eu"})
    a.registry.get_or_make("sim:2", {})
    places = [a.stage.store.point(lambda r, i=i: r.shard_place(f"sim:{i}")) for i in (1, 2)]
    assert [place.region for place in places if place] == ["eu", ""]


def test_one_node_runs_the_matchmaker_and_players_ask_again_after_it(
    pair: tuple[Node, Node], tmp_path: Path
) -> None:
    a, b = pair
    kinds.matchmaking(shard="sim", group_size=2)
    shards = DirectShards(a.stage.store, DirectWriter(a.stage.engine), a.clock, tmp_path)
    makers = [
        Matchmaking(shards, node.clock, lambda: False, node.leases)  # type: ignore[arg-type]
        for node in pair
    ]
    makers[0].claim()
    makers[0].enqueue("ada", {})
    with pytest.raises(SubscribeFailed):
        makers[1].claim()
    for node in pair:
        assert node.placement.matchmaker().name == "a/1"
    a.end_lease()
    makers[1].claim()
    assert makers[1].status("ada") == {"status": "idle"}
    a.take_lease()
    a.report(b)
    assert makers[0].status("ada") == {"status": "idle"}, "its queue went with its lease"
    with pytest.raises(SubscribeFailed):
        makers[0].claim()
    assert b.leases.generation_of(MATCHMAKER) is not None
    b.registry.drain(SERVICE_RESTART, "bye")
    makers[0].claim()
