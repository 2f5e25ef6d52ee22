"""Descriptions of shards as JSON, for the API, `pylonctl shards` and the matchmaker."""

from __future__ import annotations

from typing import Any

import msgspec

from pylon.realtime.shard import Shard


def description(shard: Shard, home: str) -> dict[str, Any]:
    """Return a shard as a JSON object (spec/realtime.md §4.4).

    The API shows `seats_taken`, `worker`, `stopped_because` and `traceback` to administrators only.
    """
    found: dict[str, Any] = {
        "id": shard.id,
        "running": shard.running,
        "tick": shard.tick,
        "subscribers": shard.subscribers,
        "input_queue": shard.input_queue,
        "seats_taken": shard.seats_taken,
        "worker": home,
    }
    if not shard.running:
        found["stopped_because"] = shard.stopped_because
        if shard.traceback is not None:
            found["traceback"] = shard.traceback
    return found


def encoded(value: Any) -> bytes:
    """Return a value as JSON text."""
    return msgspec.json.encode(value)


def decoded(answer: bytes) -> Any:
    """Return the value of a JSON text."""
    return msgspec.json.decode(answer)
