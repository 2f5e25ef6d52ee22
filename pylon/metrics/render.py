"""The metrics page: Prometheus text (0.0.4) and the JSON of spec/http.md §7.

The families that the spec names come first, in its order; three of them are derived from
`pylon_http_requests_total`, so that a request is counted once. Pure functions, called by
`supervisor.control` for `/metrics` and `pylonctl`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from pylon.metrics.families import DERIVED_HELP
from pylon.metrics.wire import Family, Sample

TEXT_CONTENT_TYPE: Final = "text/plain; version=0.0.4"
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
    """The whole page, HELP and TYPE lines included, with a newline at the end."""
    by_name = {family.name: family for family in families}
    for family in _derived(by_name.get("pylon_http_requests_total")):
        by_name[family.name] = family
    first = [by_name[name] for name in _FIRST if name in by_name]
    rest = [by_name[name] for name in sorted(by_name) if name not in _FIRST]
    lines: list[str] = []
    for family in (*first, *rest):
        lines.append(f"# HELP {family.name} {_escape(family.help, quotes=False)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines.extend(_line(sample) for sample in family.samples)
    return "\n".join(lines) + "\n"


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


def _line(sample: Sample) -> str:
    labels = ",".join(f'{k}="{_escape(v, quotes=True)}"' for k, v in sample.labels.items())
    return f"{sample.name}{{{labels}}} {_number(sample.value)}" if labels else (
        f"{sample.name} {_number(sample.value)}")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(value)


def _escape(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
