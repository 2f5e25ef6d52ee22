"""The node of the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.node_faults import RUNTIME, Stage
from tests.faults.shim import Shim
from tests.nodes.fleet import Fleet


@pytest.fixture(scope="module")
def stage(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One node under load, on a SQLite file."""
    folder = tmp_path_factory.mktemp("node")
    shim = Shim(folder)
    runtime = folder / "node0" / RUNTIME
    fleet = Fleet(
        folder, 1, lambda _: {**shim.env, "PYLON_RUNTIME_DIR": str(runtime)}, writers=2, clients=4
    )
    with fleet.running():
        yield Stage(fleet, shim)
