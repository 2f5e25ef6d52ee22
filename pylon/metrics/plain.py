"""Counters and histograms for what happens tens of thousands of times a second.

prometheus_client's take a lock for each event, and under gevent that lock is written in Python:
a request would pay as much for being counted as for its answer. These do without; they are for
the greenlets of one thread.

The interface is the part of prometheus_client's that we use: `labels`, `inc`, `observe`, and
`collect` for the registry. Made in `families` only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Count:
    """One number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount


class PlainCounter:
    """A counter by labels."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *,
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._children: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str, **named: str) -> Count:
        """The number for these label values; keep it where it is used often."""
        key = _key(self._labelnames, values, named)
        return self._children.setdefault(key, Count())

    def describe(self) -> list[Metric]:
        """For the registry, which asks for the names."""
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for key, child in list(self._children.items()):
            family.add_metric(key, child.value)
        yield family

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)


class Distribution:
    """How often which size was seen."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class PlainHistogram:
    """A histogram by labels."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *,
        buckets: Sequence[float], registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._bounds = tuple(buckets)
        self._marks = [*map(floatToGoString, self._bounds), "+Inf"]
        self._children: dict[tuple[str, ...], Distribution] = {}
        registry.register(self)

    def labels(self, *values: str, **named: str) -> Distribution:
        """As `PlainCounter.labels`."""
        key = _key(self._labelnames, values, named)
        return self._children.setdefault(key, Distribution(self._bounds))

    def observe(self, value: float) -> None:
        """For a histogram without labels."""
        self.labels().observe(value)

    def describe(self) -> list[Metric]:
        """For the registry, which asks for the names."""
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for key, child in list(self._children.items()):
            so_far = 0
            buckets = []
            for mark, count in zip(self._marks, child.counts, strict=True):
                so_far += count
                buckets.append((mark, so_far))
            family.add_metric(key, buckets, child.total)
        yield family

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)


def _key(names: tuple[str, ...], values: tuple[str, ...], named: dict[str, str]) -> tuple[str, ...]:
    key = values or tuple(named[name] for name in names)
    if len(key) != len(names):
        raise ValueError(f"labels {names} got {key}")
    return key
