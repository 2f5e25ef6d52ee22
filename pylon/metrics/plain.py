"""Counters, gauges and histograms, and the registry that lists them.

Our own, because they are counted tens of thousands of times a second: prometheus_client takes a
lock for each event, which under gevent is written in Python, so that a request paid as much for
being counted as for its answer; and importing it loads an HTTP server, TLS and urllib into every
process. What is here is its interface as far as we use it: `labels`, `inc`, `set`, `observe`.

Invariants: metrics are made in `families` only; a metric without labels has its samples from the
start, one with labels has those that were asked for. Threads may count at the same time: between
the reading and the writing of a number there is no call, so CPython does not switch threads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from pylon.metrics.wire import Family, Sample


class Count:
    """One number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Level:
    """One number that goes up and down, or is asked for when it is reported."""

    __slots__ = ("_ask", "_value")

    def __init__(self) -> None:
        self._value: float = 0
        self._ask: Callable[[], float] | None = None

    @property
    def value(self) -> float:
        return self._value if self._ask is None else self._ask()

    def set(self, value: float) -> None:
        self._value = value

    def inc(self, amount: float = 1) -> None:
        self._value += amount

    def dec(self, amount: float = 1) -> None:
        self._value -= amount

    def set_function(self, ask: Callable[[], float]) -> None:
        """From now on the number is what `ask` says. It must not block."""
        self._ask = ask


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


_Child = TypeVar("_Child", Count, Level, Distribution)


class _Children(Generic[_Child]):
    """The child of a metric for each combination of label values that was asked for."""

    __slots__ = ("_by_values", "_make", "_names")

    def __init__(self, names: Sequence[str], make: Callable[[], _Child]) -> None:
        self._names = tuple(names)
        self._make: Callable[[], _Child] = make
        self._by_values: dict[tuple[str, ...], _Child] = {}

    def labels(self, *values: str, **named: str) -> _Child:
        """The child for these label values; keep it where it is used often.

        Raises:
            ValueError: too few values, or too many.
        """
        key = values or tuple(named[name] for name in self._names)
        child = self._by_values.get(key)
        if child is None:
            if len(key) != len(self._names):
                raise ValueError(f"labels {self._names} got {key}")
            child = self._by_values.setdefault(key, self._make())
        return child

    def __iter__(self) -> Iterator[tuple[dict[str, str], _Child]]:
        for key, child in list(self._by_values.items()):
            yield dict(zip(self._names, key, strict=True)), child


class Registry:
    """The metrics of one kind of process, in the order in which they were made."""

    def __init__(self) -> None:
        self._metrics: list[Counter | Gauge | Histogram] = []

    def register(self, metric: Counter | Gauge | Histogram) -> None:
        self._metrics.append(metric)

    def collect(self) -> Iterator[Family]:
        """Every metric that has a sample."""
        for metric in self._metrics:
            samples = metric.samples()
            if samples:
                yield Family(metric.name, metric.documentation, metric.kind, samples)


class Counter:
    """A number that grows; its name ends in `_total`. `inc` is there where labels are not."""

    kind: Final = "counter"

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *,
        registry: Registry,
    ) -> None:
        self.name = name
        self.documentation = documentation
        self._children = _Children(labelnames, Count)
        self.labels = self._children.labels
        if not labelnames:
            self.inc = self.labels().inc
        registry.register(self)

    def samples(self) -> list[Sample]:
        return [Sample(self.name, named, float(c.value)) for named, c in self._children]


class Gauge:
    """A number that goes up and down. What `Level` can is there where labels are not."""

    kind: Final = "gauge"

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *,
        registry: Registry,
    ) -> None:
        self.name = name
        self.documentation = documentation
        self._children = _Children(labelnames, Level)
        self.labels = self._children.labels
        if not labelnames:
            only = self.labels()
            self.set, self.inc, self.dec = only.set, only.inc, only.dec
            self.set_function = only.set_function
        registry.register(self)

    def samples(self) -> list[Sample]:
        return [Sample(self.name, named, float(c.value)) for named, c in self._children]


class Histogram:
    """Sizes, counted in buckets with upper bounds. `observe` is there where labels are not."""

    kind: Final = "histogram"

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *,
        buckets: Sequence[float], registry: Registry,
    ) -> None:
        self.name = name
        self.documentation = documentation
        bounds = tuple(buckets)
        self._marks = [*(repr(float(bound)) for bound in bounds), "+Inf"]
        self._children: _Children[Distribution] = _Children(
            labelnames, lambda: Distribution(bounds)
        )
        self.labels = self._children.labels
        if not labelnames:
            self.observe = self.labels().observe
        registry.register(self)

    def samples(self) -> list[Sample]:
        out = []
        for named, child in self._children:
            so_far = 0
            for mark, count in zip(self._marks, child.counts, strict=True):
                so_far += count
                out.append(Sample(f"{self.name}_bucket", {**named, "le": mark}, float(so_far)))
            out.append(Sample(f"{self.name}_count", named, float(so_far)))
            out.append(Sample(f"{self.name}_sum", named, child.total))
        return out
