"""Figures of the operating system for each process: CPU, memory, descriptors, start.

prometheus_client's own collector reads them, under the standard names
(`process_resident_memory_bytes` and so on), so that dashboards made for these names work. Each
process of the server has one sample with the labels `role` and `worker`. A process that has ended
meanwhile has none. Called by the supervisor for each page.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import ProcessCollector

from pylon.metrics.wire import Family, Sample


def process_families(processes: Iterable[tuple[str, str, int]]) -> list[Family]:
    """The standard families.

    Args:
        processes: role, worker and pid of each.
    """
    found: dict[str, Family] = {}
    for role, worker, pid in processes:
        for metric in _collector(pid).collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            family = found.get(name)
            if family is None:
                family = found[name] = Family(name, metric.documentation, metric.type, [])
            labels = {"role": role, "worker": worker}
            family.samples.extend(
                Sample(sample.name, labels, sample.value) for sample in metric.samples
            )
    return list(found.values())


def _collector(pid: int) -> ProcessCollector:
    return ProcessCollector(pid=lambda: pid, registry=None)
