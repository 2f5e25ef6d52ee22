"""A node whose cable to the database is cut: packets vanish, and no connection ends by itself.

Each node is in a network namespace of its own. The other node goes on, the clients of the cut node
are answered 503 or nothing, and after the cable is mended the promises hold for everybody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.nodes.fleet import Fleet
from tests.support import stores
from tests.support.networks import Namespace, missing_rights
from tests.support.postgres import PostgresServer, find_programs

pytestmark = [
    pytest.mark.usefixtures("processes", "postgres_server"), pytest.mark.slow,
    pytest.mark.timeout(400),
]

CUTS_S = (0.5, 4.0, 25.0)  # a moment; longer than a holder may hold; longer than TCP's patience
# The longest waits for the acknowledgement of a write (docs/nodes.md): beyond the time of the cut,
# and of writes that were sent to the other node only.
ANYWHERE_S = 12.0
OTHERS_S = 10.0
RESENT_S = 8.0  # TCP sends again, or a connection is opened anew, so long after the mend


@pytest.fixture
def namespaces() -> Iterator[list[Namespace]]:
    reason = missing_rights()
    if reason is not None:
        pytest.skip(reason)
    made = [Namespace() for _ in range(2)]
    yield made
    for namespace in made:
        namespace.close()


def test_promises_hold_over_cuts(
    namespaces: list[Namespace], tmp_path_factory: pytest.TempPathFactory
) -> None:
    version = stores.wanted_version(find_programs())
    assert version is not None
    gateways = ",".join(namespace.gateway for namespace in namespaces)
    server = PostgresServer(find_programs()[version], None, f"listen_addresses={gateways}")
    server.allow("10.78.0.0/16")
    server.stop("fast")
    server.start()
    fleet = Fleet(
        tmp_path_factory.mktemp("partition"), 2,
        lambda number: {
            "DATABASE_URL": f"postgresql://pylon@{namespaces[number].gateway}/postgres",
            "PYLON_NODE": f"node{number}", "PYLON_BIND": namespaces[number].host,
        },
        clients=4,
    )
    for node, namespace in zip(fleet.nodes, namespaces, strict=True):
        node.host = namespace.host
        node.command = namespace.command(node.command)
    try:
        with fleet.running():
            for cut_s in CUTS_S:

                def cut(cut_s: float = cut_s) -> int:
                    namespaces[0].cut()
                    time.sleep(cut_s)
                    namespaces[0].mend()
                    return 0

                problems = fleet.trial(
                    f"cut for {cut_s:g} s", cut, ANYWHERE_S + cut_s, OTHERS_S, RESENT_S
                )
                assert problems == [], f"cut for {cut_s:g} s"
    finally:
        server.close()
