"""The recorder of faults on one node: the promises hold on it, and it can tell.

The faults of several nodes stand in `test_three_nodes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.nodes.fleet import Fleet, folder_env

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.slow]


def nothing(fleet: Fleet) -> None:
    fleet.load.wait_for_progress(60)


# The fault, and the longest wait of a write for its acknowledgement, in seconds.
FAULTS: dict[str, tuple[Callable[[Fleet], int | None], float]] = {
    "nothing": (nothing, 5.0),
    "kill the node": (lambda fleet: fleet.kill_node(0), 15.0),
    "kill http": (lambda fleet: fleet.kill_workers(0, "http"), 5.0),
    "kill ws": (lambda fleet: fleet.kill_workers(0, "ws"), 5.0),
    "freeze the writer": (lambda fleet: fleet.freeze_writer(0, 2.0), 7.0),
    "freeze the node": (lambda fleet: fleet.freeze_node(0, 2.0), 7.0),
    "restart": (lambda fleet: fleet.restart_node(0), 15.0),
}


@pytest.fixture(scope="module")
def fleet(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("node"), 1, folder_env, writers=2, clients=4)
    with made.running():
        yield made


@pytest.mark.parametrize("fault", list(FAULTS))
def test_promises_hold(fleet: Fleet, fault: str) -> None:
    run, longest_wait_s = FAULTS[fault]
    assert fleet.trial(fault, lambda: run(fleet), longest_wait_s) == []


