"""A6: one client cannot take the places of all shards, nor of the queue for matches."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylon import limits
from pylon.clock import ManualClock
from pylon.errors import RateLimited, SubscribeFailed
from pylon.rates import MATCHES_BY_USER, SHARDS_BY_USER, address_subject, user_subject
from tests.support.api import ADMIN_TOKEN, serve_api
from tests.support.manifests import notes_app
from tests.support.realtime import Counters, registered
from tests.test_shards_registry import registry_of, shard_store

ADA = (user_subject("ada"), address_subject("192.0.2.1"))
BOB = (user_subject("bob"), address_subject("192.0.2.1"))
CYD = (user_subject("cyd"), address_subject("192.0.2.2"))


def test_one_identity_makes_so_many_shards_and_the_next_client_is_let_in(tmp_path: Path) -> None:
    clock = ManualClock()
    with registered(Counters), shard_store(tmp_path, clock) as (store, writer):
        registry = registry_of(store, writer, clock, tmp_path)
        made = 0
        for number in range(400):
            try:
                registry.find_or_make(f"sim:{number}", ADA)
                made += 1
            except RateLimited:
                clock.advance(SHARDS_BY_USER.interval_s)
            except SubscribeFailed:
                break
        assert made == limits.SHARDS_OF_USER
        registry.find_or_make("sim:bob", BOB)
        registry.find_or_make("sim:cyd", CYD)
        # A shard that is there may be joined by anybody.
        registry.find_or_make("sim:bob", ADA)


def test_shards_that_are_forgotten_do_not_count(tmp_path: Path) -> None:
    clock = ManualClock()
    with registered(Counters), shard_store(tmp_path, clock) as (store, writer):
        registry = registry_of(store, writer, clock, tmp_path)
        for number in range(3 * limits.SHARDS_OF_USER):
            clock.advance(SHARDS_BY_USER.interval_s)
            shard = registry.find_or_make(f"sim:{number}", ADA)
            registry.settle_join(shard, is_in=False)
        assert registry.list_shards() == []


def test_what_the_server_makes_counts_for_nobody(tmp_path: Path) -> None:
    clock = ManualClock()
    with registered(Counters), shard_store(tmp_path, clock) as (store, writer):
        registry = registry_of(store, writer, clock, tmp_path)
        for number in range(2 * limits.SHARDS_OF_USER):
            registry.get_or_make(f"sim:{number}", {})
        registry.find_or_make("sim:ada", ADA)
        assert len(registry.list_shards()) == 2 * limits.SHARDS_OF_USER + 1


@pytest.mark.parametrize("is_admin", [False, True])
def test_requests_for_matches_have_a_rate_but_not_an_admins(
    tmp_path: Path, is_admin: bool
) -> None:
    with serve_api(tmp_path, notes_app()) as server:
        token = server.guest()
        target = "/api/matchmaking"
        if is_admin:
            token, target = ADMIN_TOKEN, "/api/matchmaking?player=ada"
        statuses = [
            server.call("POST", target, {"criteria": {}}, token).status_code
            for _ in range(int(MATCHES_BY_USER.limit) + 20)
        ]
        assert (429 in statuses) is not is_admin
        assert server.call("POST", target, {"criteria": {}}, server.guest()).status_code != 429
