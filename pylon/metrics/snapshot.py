"""This process's metrics as plain data, fit for the bus.

Invariants: a family's name is the one that a reader of the page sees (counters end in
`_total`); creation timestamps are left out. Called once a second in each worker (by
`workers.boot`) and for each page in the supervisor.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from pylon.bus.messages import Family, Sample
from pylon.metrics.families import SUPERVISOR, WORKER


def snapshot() -> list[Family]:
    """What this worker process has measured. Families without a sample are left out."""
    return _collect(WORKER)


def supervisor_snapshot() -> list[Family]:
    """What the supervisor has measured."""
    return _collect(SUPERVISOR)


def _collect(registry: CollectorRegistry) -> list[Family]:
    out = []
    for metric in registry.collect():
        name = metric.name + "_total" if metric.type == "counter" else metric.name
        samples = [
            Sample(sample.name, dict(sample.labels), float(sample.value))
            for sample in metric.samples
            if not sample.name.endswith("_created")
        ]
        if samples:
            out.append(Family(name, metric.documentation, metric.type, samples))
    return out
