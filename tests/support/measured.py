"""Readers of metrics for tests: a metric of this process, and a series of the metrics page."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_NOT_COUNTED = ("_created", "_bucket", "_sum")


def total(metric: Collector, **labels: str) -> float:
    """Return the sum of the metric's samples with these labels; of a histogram, its count."""
    return sum(
        sample.value for family in metric.collect() for sample in family.samples
        if not sample.name.endswith(_NOT_COUNTED) and labels.items() <= sample.labels.items()
    )


def page_families(page: str) -> dict[str, Metric]:
    """Return the families of a metrics page by name, as prometheus_client reads it."""
    return {family.name: family for family in text_string_to_metric_families(page)}


def page_values(page: str, name: str, **labels: str) -> list[float]:
    """Return the values of the page's samples of this name that have these labels."""
    return [
        sample.value for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
