"""pylon.realtime.placement: which worker of which node runs a shard."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest

from pylon.errors import SubscribeFailed
from pylon.realtime.placement import MATCHMAKER, Placement
from pylon.storage.interface import Store
from pylon.storage.nodes import NodeFacts
from pylon.storage.records import StoredPlace

IDS = [f"sim:{number}" for number in range(400)]


def node(name: str, workers: int = 2, region: str = "", *, places: bool = True) -> NodeFacts:
    return NodeFacts(
        name, f"{name}1", ("http", "shards") if places else ("http",), "1",
        workers={"http": 1, "shards": workers}, region=region, cluster_url=f"tcp://{name}:1",
        curve_key=f"key of {name}",
    )


def placement(own: str, *nodes: NodeFacts) -> Placement:
    made = Placement(cast(Store, None), 2, is_shared=True)  # which is not read here
    made.update(own, nodes)
    return made


def name_of(made: Placement, shard_id: str, place: StoredPlace | None = None, **more: Any) -> str:
    return made.of_stored(shard_id, place, **more).name


def test_all_nodes_agree_and_share_the_shards() -> None:
    nodes = [node("a"), node("b"), node("c", 1)]
    views = [placement(facts.name, *nodes) for facts in nodes]
    homes = Counter(name_of(views[0], shard_id) for shard_id in IDS)
    assert set(homes) == {"a/1", "a/2", "b/1", "b/2", "c/1"}
    assert min(homes.values()) > len(IDS) / 5 / 2
    for shard_id in IDS:
        assert len({name_of(view, shard_id) for view in views}) == 1
        found = [view.of_stored(shard_id, None) for view in views]
        assert sum(home.is_here for home in found) == 1
        home = found[0]
        assert (home.cluster_url, home.curve_key) == (
            f"tcp://{home.node}:1", f"key of {home.node}",
        )


def test_a_node_that_ends_moves_its_own_shards_only() -> None:
    before = placement("a", node("a"), node("b"), node("c"))
    after = placement("a", node("a"), node("b"))
    for shard_id in IDS:
        home = name_of(before, shard_id)
        if not home.startswith("c/"):
            assert name_of(after, shard_id) == home


def test_the_claim_comes_first_then_the_move_then_the_last_owner() -> None:
    made = placement("a", node("a"), node("b"), node("c"))
    default = name_of(made, "sim:1")
    owner, moved = [name for name in ("a/1", "b/1", "c/1") if name != default][:2]
    held = StoredPlace(moved, 7, owner, None, is_held=True, owner_lives=True)
    assert name_of(made, "sim:1", held) == owner
    assert made.of_stored("sim:1", held).generation == 7
    free = StoredPlace(moved, 7, owner, None, is_held=False, owner_lives=True)
    assert name_of(made, "sim:1", free) == moved
    assert made.of_stored("sim:1", free).generation is None
    last = StoredPlace(None, 7, owner, None, is_held=False, owner_lives=True)
    assert name_of(made, "sim:1", last) == owner, "it may have a newer state than the store"
    dead = StoredPlace(None, 7, owner, None, is_held=False, owner_lives=False)
    assert name_of(made, "sim:1", dead) == default
    fewer = StoredPlace(None, 7, "a/9", None, is_held=False, owner_lives=True)
    assert name_of(made, "sim:1", fewer) == default, "the node has fewer workers now"


def test_a_move_names_a_worker_of_one_node_or_of_any() -> None:
    made = placement("a", node("a"), node("b", 1))
    for name, known in (
        ("1", True), ("2", True), ("3", False), ("a/2", True), ("b/2", False), ("c/1", False),
        ("", False), ("0", False), ("01", False), ("a/", False), ("²", False),
    ):
        assert made.has_worker(name) is known, name
    assert name_of(made, "sim:1", StoredPlace("2")) == "a/2", "the only node with a second worker"
    assert name_of(made, "sim:1", StoredPlace("b/1")) == "b/1"
    assert name_of(made, "sim:1", StoredPlace("gone/1")) == name_of(made, "sim:1")
    assert made.target("sim:1", "b/1", None).name == "b/1"
    assert made.target("sim:1", None, StoredPlace("b/1", 3, "b/1")).name == name_of(made, "sim:1")


def test_shards_stay_in_their_region_while_it_has_a_node() -> None:
    eu, us, us2 = node("eu", region="eu"), node("us", region="us"), node("us2", region="us")
    in_eu, in_us = placement("eu", eu, us, us2), placement("us", eu, us, us2)
    for shard_id in IDS[:50]:
        assert in_eu.of_stored(shard_id, None).node == "eu", "the region of the making node"
        assert in_us.of_stored(shard_id, None).node in ("us", "us2")
        stored = StoredPlace(None, region="eu")
        assert in_us.of_stored(shard_id, stored).node == "eu", "the region of the row"
        assert in_eu.of_stored(shard_id, None, "us").node in ("us", "us2"), "as params say"
        assert in_us.of_stored(shard_id, stored, "us").node == "eu"
        alone = placement("us", us, us2)
        assert alone.of_stored(shard_id, stored).node in ("us", "us2"), "late is better than never"


def test_a_node_that_withdraws_gets_no_new_shard_and_is_still_reached() -> None:
    made = placement("a", node("a"), node("b", places=False))
    assert {made.of_stored(shard_id, None).node for shard_id in IDS} == {"a"}
    held = made.of_stored("sim:1", StoredPlace(None, 7, "b/1", None, is_held=True))
    assert (held.name, held.cluster_url) == ("b/1", "tcp://b:1")
    last = StoredPlace(None, 7, "b/1", None, is_held=False, owner_lives=True)
    assert made.of_stored("sim:1", last).node == "a"
    assert {home.name for home in made.all_workers()} == {"a/1", "a/2", "b/1", "b/2"}


def test_the_last_node_places_shards_until_it_ends() -> None:
    made = placement("a", node("a", places=False))
    assert {made.of_stored(shard_id, None).node for shard_id in IDS} == {"a"}


def test_a_node_without_shards_workers_is_no_home() -> None:
    made = placement("web", node("web", 0), node("a"))
    assert {made.of_stored(shard_id, None).node for shard_id in IDS} == {"a"}
    assert made.has_workers
    with pytest.raises(SubscribeFailed):
        placement("web", node("web", 0)).of_stored("sim:1", None)
    assert not placement("web", node("web", 0)).has_workers
    assert Placement(cast(Store, None), 0, is_shared=True).has_workers, "it is not known yet"


def test_the_matchmaker_has_one_home_for_nodes_of_all_regions() -> None:
    nodes = [node("eu", region="eu"), node("us", region="us")]
    homes = {name_of(placement(n.name, *nodes), MATCHMAKER, region="") for n in nodes}
    assert len(homes) == 1


def test_one_node_alone_places_as_before() -> None:
    made = Placement(cast(Store, None), 3)
    homes = Counter(name_of(made, shard_id) for shard_id in IDS)
    assert set(homes) == {"1", "2", "3"}
    assert name_of(made, "sim:1", StoredPlace("2")) == "2"
    assert name_of(made, "sim:1", StoredPlace("9")) == name_of(made, "sim:1")
    assert name_of(made, "sim:1", StoredPlace("a/2")) == name_of(made, "sim:1")
    assert made.matchmaker().is_here
