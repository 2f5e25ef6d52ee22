"""Datetimes in many notations, and their instants by another way than Pylon's.

Used by the models of queries and by the tests that compare evaluators with SQL.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

MOMENTS = st.sampled_from([
    "2026-01-31", "2026-01-31T23:30:00Z", "2026-01-31T23:30:00-01:00", "1769904000Z", "0Z",
    "2026-01-31t23:30+0530", "2026-02-01 00:10:59.999999999+01:00", "2025-12-29T10:00", "-1Z",
    "2026-01-31T23:59:59,9Z", "2024-02-29T12:00:00", "2026-02-01T00:10:00.5+01:00",
    "2026-01-31T23:30:00.000Z", "2026-01-31T23:30:00.000000Z", "2026-01-31 18:00z",
])


def instant(text: str) -> datetime:
    """The instant that a notation means."""
    epoch = re.fullmatch(r"(-?\d+)Z", text)
    if epoch is not None:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(epoch[1]))
    moment = datetime.fromisoformat(text.upper().replace(",", "."))
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def stored_moment(text: Any) -> Any:
    """The text that the store keeps for a notation."""
    if text is None:
        return None
    return instant(text).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
