"""What the operating system knows of each process: CPU, memory, descriptors, start.

The standard names (`process_resident_memory_bytes` and so on), by prometheus_client's own
collector, so that dashboards made for them work; with the labels `role` and `worker`, one sample
for each process of the server. The supervisor asks when the page is made. A process that has
ended meanwhile has no samples.

Its counters are not used: see `plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.process_collector import ProcessCollector

from pylon.metrics.wire import Family, Sample


def process_families(processes: Iterable[tuple[str, str, int]]) -> list[Family]:
    """The standard families.

    Args:
        processes: role, worker and pid of each.
    """
    found: dict[str, Family] = {}
    for role, worker, pid in processes:
        for metric in ProcessCollector(pid=_constant(pid), registry=None).collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            family = found.get(name)
            if family is None:
                family = found[name] = Family(name, metric.documentation, metric.type, [])
            labels = {"role": role, "worker": worker}
            family.samples.extend(
                Sample(sample.name, labels, sample.value) for sample in metric.samples
            )
    return list(found.values())


def _constant(pid: int) -> Callable[[], int]:
    return lambda: pid
