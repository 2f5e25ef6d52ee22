"""pylon.bus.shards.ShardsClient: commands to the shards workers of several nodes.

The matchmaker uses the same answers: it fills the running shards that are missing players.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import gevent
import msgspec
import pytest

from pylon import limits
from pylon.bus.runtime import Runtime
from pylon.bus.shards import DescribeAll, MakeShard, ShardAnswers, ShardsClient
from pylon.clock import ManualClock, SystemRandom
from pylon.errors import ShardsNotAvailable, Unavailable
from pylon.realtime import kinds
from pylon.realtime.matchmaker import Mode
from pylon.realtime.placement import Placement, ShardHome
from pylon.storage.interface import Store
from pylon.storage.nodes import NodeFacts
from workers.shards.matchmaking import Matchmaking


class OtherNodes:
    """The cluster port of nodes, of which some are frozen and some refuse."""

    def __init__(self, frozen: tuple[str, ...] = (), refusing: tuple[str, ...] = ()) -> None:
        self.frozen = frozen
        self.refusing = refusing

    def call(self, home: ShardHome, command: bytes) -> bytes:
        assert msgspec.msgpack.decode(command) == ["describe_all"]
        if home.node in self.frozen:
            gevent.sleep(limits.CALL_TIMEOUT_S)
            raise AssertionError("the client waited too long")
        if home.node in self.refusing:
            raise Unavailable("The connection to the shard's node is lost")
        return home.name.encode()


@contextmanager
def shards_client(
    folder: Path, nodes: OtherNodes, url_by_node: Mapping[str, str] | None = None
) -> Iterator[ShardsClient]:
    """A client on a node without shards workers, and other nodes with two workers each."""
    placement = Placement(cast(Store, None), 0, is_shared=True)
    placement.update("own", [
        NodeFacts(name, f"{name}1", ("shards",), "1", workers={"shards": 2},
                  cluster_url="tcp://n:1" if url_by_node is None else url_by_node.get(name, ""))
        for name in ("a", "b", "c")
    ])
    client = ShardsClient(Runtime(folder), placement, SystemRandom(), nodes)
    try:
        yield client
    finally:
        client.close()


def test_every_worker_of_all_nodes_answers(tmp_path: Path) -> None:
    with shards_client(tmp_path, OtherNodes()) as client:
        answers = client.broadcast(DescribeAll())
    assert sorted(answers.texts) == [b"a/1", b"a/2", b"b/1", b"b/2", b"c/1", b"c/2"]
    assert answers.missing == []


def test_workers_that_do_not_answer_in_time_or_refuse_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHARD_LIST_TIMEOUT_S", 0.05)
    nodes = OtherNodes(frozen=("b",), refusing=("c",))
    with shards_client(tmp_path, nodes) as client:
        answers = client.broadcast(DescribeAll())
    assert sorted(answers.texts) == [b"a/1", b"a/2"]
    assert sorted(answers.missing) == ["b/1", "b/2", "c/1", "c/2"]


def test_a_node_without_a_cluster_address_is_named(tmp_path: Path) -> None:
    with shards_client(tmp_path, OtherNodes(), {"a": "tcp://n:1"}) as client:
        answers = client.broadcast(DescribeAll())
    assert sorted(answers.texts) == [b"a/1", b"a/2"]
    assert sorted(answers.missing) == ["b/1", "b/2", "c/1", "c/2"]


def test_no_answer_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHARD_LIST_TIMEOUT_S", 0.05)
    nodes = OtherNodes(frozen=("a", "b", "c"))
    with shards_client(tmp_path, nodes) as client, pytest.raises(Unavailable, match="a/1"):
        client.broadcast(DescribeAll())


def test_a_defect_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = OtherNodes()

    def fail(home: ShardHome, command: bytes) -> bytes:
        raise KeyError(home.name)

    monkeypatch.setattr(nodes, "call", fail)
    with shards_client(tmp_path, nodes) as client, pytest.raises(KeyError):
        client.broadcast(DescribeAll())


def test_a_server_without_shards_has_no_workers_to_ask(tmp_path: Path) -> None:
    placement = Placement(cast(Store, None), 0)
    client = ShardsClient(Runtime(tmp_path), placement, SystemRandom())
    with pytest.raises(ShardsNotAvailable):
        client.broadcast(DescribeAll())
    client.close()


class ListedShards:
    """The shards that workers describe to the matchmaker."""

    def __init__(self) -> None:
        self.made: list[tuple[str, list[str]]] = []
        self.missing: list[str] = []

    def for_shard(self, command: MakeShard) -> bytes:
        self.made.append((command.shard_id, command.seats))
        return b"{}"

    def broadcast(self, command: DescribeAll) -> ShardAnswers:
        running = [] if self.missing else [
            {"id": shard_id, "running": True, "seats_taken": len(seats)}
            for shard_id, seats in self.made[:1]
        ]
        return ShardAnswers([msgspec.json.encode(running)], self.missing)


def test_the_matchmaker_keeps_a_match_whose_worker_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode = Mode("default", "arena", 3, min_size=2, relax_after_s=0.0, backfill=True)
    monkeypatch.setattr(kinds, "_MODES", {"default": mode})
    shards = ListedShards()
    clock = ManualClock()
    matchmaking = Matchmaking(cast(ShardsClient, shards), clock, lambda: False)
    for player in ("ada", "bob"):
        matchmaking.enqueue(player, {})
    clock.advance(1.0)
    matchmaking.step()
    shards.missing = ["b/1"]
    matchmaking.enqueue("cyd", {})
    matchmaking.step()
    assert matchmaking.status("cyd")["status"] == "queued"
    shards.missing = []
    matchmaking.step()
    shard_id = shards.made[0][0]
    assert shards.made == [(shard_id, ["ada", "bob"]), (shard_id, ["cyd"])]
