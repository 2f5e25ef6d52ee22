"""Writes the tables of docs/operations/metrics.md: python docs/metrics_page.py"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase

from pylon.metrics import families
from pylon.metrics.families.http import DERIVED_HELP, DERIVED_LABELS

PAGE = Path(__file__).parent / "operations" / "metrics.md"
BEGIN = "<!-- metrics: written by docs/metrics_page.py -->\n"
END = "<!-- end of metrics -->\n"


def page_name(metric: Metric) -> str:
    """The name of a metric as the page at /metrics has it."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def tables() -> str:
    """A table for each module of `pylon.metrics.families`, as Markdown."""
    parts = []
    for found in sorted(pkgutil.iter_modules(families.__path__), key=lambda found: found.name):
        module = importlib.import_module(f"{families.__name__}.{found.name}")
        rows = []
        for value in vars(module).values():
            if isinstance(value, MetricWrapperBase):
                (metric,) = value.describe()
                labels = ", ".join(f"`{label}`" for label in value._labelnames)
                rows.append((page_name(metric), metric.type, labels, metric.documentation))
        if found.name == "http":
            rows += [
                (name, "untyped" if name == "pylon_http_requests_by_method" else "counter",
                 ", ".join(f"`{label}`" for label in DERIVED_LABELS[name]), text)
                for name, text in DERIVED_HELP.items()
            ]
        title, _, _ = (module.__doc__ or "").partition("\n")
        lines = [
            f"### {found.name}", "", title, "",
            "| metric | kind | labels | |", "|---|---|---|---|",
        ]
        lines += [
            f"| `{name}` | {kind} | {labels} | {text.replace('|', chr(92) + '|')} |"
            for name, kind, labels, text in sorted(rows)
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n" + "\n".join(parts) + "\n"


def with_tables(page: str) -> str:
    """The page with the tables as they should be."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + tables() + END + tail


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
