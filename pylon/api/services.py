"""Services: what the resources of one process work with, grouped by family.

`RequestServices` is what every request needs: its caller, its bounds. Each other group adds what
one family of resources needs, and holds the requests group too.

The groups are made in two steps. `make_services` makes them without connections, in the template
process, so that the resources and routes are made there too, once for all HTTP workers. After the
fork each worker makes its `Connections` and calls `Services.connect`.

Invariants: the resources keep no state of their own; all of it is in these objects. Nothing changes
after `connect`. Before it, the attributes that it sets do not exist, so a resource must not read
them when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from pylon import limits
from pylon.admission import Admission
from pylon.api.admin.readiness import Readiness
from pylon.api.data.conflicts import ConflictWatch
from pylon.api.data.query_cache import QueryCache
from pylon.api.data.query_watch import QueryWatch
from pylon.api.http.compression import Compression
from pylon.api.http.request_rates import RequestRates
from pylon.api.sync.hints import HintPublisher
from pylon.app import App
from pylon.app_rates import AppRates
from pylon.auth.cookies import SessionCookie, session_cookie
from pylon.auth.keys import Keys
from pylon.auth.origin import Origins, origins
from pylon.auth.secret_key import read_keys
from pylon.auth.session_cache import SessionCache
from pylon.bus.identity import CallFacts, IdentityAnswer
from pylon.bus.messages import Signal
from pylon.bus.rooms_messages import RoomCommand, RoomReply
from pylon.bus.shards import DescribeAll, MatchCommand, ShardAnswers, ShardCommand
from pylon.changelog.feed import Feed
from pylon.changelog.pull import Pulled
from pylon.files.disk import FileFolder
from pylon.limiter import RateLimiter
from pylon.round_robin import RoundRobin
from pylon.storage.interface import Store
from pylon.storage.ops import WriteOp, WriteReply

Credentials = tuple[str | None, str | None]  # the Authorization and the Cookie header

if TYPE_CHECKING:
    from pylon.tracing.exporter import SpanExporter


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

    def has_worker(self, name: str) -> bool:
        """Return whether a shard may be moved to this worker: "2", or "node/2"."""

    def broadcast(self, command: DescribeAll) -> ShardAnswers:
        """Send a command to every shards worker; return the texts of those that answered."""


class IdentityCalls(Protocol):
    """Calls the identity process: `pylon.bus.identity.IdentityClient`."""

    def call(
        self, action: str, body: bytes, params: dict[str, str], facts: CallFacts
    ) -> IdentityAnswer:
        """Have it carry out an action.

        Raises:
            PylonError: the error of the flow, or the process is not reached.
        """


class MergeChecker(Protocol):
    """Merges updates of documents on trial: `workers.merge_sandbox.MergeSandbox`."""

    def check_merge(self, parts: Sequence[bytes], update: bytes, caller: str) -> bytes:
        """Return the bytes to merge into the document of `parts`: the update, or its new part.

        Args:
            caller: the callers share the sandbox processes in turn.

        Raises:
            PylonError: the update is refused.
        """


class Connections(msgspec.Struct, frozen=True):
    """The parts that one process makes after its fork, for its services."""

    store: Store
    writer: Writer
    session_cache: SessionCache[Credentials]
    limiter: RateLimiter
    feed: Feed
    hints: HintPublisher
    merge_checker: MergeChecker
    rooms: RoomCommands
    shards: ShardCommands
    identity: IdentityCalls
    send_signal: Callable[[Signal], None]
    readiness: Readiness


@dataclass(slots=True)
class RequestServices:
    """Services that every request uses.

    `request_id_prefix` begins the ids that the process gives requests.
    """

    app: App
    cookie: SessionCookie
    origins: Origins
    compression: Compression = field(default_factory=Compression)
    session_cache: SessionCache[Credentials] = field(init=False)
    limiter: RateLimiter = field(init=False)
    rates: RequestRates = field(init=False)
    app_rates: AppRates = field(init=False)
    decoding: Admission = field(init=False)
    request_id_prefix: str = field(init=False)
    spans: SpanExporter | None = field(init=False)

    def connect(self, connections: Connections) -> None:
        self.session_cache = connections.session_cache
        self.limiter = connections.limiter
        self.app_rates = AppRates(self.app.manifest.rate_limits, connections.limiter)
        self.rates = RequestRates(self.app, connections.limiter, self.app_rates)
        # One at a time: the decoder holds the interpreter, so a second one would only wait for it.
        self.decoding = Admission("decode", 1, 1)
        self.request_id_prefix = self.app.random.token_hex(4)
        self.spans = None
        if self.app.config.otel_endpoint is not None:
            from pylon.tracing.exporter import open_exporter  # PERF: urllib3 takes 3 MiB

            self.spans = open_exporter(self.app)


@dataclass(slots=True)
class DataServices:
    """Services of the resources of rows, pushes and documents."""

    requests: RequestServices
    app: App
    store: Store = field(init=False)
    writer: Writer = field(init=False)
    query_cache: QueryCache[bytes] = field(default_factory=QueryCache)
    turns: RoundRobin = field(default_factory=RoundRobin)
    conflicts: ConflictWatch = field(default_factory=ConflictWatch)
    queries: QueryWatch = field(init=False)

    def __post_init__(self) -> None:
        self.queries = QueryWatch(self.app.clock, self.app.config.slow_query_s)

    def connect(self, connections: Connections) -> None:
        self.store = connections.store
        self.writer = connections.writer


@dataclass(slots=True)
class SyncServices:
    """Services of pulls and documents, besides the store."""

    pull_cache: QueryCache[Pulled] = field(default_factory=QueryCache)
    feed: Feed = field(init=False)
    hints: HintPublisher = field(init=False)
    merge_checker: MergeChecker = field(init=False)

    def connect(self, connections: Connections) -> None:
        self.feed = connections.feed
        self.hints = connections.hints
        self.merge_checker = connections.merge_checker


@dataclass(slots=True)
class RealtimeServices:
    """Services of the resources of rooms, channels, shards and matches."""

    requests: RequestServices
    app: App
    store: Store = field(init=False)
    rooms: RoomCommands = field(init=False)
    shards: ShardCommands = field(init=False)

    def connect(self, connections: Connections) -> None:
        self.store = connections.store
        self.rooms = connections.rooms
        self.shards = connections.shards


@dataclass(slots=True)
class FilesServices:
    """Services of the resources of files.

    `keys` sign links; None where the run has none. `collect_at_s`: see
    `pylon.api.files.receiving`.
    """

    requests: RequestServices
    app: App
    folder: FileFolder = field(init=False)
    store: Store = field(init=False)
    writer: Writer = field(init=False)
    uploads: Admission = field(init=False)
    keys: Keys | None = field(init=False)
    collect_at_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.folder = FileFolder(self.app.config.files_folder)

    def connect(self, connections: Connections) -> None:
        self.store = connections.store
        self.writer = connections.writer
        self.uploads = Admission("uploads", limits.UPLOADS_AT_ONCE, limits.UPLOADS_OF_CALLER)
        self.keys = read_keys(self.app.config)


@dataclass(slots=True)
class IdentityServices:
    """Services of the resources of sessions and sign-in."""

    requests: RequestServices
    app: App
    store: Store = field(init=False)
    writer: Writer = field(init=False)
    identity: IdentityCalls = field(init=False)
    send_signal: Callable[[Signal], None] = field(init=False)

    def connect(self, connections: Connections) -> None:
        self.store = connections.store
        self.writer = connections.writer
        self.identity = connections.identity
        self.send_signal = connections.send_signal


@dataclass(slots=True)
class AdminServices:
    """Services of the resources of the server itself.

    Args:
        control_socket: the supervisor's, which has the metrics of all processes.

    `started_s` is the time of `connect`, on the monotonic clock of the app.
    """

    requests: RequestServices
    app: App
    control_socket: Path
    writer: Writer = field(init=False)
    readiness: Readiness = field(init=False)
    started_s: float = field(init=False)

    def connect(self, connections: Connections) -> None:
        self.writer = connections.writer
        self.readiness = connections.readiness
        self.started_s = self.app.clock.monotonic_s()


class Services(msgspec.Struct, frozen=True):
    """The groups of one process, for `pylon.api.application`."""

    requests: RequestServices
    data: DataServices
    sync: SyncServices
    realtime: RealtimeServices
    files: FilesServices
    identity: IdentityServices
    admin: AdminServices

    def connect(self, connections: Connections) -> None:
        """Give all groups what this process has made. Call it once, before the first request."""
        for group in (
            self.requests, self.data, self.sync, self.realtime, self.files, self.identity,
            self.admin,
        ):
            group.connect(connections)


def make_services(app: App, control_socket: Path) -> Services:
    """Return the services of an app, without connections."""
    requests = RequestServices(
        app, session_cookie(app.config, app.manifest), origins(app.config, app.manifest)
    )
    return Services(
        requests=requests,
        data=DataServices(requests, app),
        sync=SyncServices(),
        realtime=RealtimeServices(requests, app),
        files=FilesServices(requests, app),
        identity=IdentityServices(requests, app),
        admin=AdminServices(requests, app, control_socket),
    )
