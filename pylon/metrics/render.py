"""The metrics page: Prometheus text (0.0.4), OpenMetrics (1.0), and the JSON of spec/http.md §7.

prometheus_client writes the two text formats. The families that the spec names come first, in its
order; four of them are derived from `pylon_http_requests_total`, so that the workers count a
request once. Pure functions, called by `supervisor.control_handlers` for `/metrics` and
`pylonctl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar

from pylon.metrics.families.http import DERIVED_HELP
from pylon.metrics.wire import Family, Sample

TEXT_CONTENT_TYPE: Final = "text/plain; version=0.0.4"
OPENMETRICS_CONTENT_TYPE: Final = openmetrics.CONTENT_TYPE_LATEST
JSON_CONTENT_TYPE: Final = "application/json"

_METHODS: Final = ("GET", "POST", "PATCH", "DELETE", "OPTIONS")
_JSON_METHODS: Final = _METHODS[:4]
# A counter whose name the spec gives, without `_total`: called one, `promtool` refuses the page.
_UNTYPED: Final = "pylon_http_requests_by_method"
_FIRST: Final = (
    "pylon_uptime_seconds", "pylon_http_requests_total", "pylon_http_requests_ok_total",
    "pylon_http_requests_errors_total", "pylon_http_requests_by_method",
)


def render_text(families: Iterable[Family]) -> str:
    """Return the whole page in Prometheus' text format, with a newline at the end."""
    return generate_latest(_Page(_ordered(families))).decode()


def render_openmetrics(families: Iterable[Family]) -> str:
    """Return the whole page in the OpenMetrics format.

    It lacks the untyped `pylon_http_requests_by_method`: there the counter that ends in `_total`
    has the same family name.
    """
    page = _Page(family for family in _ordered(families) if family.name != _UNTYPED)
    return str(openmetrics.generate_latest(page), "utf-8")


def render_json(families: Iterable[Family], uptime_s: float) -> dict[str, Any]:
    """``{"uptime_secs", "requests": {total, ok, error}, "methods": {...}}`` (spec §7)."""
    requests = next((f for f in families if f.name == "pylon_http_requests_total"), None)
    ok, errors, methods = _totals(requests)
    return {
        "uptime_secs": int(uptime_s),
        "requests": {"total": ok + errors, "ok": ok, "error": errors},
        "methods": {method: methods[method] for method in _JSON_METHODS},
    }


def _totals(requests: Family | None) -> tuple[int, int, dict[str, int]]:
    ok = errors = 0
    methods = dict.fromkeys(_METHODS, 0)
    for sample in requests.samples if requests is not None else ():
        count = int(sample.value)
        if sample.labels.get("status", "")[:1] in ("2", "3"):
            ok += count
        else:
            errors += count
        method = sample.labels.get("method", "")
        if method in methods:
            methods[method] += count
    return ok, errors, methods


def _derived(requests: Family | None) -> list[Family]:
    ok, errors, methods = _totals(requests)
    values: dict[str, list[tuple[dict[str, str], int]]] = {
        "pylon_http_requests_ok_total": [({}, ok)],
        "pylon_http_requests_errors_total": [({}, errors)],
        "pylon_http_requests_by_method": [({"method": m}, methods[m]) for m in _METHODS],
    }
    values["pylon_http_requests_by_method_total"] = values[_UNTYPED]
    return [
        Family(name, DERIVED_HELP[name], "untyped" if name == _UNTYPED else "counter",
               [Sample(name, labels, float(value)) for labels, value in samples])
        for name, samples in values.items()
    ]


def _ordered(families: Iterable[Family]) -> list[Family]:
    by_name = {family.name: family for family in families}
    for family in _derived(by_name.get("pylon_http_requests_total")):
        by_name[family.name] = family
    first = [by_name[name] for name in _FIRST if name in by_name]
    return first + [by_name[name] for name in sorted(by_name) if name not in _FIRST]


class _Page:
    """The families as prometheus_client's exposition takes them."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            is_counter = family.kind == "counter"
            name = family.name.removesuffix("_total") if is_counter else family.name
            metric = Metric(name, family.help, family.kind)
            for sample in family.samples:
                found = sample.exemplar
                exemplar = None if found is None else Exemplar(
                    found.labels, found.value, found.unix_s
                )
                metric.add_sample(sample.name, sample.labels, sample.value, exemplar=exemplar)
            yield metric
