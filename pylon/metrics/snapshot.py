"""This process's metrics as plain data, fit for the bus.

Called once a second in each worker (by `workers.boot`) and for each page in the supervisor.
"""

from __future__ import annotations

from pylon.metrics.families import SUPERVISOR, WORKER
from pylon.metrics.wire import Family


def snapshot() -> list[Family]:
    """What this worker process has measured. Families without a sample are left out."""
    return list(WORKER.collect())


def supervisor_snapshot() -> list[Family]:
    """What the supervisor has measured."""
    return list(SUPERVISOR.collect())
