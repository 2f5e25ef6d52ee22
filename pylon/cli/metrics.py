"""`pylonctl metrics`: prints the metrics of the running server for people, with units and help.

The supervisor makes the page of Prometheus (`pylon.metrics`); this verb groups its metrics by the
second word of their names, adds up a histogram to its count, mean and quantiles, and writes sizes
and times with units. `read_samples` reads a page for other verbs too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import click
from prometheus_client.parser import text_string_to_metric_families

from pylon.cli.output import json_flag, result
from pylon.cli.running import require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.doctor.findings import size_text

_ANSWER_S: Final = 10.0
_QUANTILES: Final = (0.5, 0.99)


class MetricSample(NamedTuple):
    """One value of the page. Buckets of histograms have the label `le`."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class MetricView:
    """A metric as people see it: its lines have labels and a text."""

    name: str
    kind: str
    help: str
    lines: tuple[tuple[str, str], ...]


@click.command()
@click.option("--grep", help="Only metrics whose name or help has this text.")
@click.option("--zero", "shows_zero", is_flag=True, help="Also print what is 0.")
@dev_flag
@json_flag
def metrics(grep: str | None, shows_zero: bool, dev: bool) -> None:
    """Show the metrics of the running server, grouped, with units and help."""
    config = read_settings(dev=dev).config
    page = require_running(config).control(_ANSWER_S).ask("metrics", format="text")["body"]
    views = [v for v in read_views(page, shows_zero=shows_zero) if _is_wanted(v, grep)]
    body = {"metrics": [
        {"name": v.name, "type": v.kind, "help": v.help, "values": dict(v.lines)} for v in views
    ]}
    result(body, "\n".join(_print_groups(views)) or "no such metric, or all of them are 0")


def read_samples(page: str) -> list[MetricSample]:
    """Return all samples of a page in Prometheus' text format."""
    return [
        MetricSample(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(page) for sample in family.samples
    ]


def read_views(page: str, *, shows_zero: bool = False) -> Iterator[MetricView]:
    """Yield the metrics of a page by name.

    Args:
        shows_zero: also values that are 0.
    """
    for family in sorted(text_string_to_metric_families(page), key=lambda family: family.name):
        samples = [MetricSample(s.name, s.labels, s.value) for s in family.samples]
        if family.type == "histogram":
            lines = _histogram_lines(family.name, samples, shows_zero=shows_zero)
        else:
            lines = [
                (_labels_text(s.labels), _value_text(s.name, s.value))
                for s in samples if s.value or shows_zero
            ]
        if lines:
            yield MetricView(family.name, family.type, family.documentation, tuple(lines))


def quantile(buckets: Iterable[tuple[float, float]], share: float) -> float:
    """Return the upper bound of the bucket in which a quantile lies.

    Args:
        buckets: upper bound and cumulative count of each.
    """
    ordered = sorted(buckets)
    total = ordered[-1][1] if ordered else 0.0
    return next((bound for bound, count in ordered if total and count >= share * total), 0.0)


def _histogram_lines(
    name: str, samples: list[MetricSample], *, shows_zero: bool
) -> list[tuple[str, str]]:
    sums: dict[str, float] = {}
    buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        labels = _labels_text({k: v for k, v in sample.labels.items() if k != "le"})
        if sample.name.endswith("_sum"):
            sums[labels] = sample.value
        elif "le" in sample.labels:
            buckets[labels].append((float(sample.labels["le"]), sample.value))
    lines = []
    for labels, found in buckets.items():
        count = max(value for _, value in found)
        if not count and not shows_zero:
            continue
        mean = sums.get(labels, 0.0) / count if count else 0.0
        parts = [f"{count:.0f} times", f"mean {_value_text(name, mean)}"]
        parts += [f"p{share * 100:.0f} up to {_value_text(name, quantile(found, share))}"
                  for share in _QUANTILES]
        lines.append((labels, ", ".join(parts)))
    return lines


def _labels_text(labels: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _value_text(name: str, value: float) -> str:
    stem = re.sub(r"_(total|sum|max)$", "", name)
    if stem.endswith("_timestamp_seconds"):
        return "never" if not value else f"{value:.0f} (Unix time)"
    if stem.endswith("_seconds"):
        return seconds_text(value)
    if stem.endswith("_bytes"):
        return size_text(value)
    return f"{value:.0f}" if value == int(value) else f"{value:.3f}"


def seconds_text(value_s: float) -> str:
    """Return a duration for people."""
    if value_s == float("inf"):
        return "more than the last bucket"
    if value_s >= 3_600:
        return f"{value_s / 3_600:.1f} h"
    if value_s >= 1:
        return f"{value_s:.1f} s"
    return f"{value_s * 1_000:.1f} ms" if value_s >= 0.001 else f"{value_s * 1e6:.0f} µs"


def _is_wanted(view: MetricView, grep: str | None) -> bool:
    text = f"{view.name} {view.help}".lower()
    return grep is None or grep.lower() in text


def _print_groups(views: list[MetricView]) -> Iterator[str]:
    groups: dict[str, list[MetricView]] = defaultdict(list)
    for view in views:
        words: list[Any] = view.name.removeprefix("pylon_").split("_")
        groups[words[0]].append(view)
    for group, members in sorted(groups.items()):
        yield f"== {group}"
        for view in members:
            yield f"{view.name}: {view.help}"
            for labels, text in view.lines:
                yield f"    {labels + ': ' if labels else ''}{text}"
