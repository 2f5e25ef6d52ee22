"""Metrics: what is measured (`families`), and how processes become one page (`merge`, `render`).

Each process counts for itself with prometheus_client. A worker sends `take_changes()` with its
heartbeat; the supervisor merges these snapshots, adds its own, and serves one page, where every
sample of a worker has the label `role`, and gauges also `worker`. A process that was forked
calls `reset()` before it counts.
"""

from pylon.metrics.families import *  # noqa: F403  (the constants of all metrics)
from pylon.metrics.merge import Merged
from pylon.metrics.render import render_json, render_openmetrics, render_text
from pylon.metrics.snapshot import (
    reset,
    return_changes,
    snapshot,
    supervisor_snapshot,
    take_changes,
)

__all__ = [
    "Merged", "render_json", "render_openmetrics", "render_text", "reset", "return_changes",
    "snapshot", "supervisor_snapshot", "take_changes",
]
