"""What `deploy/` has for Prometheus and Grafana: alert rules, and the queries of the dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from pylon.metrics.registries import SUPERVISOR, WORKER

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "pylon.rules.yml"
RULES_TEST = ROOT / "deploy" / "prometheus" / "pylon.rules_test.yml"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "pylon.json"
_VARIABLES = {
    "$job": "pylon", "$instance": ".*", "$role": ".*", "$quantile": "0.99",
    "$__rate_interval": "10s",
}
_METRIC = re.compile(r"\b((?:pylon|process)_\w+)")
_PARTS = re.compile(r"_(bucket|sum|count)$")


def alerts() -> list[dict[str, Any]]:
    """Return the alert rules."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that have queries."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> list[str]:
    """Return the queries of the dashboard, with values in place of its variables."""
    found = []
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in _VARIABLES.items():
                text = text.replace(name, value)
            found.append(text)
    return found


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics in an expression, as the page's families have them."""
    names = set(_METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))
    counted = {f"{m.name}_{part}" for r in (WORKER, SUPERVISOR) for m in r.collect()
               if m.type == "histogram" for part in ("bucket", "sum", "count")}
    return {_PARTS.sub("", name) if name in counted else name for name in names}


def known_metrics() -> set[str]:
    """Return the names of all metrics of the product, as the page has them."""
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for registry in (SUPERVISOR, WORKER) for metric in registry.collect()
    }
