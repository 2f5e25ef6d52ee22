"""Three nodes on one PostgreSQL hold the promises, whatever happens to nodes and connections.

PYLON_TEST_NODE_ROUNDS repeats the faults, in another order each time.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.nodes.fleet import Fleet
from tests.support import stores
from tests.support.ports import reserve_base_port
from tests.support.postgres import PostgresServer, find_programs

pytestmark = [
    pytest.mark.usefixtures("processes", "postgres_server"), pytest.mark.slow,
    pytest.mark.timeout(400),
]

ROUNDS = int(os.environ.get("PYLON_TEST_NODE_ROUNDS", "1"))
HOLDER_S = 6.0  # longer than others wait for a holder of the lock before they end it
LEASE_S = 14.0  # others claim its shards meanwhile; after 15 s it would replace its own workers
AWAY_S = 3.0


class Trial:
    """A fleet and its database."""

    def __init__(self, fleet: Fleet, server: PostgresServer) -> None:
        self.fleet, self.server = fleet, server
        self.random = random.Random(ROUNDS)

    def any_node(self) -> int:
        return self.random.randrange(len(self.fleet.nodes))

    def node_of_a_shard(self) -> int:
        """Return the number of a node that runs a shard."""
        ((owner,), *_) = self.server.run_sql(
            "SELECT owner FROM _pylon_shards WHERE owner IS NOT NULL AND id LIKE 'trial:%'"
        )
        return int(str(owner).partition("/")[0].removeprefix("node"))

    def load(self, writes: int) -> None:
        """Let so many writes be acknowledged."""
        self.fleet.load.wait_for_progress(writes)

    def end_connections(self, name: str, times: int) -> None:
        """End the connections whose application's name is like `name`, so many times."""
        ended = 0
        for _ in range(times):
            found = self.server.run_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IS NOT NULL"
                f" AND pid <> pg_backend_pid() AND application_name LIKE '{name}'"
            )
            ended += len(found)
            time.sleep(self.random.uniform(0.1, 0.5))
        assert ended > 0, f"nobody is connected as {name}"


def end_nodes_together(trial: Trial) -> None:
    for number in (0, 1):
        trial.fleet.nodes[number].kill()
    for number in (0, 1):
        trial.fleet.nodes[number].restart()


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


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault; it returns the number of its node, if it is of one node.

    The waits are the longest that docs/nodes.md allows for the acknowledgement of a write, with its
    repetitions on other nodes, in seconds. A writer gives a node 8 s to answer.
    """

    run: Callable[[Trial], int | None]
    wait_s: float
    others_wait_s: float | None = None  # of writes that were sent to the other nodes only


FAULTS: dict[str, Fault] = {
    "nothing": Fault(lambda trial: trial.load(60), 3.0),
    "kill a node": Fault(lambda trial: trial.fleet.kill_node(trial.any_node()), 5.0, 3.0),
    "kill two nodes": Fault(end_nodes_together, 5.0),
    "kill http workers": Fault(
        lambda trial: trial.fleet.kill_workers(trial.any_node(), "http"), 5.0, 3.0
    ),
    "kill ws workers": Fault(
        lambda trial: trial.fleet.kill_workers(trial.any_node(), "ws"), 3.0, 3.0
    ),
    "freeze a writer": Fault(
        lambda trial: trial.fleet.freeze_writer(trial.any_node(), HOLDER_S), 12.0, 6.0
    ),
    "freeze a node": Fault(
        lambda trial: trial.fleet.freeze_node(trial.node_of_a_shard(), LEASE_S), 14.0, 6.0
    ),
    "restart a node": Fault(lambda trial: trial.fleet.restart_node(trial.any_node()), 5.0, 3.0),
    "end the writers' connections": Fault(
        lambda trial: trial.end_connections("pylon-writer%", 8), 5.0
    ),
    "end the relays' connections": Fault(
        lambda trial: trial.end_connections("pylon-relay%", 4), 3.0
    ),
    "end all connections": Fault(lambda trial: trial.end_connections("%", 3), 5.0),
    "restart the database": Fault(lambda trial: restart_database(trial, "fast", 0.0), 10.0),
    "stop the database at once": Fault(
        lambda trial: restart_database(trial, "immediate", AWAY_S), 10.0 + AWAY_S
    ),
    "kill the database": Fault(kill_database, 10.0),
    "a long snapshot": Fault(hold_snapshot, 3.0),
}


@pytest.fixture(scope="module")
def trial(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trial]:
    version = stores.wanted_version(find_programs())
    assert version is not None
    server = PostgresServer(find_programs()[version])
    ports = [reserve_base_port() for _ in range(3)]
    try:
        fleet = Fleet(
            tmp_path_factory.mktemp("nodes"), 3,
            lambda number: {
                "DATABASE_URL": server.url, "PYLON_NODE": f"node{number}",
                "PYLON_CLUSTER_URL": f"tcp://127.0.0.1:{ports[number]}",
            },
            shards_at=server.url,
        )
        with fleet.running():
            yield Trial(fleet, server)
    finally:
        server.close()


@pytest.mark.parametrize("name", list(FAULTS) * ROUNDS)
def test_promises_hold(trial: Trial, name: str) -> None:
    fault = FAULTS[name]
    assert trial.fleet.trial(
        name, lambda: fault.run(trial), fault.wait_s, fault.others_wait_s
    ) == []
