"""Metrics: what is measured (`families`), and how processes become one page (`merge`, `render`).

Each process counts for itself in its own registries. A worker sends `snapshot()` with
its heartbeat; the supervisor merges the snapshots, adds its own, and serves one page, where
every sample of a worker has the label `role`, and gauges also `worker`.
"""

from pylon.metrics.families import *  # noqa: F403  (the names are listed in families.__all__)
from pylon.metrics.merge import Merged
from pylon.metrics.render import render_json, render_text
from pylon.metrics.snapshot import snapshot, supervisor_snapshot

__all__ = ["Merged", "render_json", "render_text", "snapshot", "supervisor_snapshot"]
