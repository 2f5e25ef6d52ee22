"""What the operating system knows of each process: CPU, memory, descriptors, start.

The standard names (`process_resident_memory_bytes` and so on), by prometheus_client's own
collector, so that dashboards made for them work; with the labels `role` and `worker`, one sample
for each process of the server. The supervisor asks when the page is made. A process that has
ended meanwhile has no samples.

prometheus_client is loaded with the first page. Its counters are not used: see `plain`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from pylon.imports import mentioning
from pylon.metrics.wire import Family, Sample

if TYPE_CHECKING:
    from prometheus_client.process_collector import ProcessCollector

# What the library mentions for serving a page itself, which it does not do here.
_MENTIONED: Final[dict[str, tuple[str, ...]]] = {
    "http.server": ("BaseHTTPRequestHandler",),
    "ssl": ("PROTOCOL_TLS_CLIENT", "PROTOCOL_TLS_SERVER", "SSLContext", "TLSVersion"),
    "urllib.request": (
        "BaseHandler", "build_opener", "HTTPHandler", "HTTPRedirectHandler", "HTTPSHandler",
        "Request",
    ),
    "wsgiref.simple_server": ("make_server", "WSGIRequestHandler", "WSGIServer"),
}


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
    with ExitStack() as stack:
        for module, names in _MENTIONED.items():
            stack.enter_context(mentioning(module, **dict.fromkeys(names, object)))
        from prometheus_client.process_collector import ProcessCollector
    return ProcessCollector(pid=lambda: pid, registry=None)
