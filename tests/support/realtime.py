"""Simulations and subscribers for the tests of pylon.realtime."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from pylon.auth_context import AuthContext
from pylon.errors import InputRejected
from pylon.realtime import kinds
from pylon.realtime.kinds import Kind
from pylon.realtime.shard import Shard
from pylon.realtime.snapshots import Format
from pylon.realtime.state import ShardContext, SimState


class Wire:
    """The tick as eight bytes, then the payload, as on a WebSocket."""

    def __init__(self, format: Format) -> None:  # noqa: A002
        self.format = format
        self.made = 0  # how often a frame was built

    def frame(self, tick: int, payload: bytes) -> bytes:
        self.made += 1
        return struct.pack(">Q", tick) + payload


class Client:
    """A sink that keeps what it gets."""

    def __init__(
        self, sid: str, wire: Wire, *, delta: bool = False, acks: bool = False,
        auth: AuthContext | None = None,
    ) -> None:
        self.sid = sid
        self.wire = wire
        self.delta = delta
        self.acks = acks
        self.auth = AuthContext(user_id=sid) if auth is None else auth
        self.frames: list[tuple[int, Any]] = []
        self.rejected: list[tuple[int | None, str]] = []
        self.ended: tuple[int, str] | None = None

    def send(self, frame: bytes) -> None:
        assert self.ended is None, "a frame after the end"
        decode = json.loads if self.wire.format is Format.JSON else msgspec.msgpack.decode
        self.frames.append((struct.unpack(">Q", frame[:8])[0], decode(frame[8:])))

    def reject(self, client_seq: int | None, reason: str) -> None:
        self.rejected.append((client_seq, reason))

    def end(self, code: int, reason: str) -> None:
        assert self.ended is None, "ended twice"
        self.ended = (code, reason)

    @property
    def ticks(self) -> list[int]:
        return [tick for tick, _ in self.frames]

    @property
    def last(self) -> Any:
        return self.frames[-1][1]


class Add(msgspec.Struct):
    """The input of `Counters`."""

    by: int
    to: str = "sum"


class Counters(SimState):
    """Adds up what it is told, and writes down what is called."""

    Input = Add

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        self.counters: dict[str, int] = {}
        self.here: list[str] = []
        self.steps: list[float] = []
        self.last_ticks = 1_000_000

    def joined(self, sid: str, auth: AuthContext) -> None:
        self.here.append(sid)

    def left(self, sid: str) -> None:
        self.here.remove(sid)

    def apply_input(self, sid: str, input: Add, received_at_s: float) -> None:  # noqa: A002
        if input.by > 100:
            raise InputRejected("too much")
        self.counters[input.to] = self.counters.get(input.to, 0) + input.by

    def tick(self, dt_s: float) -> None:
        self.steps.append(dt_s)

    def snapshot(self) -> Any:
        return {"counters": dict(self.counters), "here": sorted(self.here)}

    def is_finished(self) -> bool:
        return len(self.steps) >= self.last_ticks

    def save(self) -> Any:
        return {"counters": self.counters}

    def restore(self, saved: Any) -> None:
        self.counters = saved["counters"]


@contextmanager
def registered(state: type[SimState], **config: Any) -> Iterator[Kind]:
    """A kind named "sim" of `state`, for the time of the block."""
    kinds.clear_registry()
    kinds.shard("sim", **config)(state)
    try:
        yield kinds.kinds()["sim"]
    finally:
        kinds.clear_registry()


def shard_of(kind: Kind, shard_id: str = "sim:1", now_s: float = 0.0, **more: Any) -> Shard:
    return Shard(kind, ShardContext(shard_id, "sim", seed=7), now_s, **more)


def run_ticks(shard: Shard, from_s: float, ticks: int) -> float:
    """Step `ticks` times, each when it is due."""
    now_s = from_s
    for _ in range(ticks):
        due_s = shard.due_s()
        assert due_s is not None
        now_s = max(now_s, due_s)
        assert shard.step(now_s).ticked
    return now_s


def send_input(
    shard: Shard, client: Client, by: int, seq: int | None = None, now_s: float = 0.0
) -> int:
    """Submit an input of `Counters` for `client`; the sequence number that the shard gives it."""
    raw = msgspec.json.encode({"by": by})
    return shard.submit(client.sid, client.auth, raw, now_s, sink=client, client_seq=seq)
