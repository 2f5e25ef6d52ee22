"""Registries: the two sets of metrics, and the bounds of the buckets of histograms.

`WORKER` has the metrics of workers, `SUPERVISOR` those of the supervisor; the metrics of the bus
are in both. A metric registers itself where `families` declares it.

Invariant: a metric keeps its numbers in plain values (`values.install`), since every family module
imports this one before it declares a metric.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry

from pylon.metrics import values

values.install()
WORKER: Final = CollectorRegistry()
SUPERVISOR: Final = CollectorRegistry()

FAST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SLOW_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
BYTES: Final = (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)
