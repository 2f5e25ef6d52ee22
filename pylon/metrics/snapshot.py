"""Snapshots: a process's metrics as plain data, fit for the bus.

A worker sends `take_changes` with each heartbeat: the families with a change since the last
call, so an idle worker reads and sends few numbers. If the heartbeat is lost, `return_changes`
lets the next one carry them. The supervisor reads its own metrics whole, for each page.

prometheus_client's multiprocess mode would replace this and `merge`: each process writes its
numbers into a mapped file and the reader adds the files up. We do not use it: each event would
take a lock and pack a float, the files of dead workers would have to be found and folded, and a
gauge needs a mode of its own to vanish with its worker.

Invariant: numbers are absolute, never differences; the first call returns every family.
Called by `workers.boot` and by the supervisor's `metrics` command.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import Metric
from prometheus_client.samples import Exemplar

from pylon.metrics import values
from pylon.metrics.registries import SUPERVISOR, WORKER
from pylon.metrics.wire import Family, Sample, SampleExemplar

_GAUGES: Final = frozenset(metric.name for metric in WORKER.collect() if metric.type == "gauge")
_SUFFIXES: Final = ("", "_total", "_bucket", "_count", "_sum")  # of a family's samples


def snapshot() -> list[Family]:
    """Return what this worker process has measured, without families that have no sample."""
    return _families(WORKER.collect())


def supervisor_snapshot() -> list[Family]:
    """Return what the supervisor has measured."""
    return _families(SUPERVISOR.collect())


def take_changes() -> list[Family]:
    """Return the worker's gauges, and its other families that have changed since the last call.

    A gauge may ask a function for its number, so all gauges count as changed.
    """
    changed = values.take_pending() | _GAUGES
    names = {name + suffix for name in changed for suffix in _SUFFIXES}
    return _families(WORKER.restricted_registry(names).collect())


def return_changes(families: Iterable[Family]) -> None:
    """Let the next `take_changes` return these families again: their heartbeat was lost."""
    values.add_pending({family.name.removesuffix("_total") for family in families})


def reset() -> None:
    """Begin at 0 in a process that was forked from one that has counted."""
    values.reset()


def _exemplar_of(exemplar: Exemplar | None) -> SampleExemplar | None:
    if exemplar is None:
        return None
    return SampleExemplar(exemplar.labels, exemplar.value, float(exemplar.timestamp or 0))


def _families(metrics: Iterable[Metric]) -> list[Family]:
    out = []
    for metric in metrics:
        samples = [
            Sample(sample.name, sample.labels, sample.value, _exemplar_of(sample.exemplar))
            for sample in metric.samples if not sample.name.endswith("_created")
        ]
        if samples:
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            out.append(Family(name, metric.documentation, metric.type, samples))
    return out
