"""The HTTP API over a real database, without processes and sockets.

`serve_api` makes the WSGI app with all of its services. Writes, rooms and shards are carried out
at once, in this process, where the product sends them over the bus. Used by the tests of
`pylon.api` and of attacks on it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from falcon import testing

from pylon import config as settings
from pylon.api.admin.readiness import Readiness
from pylon.api.application import make_app
from pylon.api.services import Connections, Services, make_services
from pylon.api.sync.hints import HintPublisher
from pylon.app import build_app
from pylon.auth.disposable_domains import disposable_domains
from pylon.auth.issue import session_issuer
from pylon.auth.jwts import JwtClaims, takes_jwts
from pylon.auth.keys import Keys
from pylon.auth.password_rules import password_rules
from pylon.auth.session_cache import SessionCache, UsedSessions
from pylon.bus.identity import VERIFY_JWT, CallFacts, IdentityAnswer, IdentityCall
from pylon.bus.messages import RolesReport, RoleState, Signal
from pylon.bus.rooms_messages import RoomCommand, RoomReply, RoomRequest
from pylon.bus.shards import DescribeAll, MatchCommand, ShardAnswers, ShardCommand
from pylon.changelog.feed import Feed
from pylon.clock import ManualClock, SystemRandom
from pylon.errors import PylonError
from pylon.errors.wire import WireError
from pylon.limiter import RateLimiter, RateTable
from pylon.mail.outbox import Mails
from pylon.mail.templates import load_templates
from pylon.manifest_loader import parse_manifest
from pylon.realtime.placement import Placement
from pylon.rooms.service import RoomService
from pylon.storage.interface import Store, WriteEngine
from pylon.storage.ops import WriteOp, WriteReply, WriteRequest
from tests.support.database import Database
from workers.identity.captcha import make_captcha
from workers.identity.execution import execute
from workers.identity.hashing import HashPool
from workers.identity.identity import Identity
from workers.identity.jwts import make_jwts
from workers.identity.providers.client import make_providers
from workers.merge_sandbox import MergeSandbox
from workers.shards.matchmaking import Matchmaking
from workers.shards.registry import ShardRegistry
from workers.shards.rpc_handlers import ShardRpcHandlers

ADMIN_TOKEN = "admin-token-for-tests-0123456789abcdef"
METRICS_TOKEN = "metrics-token-for-tests-0123456789"
ENVIRON = {
    "PYLON_DEV_MODE": "false",
    "PYLON_CORS_ORIGIN": "http://localhost:3000",
    "PYLON_CSRF_ORIGINS": "http://localhost:3000",
    "PYLON_ADMIN_TOKEN": ADMIN_TOKEN,
    "PYLON_METRICS_TOKEN": METRICS_TOKEN,
    "PYLON_GUESTS_PER_IP_PER_MIN": "0",
    "PYLON_RATE_LIMIT_MAX": "0", "PYLON_RATE_LIMIT_MAX_AUTHED": "0", "PYLON_AUTH_RATES": "false",
}


class DirectWriter:
    """Carries writes out at once, in this process."""

    def __init__(self, engine: WriteEngine) -> None:
        self.engine = engine
        self._ids = itertools.count(1)
        self.seen: list[WriteOp] = []

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        self.seen.extend(ops)
        return self.engine.apply([WriteRequest(next(self._ids), op) for op in ops]).replies

    def submit(self, op: WriteOp) -> WriteReply:
        reply = self.submit_all([op])[0]
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply


class DirectRooms:
    """Carries commands about rooms out at once, in this process."""

    def __init__(self, clock: ManualClock) -> None:
        self.service = RoomService(clock, "test")

    def submit(self, command: RoomCommand) -> RoomReply:
        (reply,) = self.service.apply(b"r1-test", [RoomRequest(1, command)])
        if reply.error is not None:
            raise reply.error.to_exception()
        return reply


class DirectShards:
    """Carries commands about shards and matches out at once, in this process."""

    def __init__(self, store: Store, writer: Any, clock: ManualClock, folder: Path) -> None:
        random = SystemRandom()
        self._store = store
        self.registry = ShardRegistry(
            store, writer, clock, random, folder / "recordings", RateLimiter(RateTable(), clock),
            Placement(store, 1), worker="1",
        )
        matchmaking = Matchmaking(self, clock, lambda: False)  # type: ignore[arg-type]
        self._answers = ShardRpcHandlers("1", self.registry, matchmaking)

    def for_shard(self, command: ShardCommand) -> bytes:
        return self._call(command)

    def for_matchmaker(self, command: MatchCommand) -> bytes:
        return self._call(command)

    def has_worker(self, name: str) -> bool:
        return Placement(self._store, 1).has_worker(name)

    def broadcast(self, command: DescribeAll) -> ShardAnswers:
        return ShardAnswers([self._call(command)], [])

    def _call(self, command: Any) -> bytes:
        try:
            return self._answers.answer(msgspec.msgpack.encode(command))
        except PylonError as ex:  # as the bus carries it
            raise WireError.from_error(ex).to_exception() from ex


class DirectIdentity:
    """Carries the calls of the identity process out at once, in this process."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def call(
        self, action: str, body: bytes, params: dict[str, str], facts: CallFacts
    ) -> IdentityAnswer:
        deadline_s = self.identity.app.clock.monotonic_s() + 1.0
        command = msgspec.msgpack.encode(IdentityCall(action, body, params, facts, deadline_s))
        try:
            answer = execute(self.identity, command)
        except PylonError as ex:  # as the bus carries it
            raise WireError.from_error(ex).to_exception() from ex
        return msgspec.msgpack.decode(answer, type=IdentityAnswer)

    def verify_jwt(self, token: str) -> JwtClaims:
        answer = self.call(VERIFY_JWT, token.encode(), {}, CallFacts())
        return msgspec.msgpack.decode(answer.body, type=JwtClaims)


@dataclass(slots=True)
class ApiStage:
    """An app to send requests to, and what stands behind it."""

    client: testing.TestClient
    services: Services
    writer: DirectWriter
    clock: ManualClock
    identity: Identity
    signals: list[Signal] = field(default_factory=list)
    hinted: list[tuple[int, int]] = field(default_factory=list)  # keys and cursors
    used_sessions: UsedSessions = field(default_factory=UsedSessions)

    @property
    def engine(self) -> WriteEngine:
        """The writer's end of the store."""
        return self.writer.engine

    def call(
        self, method: str, target: str, body: Any = None, token: str | None = None,
        headers: Mapping[str, str] | None = None, **more: Any,
    ) -> testing.Result:
        """Send a request; `body` is JSON unless it is bytes. `target` may have a query string."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        path, _, query = target.partition("?")
        more.setdefault("remote_addr", "127.0.0.1")
        self.clock.advance(0.001)  # so that ids and times go on
        return self.client.simulate_request(
            method, path, query_string=query or None, body=body, headers=sent, **more
        )

    def guest(self) -> str:
        """The token of a new guest."""
        token: str = self.call("POST", "/api/auth/guest").json["token"]
        return token

    def user(self, user_id: str) -> str:
        """The token of a new session of `user_id`."""
        answer = self.call("POST", "/api/auth/session", {"user_id": user_id}, ADMIN_TOKEN)
        token: str = answer.json["token"]
        return token

    def ready(self, **roles: tuple[int, int]) -> None:
        """A report of the supervisor: (wanted, ready) by role."""
        states = {role: RoleState(wanted, ready) for role, (wanted, ready) in roles.items()}
        self.services.admin.readiness.report(RolesReport(states, draining=False))


@contextmanager
def serve_api(
    folder: Path, manifest: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> Iterator[ApiStage]:
    """A server on a new database in `folder`."""
    config = settings.load({**ENVIRON, **(environ or {})}).config
    clock = ManualClock()
    parsed = parse_manifest(json.dumps(manifest), "test.json")
    app = build_app(config, parsed, clock=clock, random=SystemRandom())
    database = Database(folder / "test.db", app, clock)
    pool, writer = database.pool, DirectWriter(database.engine)
    signals: list[Signal] = []
    hinted: list[tuple[int, int]] = []
    used_sessions = UsedSessions()
    merge_sandbox = MergeSandbox()
    keys = Keys([bytes(range(32))])
    mails = Mails(
        load_templates(config), parsed.name, keys, clock, SystemRandom(), is_configured=True,
        is_dev=config.dev_mode,
    )
    identity = Identity(
        app=app, store=pool, writer=writer, hashes=HashPool(1, memory_kib=64),
        keys=keys, rules=password_rules(config, parsed), issuer=session_issuer(app), mails=mails,
        providers=make_providers(app), jwts=cache(partial(make_jwts, config, clock)),
        wake_mail=lambda: None, captcha=make_captcha(config),
        disposable=disposable_domains(config),
        send_signal=signals.append,
    )
    services = make_services(app, folder / "control.sock")
    wsgi = make_app(services)
    services.connect(
        Connections(
            store=pool,
            writer=writer,
            session_cache=SessionCache(
                app, pool, clock, used_sessions=used_sessions,
                verify_jwt=DirectIdentity(identity).verify_jwt if takes_jwts(config) else None,
            ),
            limiter=RateLimiter(RateTable(), clock),
            feed=Feed(pool),
            hints=HintPublisher(lambda key, cursor: hinted.append((key, cursor)), clock),
            merge_checker=merge_sandbox,
            rooms=DirectRooms(clock),
            shards=DirectShards(pool, writer, clock, folder),
            identity=DirectIdentity(identity),
            send_signal=signals.append,
            readiness=Readiness(lambda: pool.point(lambda reader: reader.head_seq()), clock),
        )
    )
    try:
        yield ApiStage(
            testing.TestClient(wsgi), services, writer, clock, identity, signals, hinted,
            used_sessions,
        )
    finally:
        identity.hashes.close()
        merge_sandbox.close()
        database.close()
