"""One node holds the promises through faults in random order, one begun before the last is over.

    PYLON_TEST_FAULTS_S=1800 python -m pytest -s tests/faults/test_random_faults.py

runs for half an hour. PYLON_TEST_FAULTS_SEED repeats an order; the output has it.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final

import pytest

from tests.faults.node_faults import FAULTS, Stage

FAULTS_S: Final = float(os.environ.get("PYLON_TEST_FAULTS_S", "20"))
SEED: Final = int(os.environ.get("PYLON_TEST_FAULTS_SEED", "1"))
AT_ONCE: Final = 3  # faults before the comparison, at most

pytestmark = [
    pytest.mark.usefixtures("processes"), pytest.mark.slow, pytest.mark.timeout(300 + FAULTS_S),
]


def test_promises_hold_through_random_faults(stage: Stage) -> None:
    rng = random.Random(SEED)
    end_s = time.monotonic() + FAULTS_S
    trials = 0
    while trials == 0 or time.monotonic() < end_s:
        names = [rng.choice(list(FAULTS)) for _ in range(rng.randint(1, AT_ONCE))]

        def run(names: list[str] = names) -> None:
            for name in names:
                if stage.node.process is None or stage.node.process.poll() is not None:
                    stage.node.restart()
                stage.fleet.wait_ready()
                FAULTS[name].run(stage)
                time.sleep(rng.uniform(0, 0.5))

        waits_s = sum(FAULTS[name].wait_s for name in names)
        assert stage.fleet.trial(f"seed {SEED}, {', then '.join(names)}", run, waits_s) == []
        trials += 1
    print(f"{trials} trials, {stage.fleet.load.acknowledged} writes acknowledged")
