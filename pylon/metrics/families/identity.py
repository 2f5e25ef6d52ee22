"""Metrics of the identity process: its calls, and the queue of password hashes."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import WORKER
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

IDENTITY_CALLS: Final = Counter(
    "pylon_identity_calls_total",
    "Requests of sign-in that the identity process has answered, by action and result (ok or the "
    "code of the error).", ("action", "result"), registry=WORKER,
)
PASSWORD_HASHES: Final = Counter(
    "pylon_password_hashes_total",
    "Password hashes, by result: made, refused (the queue was full), late (dropped from it).",
    ("result",), registry=WORKER,
)
HASHES_WAITING: Final = Gauge(
    "pylon_password_hashes_waiting", "Password hashes that wait for a thread.", registry=WORKER,
)
HASH_TIME: Final = Histogram(
    "pylon_password_hash_duration_seconds", "Time of a password hash in its thread.",
    buckets=(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0), registry=WORKER,
)
