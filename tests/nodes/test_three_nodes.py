"""Three nodes on one PostgreSQL hold the promises, whatever happens to nodes and connections.

PYLON_TEST_NODE_ROUNDS repeats the faults, in another order each time.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.nodes.fleet import Fleet
from tests.support import stores
from tests.support.postgres import PostgresServer, find_programs

pytestmark = [
    pytest.mark.usefixtures("processes", "postgres_server"), pytest.mark.slow,
    pytest.mark.timeout(400),
]

ROUNDS = int(os.environ.get("PYLON_TEST_NODE_ROUNDS", "1"))
HOLDER_S = 6.0  # longer than others wait for a holder of the lock before they end it
LEASE_S = 12.0  # longer than any lease of a node
AWAY_S = 3.0


class Trial:
    """A fleet and its database."""

    def __init__(self, fleet: Fleet, server: PostgresServer) -> None:
        self.fleet, self.server = fleet, server
        self.random = random.Random(ROUNDS)

    def any_node(self) -> int:
        return self.random.randrange(len(self.fleet.nodes))

    def end_connections(self, name: str, times: int) -> int:
        """End the connections whose application's name is like `name`; how many in all."""
        ended = 0
        for _ in range(times):
            found = self.server.run_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IS NOT NULL"
                f" AND pid <> pg_backend_pid() AND application_name LIKE '{name}'"
            )
            ended += len(found)
            time.sleep(self.random.uniform(0.1, 0.5))
        assert ended > 0, f"nobody is connected as {name}"
        return ended


def end_nodes_together(trial: Trial) -> None:
    for number in (0, 1):
        trial.fleet.nodes[number].kill()
    for number in (0, 1):
        trial.fleet.nodes[number].restart()


def restart_in_order(trial: Trial) -> None:
    assert trial.fleet.restart_node(trial.any_node()) == 0


def restart_database(trial: Trial, mode: str, away_s: float) -> None:
    trial.server.stop(mode)
    time.sleep(away_s)
    trial.server.start()


def kill_database(trial: Trial) -> None:
    trial.server.kill()
    trial.server.start()


def hold_snapshot(trial: Trial) -> None:
    with psycopg.connect(trial.server.url) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        conn.execute('SELECT count(*) FROM "Note"')
        trial.fleet.load.wait_for_progress(150)


FAULTS: dict[str, Callable[[Trial], object]] = {
    "nothing": lambda trial: trial.fleet.load.wait_for_progress(60),
    "kill a node": lambda trial: trial.fleet.kill_node(trial.any_node()),
    "kill two nodes": end_nodes_together,
    "kill http workers": lambda trial: trial.fleet.kill_workers(trial.any_node(), "http"),
    "kill ws workers": lambda trial: trial.fleet.kill_workers(trial.any_node(), "ws"),
    "freeze a writer": lambda trial: trial.fleet.freeze_writer(trial.any_node(), HOLDER_S),
    "freeze a node": lambda trial: trial.fleet.freeze_node(trial.any_node(), LEASE_S),
    "restart a node": restart_in_order,
    "end the writers' connections": lambda trial: trial.end_connections("pylon-writer%", 8),
    "end the relays' connections": lambda trial: trial.end_connections("pylon-relay%", 4),
    "end all connections": lambda trial: trial.end_connections("%", 3),
    "restart the database": lambda trial: restart_database(trial, "fast", 0.0),
    "stop the database at once": lambda trial: restart_database(trial, "immediate", AWAY_S),
    "kill the database": kill_database,
    "a long snapshot": hold_snapshot,
}


@pytest.fixture(scope="module")
def trial(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trial]:
    version = stores.wanted_version(find_programs())
    assert version is not None
    server = PostgresServer(find_programs()[version])
    try:
        fleet = Fleet(
            tmp_path_factory.mktemp("nodes"), 3,
            lambda number: {"DATABASE_URL": server.url, "PYLON_NODE": f"node{number}"},
        )
        with fleet.running():
            yield Trial(fleet, server)
    finally:
        server.close()


@pytest.mark.parametrize("fault", list(FAULTS) * ROUNDS)
def test_promises_hold(trial: Trial, fault: str) -> None:
    FAULTS[fault](trial)
    ready_s = trial.fleet.wait_ready()
    resumed_s = trial.fleet.load.wait_for_progress()
    problems = trial.fleet.check()
    print(f"{fault}: ready after {ready_s:.1f} s, all writers write after {resumed_s:.1f} s;"
          f" {trial.fleet.load.acknowledged} writes acknowledged so far")
    assert problems == []
