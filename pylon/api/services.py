"""Services: what the resources of one process work with, grouped by family.

`RequestServices` is what every request needs: its caller, its bounds. Each other group adds what
one family of resources needs, and holds the requests group too. The HTTP worker builds all groups
once, at its start; tests build them over a store of their own.

Invariant: the resources keep no state of their own; all of it is in these objects.
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
from pylon.api.http.compression import Compression
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
    """Executes writes. Both calls return after the commit."""

    def submit(self, op: WriteOp) -> WriteReply:
        """Execute one write.

        Raises:
            PylonError: the write is refused, or the writer is not reached.
        """

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        """Execute writes in order; a reply has the error of its write, if any.

        Raises:
            PylonError: the writer is not reached.
        """


class RoomCommands(Protocol):
    """Sends commands to the rooms service: `pylon.bus.rooms_client.RoomsClient`."""

    def submit(self, command: RoomCommand) -> RoomReply:
        """Execute a command.

        Raises:
            PylonError: the command is refused, or the service is not reached.
        """


class ShardCommands(Protocol):
    """Sends commands to the shards workers: `pylon.bus.shards.ShardsClient`.

    Each call returns JSON texts, and raises the `PylonError` of a command that is refused.
    """

    def for_shard(self, command: ShardCommand) -> bytes:
        """Send a command to the worker that has the shard."""

    def for_matchmaker(self, command: MatchCommand) -> bytes:
        """Send a command to the worker that has the matchmaker."""

    def broadcast(self, command: DescribeAll) -> list[bytes]:
        """Send a command to every shards worker; return a text of each."""


class MergeChecker(Protocol):
    """Merges updates of documents on trial: `workers.merge_sandbox.MergeSandbox`."""

    def check_merge(self, parts: Sequence[bytes], update: bytes, caller: str) -> bytes:
        """Return the bytes to merge into the document of `parts`: the update, or its new part.

        Args:
            caller: the callers share the sandbox processes in turn.

        Raises:
            PylonError: the update is refused.
        """


@dataclass(frozen=True, slots=True)
class RequestServices:
    """Services that every request uses."""

    app: App
    session_cache: SessionCache[Credentials]
    cookie: SessionCookie
    origins: Origins
    limiter: RateLimiter
    compression: Compression = field(default_factory=Compression)
    # One at a time: the decoder holds the interpreter, so a second one would only wait for it.
    decoding: Admission = field(default_factory=lambda: Admission("decode", 1, 1))


@dataclass(frozen=True, slots=True)
class DataServices:
    """Services of the resources of rows, pushes and documents."""

    requests: RequestServices
    app: App
    store: Store
    writer: Writer
    query_cache: QueryCache[bytes] = field(default_factory=QueryCache)
    turns: RoundRobin = field(default_factory=RoundRobin)
    conflicts: ConflictWatch = field(default_factory=ConflictWatch)


@dataclass(frozen=True, slots=True)
class SyncServices:
    """Services of pulls, besides the store."""

    feed: Feed
    hints: HintPublisher
    merge_checker: MergeChecker
    pull_cache: QueryCache[Pulled] = field(default_factory=QueryCache)


@dataclass(frozen=True, slots=True)
class RealtimeServices:
    """Services of the resources of rooms, channels, shards and matches."""

    requests: RequestServices
    app: App
    store: Store
    rooms: RoomCommands
    shards: ShardCommands


@dataclass(frozen=True, slots=True)
class IdentityServices:
    """Services of the resources of sessions."""

    requests: RequestServices
    app: App
    store: Store
    writer: Writer
    send_signal: Callable[[Signal], None]


@dataclass(frozen=True, slots=True)
class AdminServices:
    """Services of the resources of the server itself.

    Args:
        control_socket: the supervisor's, which has the metrics of all processes.
        started_s: when the worker started, on the monotonic clock of the app.
    """

    requests: RequestServices
    app: App
    writer: Writer
    readiness: Readiness
    control_socket: Path
    started_s: float


@dataclass(frozen=True, slots=True)
class Services:
    """The groups of one process, for `pylon.api.application`."""

    requests: RequestServices
    data: DataServices
    sync: SyncServices
    realtime: RealtimeServices
    identity: IdentityServices
    admin: AdminServices
