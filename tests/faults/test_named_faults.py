"""One node holds the promises through each fault of `node_faults`, one after another.

The faults of several nodes stand in `tests/nodes`.
"""

from __future__ import annotations

import pytest

from tests.faults.node_faults import FAULTS, Stage

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", list(FAULTS))
def test_promises_hold(stage: Stage, name: str) -> None:
    fault = FAULTS[name]

    def run() -> None:
        fault.run(stage)

    assert stage.fleet.trial(name, run, fault.wait_s) == []
