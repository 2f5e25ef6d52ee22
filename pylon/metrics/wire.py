"""The wire form of metrics: what a worker's heartbeat carries, and what the page is made of.

Called by the bus, the supervisor and every module of `pylon.metrics`.
"""

from __future__ import annotations

import msgspec


class SampleExemplar(msgspec.Struct, frozen=True, array_like=True):
    """An example of what a bucket has counted: the labels that name it, its value, its time."""

    labels: dict[str, str]
    value: float
    unix_s: float


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One line of the metrics page."""

    name: str
    labels: dict[str, str]
    value: float
    exemplar: SampleExemplar | None = None  # of a bucket


class Family(msgspec.Struct, frozen=True, array_like=True):
    name: str
    help: str
    kind: str  # counter, gauge, histogram
    samples: list[Sample]
