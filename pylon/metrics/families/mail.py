"""Metrics of the mails of sign-in."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import WORKER
from pylon.metrics.values import PlainCounter as Counter

MAILS: Final = Counter(
    "pylon_mails_total",
    "Mails of sign-in: sent, failed (an attempt, which is repeated), refused by the other side, or "
    "expired before they were sent.", ("result",), registry=WORKER,
)
MAILS_WAITING: Final = Gauge(
    "pylon_mails_waiting", "Mails in the outbox.", registry=WORKER,
)
MAILS_OLDEST: Final = Gauge(
    "pylon_mails_oldest_age_seconds", "Age of the oldest mail in the outbox.", registry=WORKER,
)
