"""What the resources work with: one bundle for each process, built by the worker at start.

The worker passes a `ReaderPool` and a `WriterClient`; tests an engine of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pylon.admission import Admission
from pylon.api.admin.readiness import Readiness
from pylon.api.data.conflicts import ConflictWatch
from pylon.api.data.query_cache import QueryCache
from pylon.api.sync.hints import HintPublisher
from pylon.app import App
from pylon.auth.cookies import SessionCookie
from pylon.auth.origin import Origins
from pylon.auth.session_cache import SessionCache
from pylon.bus.messages import Signal
from pylon.bus.rooms_messages import RoomCommand, RoomReply
from pylon.bus.shards import DescribeAll, MatchCommand, ShardCommand
from pylon.changelog.feed import Feed
from pylon.changelog.pull import Pulled
from pylon.limiter import RateLimiter
from pylon.round_robin import RoundRobin
from pylon.storage.interface import Store
from pylon.storage.ops import WriteOp, WriteReply

Credentials = tuple[str | None, str | None]  # the Authorization and the Cookie header


class Writer(Protocol):
    """Writes. Both calls return after the commit."""

    def submit(self, op: WriteOp) -> WriteReply:
        """Carry out one write; raises the `PylonError` that it was refused with."""

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        """Carry out writes in order; each reply has its own error, if any."""


class RoomCommands(Protocol):
    """Where the rooms and channels are."""

    def submit(self, command: RoomCommand) -> RoomReply:
        """Carry out a command; raises the `PylonError` that it was refused with."""


class ShardCommands(Protocol):
    """Where the shards are: `pylon.bus.shards.ShardsClient`."""

    def for_shard(self, command: ShardCommand) -> bytes:
        """Ask where a shard lives; a JSON text, or the `PylonError` that it was refused with."""

    def of_matchmaker(self, command: MatchCommand) -> bytes:
        """Ask the matchmaker."""

    def broadcast(self, command: DescribeAll) -> list[bytes]:
        """Ask every shards worker."""


class MergeChecker(Protocol):
    """Tries updates of documents: `workers.merge_sandbox`."""

    def check_merge(self, parts: Sequence[bytes], update: bytes, caller: str) -> bytes:
        """The bytes to merge into the document of `parts`: the update, or the new part of it.
        Raises the `PylonError` that it is refused with. Trials share the processes by `caller`."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a resource may use."""

    app: App
    store: Store
    callers: SessionCache[Credentials]
    writer: Writer
    rooms: RoomCommands
    shards: ShardCommands
    tasting: MergeChecker
    feed: Feed
    notes: HintPublisher
    readiness: Readiness
    limiter: RateLimiter
    origins: Origins
    cookie: SessionCookie
    send_signal: Callable[[Signal], None]
    control_socket: Path  # the supervisor's, for /metrics
    started_s: float  # monotonic
    answers: QueryCache[bytes] = field(default_factory=QueryCache)
    pulls: QueryCache[Pulled] = field(default_factory=QueryCache)
    # The decoder holds the interpreter: two at once would only wait for each other.
    decoding: Admission = field(default_factory=lambda: Admission("decode", 1, 1))
    turns: RoundRobin = field(default_factory=RoundRobin)
    conflicts: ConflictWatch = field(default_factory=ConflictWatch)
