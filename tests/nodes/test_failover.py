"""A standby is promoted under load: nodes find it, and what it lacked is void for everybody.

The nodes know both servers (`target_session_attrs=read-write`). With a synchronous standby nothing
that was acknowledged may be lost; with one that was cut off, the lost writes lie in one void range,
and every client that saw one of them is told to resync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from tests.nodes.fleet import Fleet
from tests.support import stores
from tests.support.postgres import PostgresServer, find_programs
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.usefixtures("processes", "postgres_server"), pytest.mark.slow,
    pytest.mark.timeout(400),
]

NAME = "standby"


class Pair:
    """A primary and its standby."""

    def __init__(self, *, is_synchronous: bool) -> None:
        version = stores.wanted_version(find_programs())
        assert version is not None
        programs = find_programs()[version]
        self.primary = PostgresServer(programs)
        self.standby = PostgresServer(programs, primary=self.primary)
        if is_synchronous:
            self.primary.run_sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
            self.primary.run_sql("SELECT pg_reload_conf()")
            wait_until("the standby is synchronous", lambda: self.primary.run_sql(
                "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            ))

    @property
    def url(self) -> str:
        hosts = ",".join(quote(str(s.folder), safe="") for s in (self.primary, self.standby))
        return f"postgresql://pylon@/postgres?host={hosts}&target_session_attrs=read-write"

    def cut_off(self) -> None:
        """Let the standby receive nothing more."""
        self.standby.run_sql("ALTER SYSTEM SET primary_conninfo = ''")
        self.standby.run_sql("SELECT pg_reload_conf()")
        wait_until("the standby is cut off", lambda: not self.primary.run_sql(
            "SELECT 1 FROM pg_stat_replication"
        ))

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        self.primary.kill()
        assert self.standby.run_sql("SELECT pg_promote()") == [(True,)]

    def close(self) -> None:
        self.standby.close()
        self.primary.close()


@pytest.fixture
def make_pair(postgres_server: PostgresServer) -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(**options: bool) -> Pair:
        made.append(Pair(**options))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.mark.parametrize("loses", [False, True], ids=["synchronous", "cut off"])
def test_promises_hold_over_a_promotion(
    make_pair: Callable[..., Pair], tmp_path_factory: pytest.TempPathFactory, loses: bool
) -> None:
    pair = make_pair(is_synchronous=not loses)
    fleet = Fleet(
        tmp_path_factory.mktemp("failover"), 2,
        lambda number: {"DATABASE_URL": pair.url, "PYLON_NODE": f"node{number}"}, clients=4,
    )
    with fleet.running():
        fleet.load.wait_for_progress(60)
        before = fleet.load.acknowledged
        if loses:
            fleet.load.may_lose_rows = True
            pair.cut_off()
            fleet.load.wait_for_progress(60)
            assert fleet.load.acknowledged > before
        pair.fail_over()
        ready_s = fleet.wait_ready()
        resumed_s = fleet.load.wait_for_progress()
        fleet.voids = [
            (low, first) for low, first in pair.standby.run_sql(
                "SELECT void_from, first_seq FROM _pylon_epochs"
            ) if low > fleet.load.begin_seq
        ]
        problems = fleet.check()
        lost = [op for op in fleet.load.ops if op.outcome == "acknowledged" and any(
            low < op.seq < first for low, first in fleet.voids)]
        print(f"ready after {ready_s:.1f} s, writes after {resumed_s:.1f} s; {len(lost)} writes"
              f" lost, void: {fleet.voids}")
        assert problems == []
        assert len(fleet.voids) <= 1
        assert bool(lost) is loses
        if loses:
            assert sum(client.resyncs for client in fleet.clients) > 0
