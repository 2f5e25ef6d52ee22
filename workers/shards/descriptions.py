"""Shards as JSON: what the API, `pylonctl shards` and the matchmaker see of them."""

from __future__ import annotations

from typing import Any

import msgspec

from pylon.realtime.shard import Shard


def description(shard: Shard, home: str) -> dict[str, Any]:
    """``{"id","running","tick","subscribers","input_queue"}`` (spec/realtime.md §4.4), and for
    eyes that may see it the worker, the seats, and why it has stopped."""
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
    """An answer as JSON text."""
    return msgspec.json.encode(value)


def decoded(answer: bytes) -> Any:
    """What `encoded` made."""
    return msgspec.json.decode(answer)
