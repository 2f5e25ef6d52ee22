"""`Pylon`: the client for blocking code."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx2

from pylon_client import auth, rows
from pylon_client.changes import Change, Feed
from pylon_client.effects import Answer
from pylon_client.entities import Row, entity_of, plain
from pylon_client.links import Link
from pylon_client.options import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    Options,
    Token,
    read_token,
    read_url,
    set_up_log,
)
from pylon_client.queries import Query
from pylon_client.requests import Core, Lifetime, Session, decode, send_json
from pylon_client.sync_files import Admin, Files
from pylon_client.sync_live import Room
from pylon_client.sync_rows import Rows
from pylon_client.sync_shard import Shard
from pylon_client.sync_shell import SyncShell, SyncWake
from pylon_client.transactions import Transaction

T = TypeVar("T")


class Pylon:
    """A client of one server. A context manager; any thread may use it.

    Args:
        url: the server's address; PYLON_URL, or http://localhost:4321 without it.
        token: a session token, an API key, a JWT or the admin token; PYLON_TOKEN without it. A
            function is called for a token, and once more when the server has refused its token.
        timeout: of one try of a request, in seconds.
        max_retries: further tries of a request that may succeed later.
        default_headers: sent with every request.
        http_client: your own httpx2 client; you close it.
        ssl_context: for https and wss.
    """

    def __init__(
        self, url: str | None = None, token: Token = None, *, timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_RETRIES, default_headers: Mapping[str, str] | None = None,
        http_client: httpx2.Client | None = None, ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        set_up_log()
        options = Options(read_url(url), timeout, max_retries, dict(default_headers or {}))
        core = Core(options, Session(read_token(token)), Lifetime())
        self._set_up(SyncShell(http_client, ssl_context), core, None)

    def _set_up(self, shell: SyncShell, core: Core, link: Link | None) -> None:
        self._shell = shell
        self._core = core
        self._link = link or Link(
            core, SyncWake, lambda: shell.spawn(self._link.run(), "pylon-client")
        )
        self.auth = Auth(shell, core)
        self.files = Files(shell, core)
        self.admin = Admin(shell, core)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End windows, rooms, shards and streams, and close all connections."""
        self._core.lifetime.close()
        self._link.close()
        self._shell.close()

    def with_options(
        self, *, timeout: float | None = None, max_retries: int | None = None,
        default_headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Return a client with other options. It shares the session and the connections."""
        options = self._core.options
        changed: dict[str, Any] = {}
        if timeout is not None:
            changed["timeout_s"] = timeout
        if max_retries is not None:
            changed["max_retries"] = max_retries
        if default_headers is not None:
            changed["headers"] = {**options.headers, **default_headers}
        copy = type(self).__new__(type(self))
        copy._set_up(self._shell, self._core.with_options(**changed), self._link)
        return copy

    # --- Rows ---------------------------------------------------------------------------------

    @overload
    def rows(self, entity: str) -> Rows[Row]: ...
    @overload
    def rows(self, entity: type[T]) -> Rows[T]: ...
    def rows(self, entity: str | type[Any]) -> Rows[Any]:
        """Return the rows of an entity: as dicts for a name, else as instances of the class."""
        return Rows(self._shell, self._core, self._link, Query(entity_of(entity)))

    def __getitem__(self, entity: str) -> Rows[Row]:
        return self.rows(entity)

    @contextmanager
    def transaction(self, *, idempotency_key: str | None = None) -> Iterator[Transaction]:
        """Gather operations, and carry all of them out at the end of the block, or none."""
        gathered = Transaction()
        yield gathered
        self._shell.run(rows.commit(self._core, gathered.operations, idempotency_key))

    # --- Realtime -----------------------------------------------------------------------------

    @overload
    def changes(self, since: int | None = None) -> Iterator[Change[Row]]: ...
    @overload
    def changes(
        self, since: int | None = None, *, entities: Sequence[str]
    ) -> Iterator[Change[Row]]: ...
    @overload
    def changes(
        self, since: int | None = None, *, entities: Sequence[type[T]]
    ) -> Iterator[Change[T]]: ...
    def changes(
        self, since: int | None = None, *, entities: Sequence[str] | Sequence[type[Any]] = ()
    ) -> Iterator[Change[Any]]:
        """Yield changes for ever, each at least once.

        Args:
            since: the `seq` of the last change that you have kept; 0: all rows first, as inserts;
                None: from now on.
            entities: those to see; without it all, with rows as dicts.

        Raises:
            ResyncRequired: the log no longer reaches back; begin with 0.
        """
        named = [entity_of(each) for each in entities]
        feed: Feed[Any] = Feed(self._core, since, named, SyncWake)
        return self._shell.iterate(feed.run())

    def room(self, name: str, data: Any = None) -> Room:
        """Join a room. `data`: what others see of this member."""
        return Room(self._shell, self._core, self._link, name, data)

    def shard(self, shard_id: str, *, sid: str | None = None) -> Shard:
        """Subscribe to a shard, as `sid` or as the user."""
        return Shard(self._shell, self._core, shard_id, sid)

    # --- Everything else ----------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: Any = None, *,
        headers: Mapping[str, str] | None = None, idempotency_key: str | None = None,
    ) -> Any:
        """Send any request, and return the decoded JSON of its answer."""
        return decode(self._send(method, path, body, headers, idempotency_key))

    def raw_request(
        self, method: str, path: str, body: Any = None, *,
        headers: Mapping[str, str] | None = None, idempotency_key: str | None = None,
    ) -> Answer:
        """Send any request, and return its answer: status, headers, content."""
        return self._send(method, path, body, headers, idempotency_key)

    def _send(
        self, method: str, path: str, body: Any, headers: Mapping[str, str] | None,
        key: str | None,
    ) -> Answer:
        is_repeatable = method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS")
        return self._shell.run(send_json(
            self._core, method, path, None if body is None else plain(body), headers=headers,
            key=key, is_repeatable=is_repeatable,
        ))


class Auth:
    """Signing in and out."""

    def __init__(self, shell: SyncShell, core: Core) -> None:
        self._shell = shell
        self._core = core

    @property
    def token(self) -> str | None:
        """The token of the next request, as far as it is known."""
        return self._core.session.token

    def use(self, token: Token) -> None:
        """Take a token that the application has; None: be anonymous."""
        self._core.session.set(token if isinstance(token, str) else None)
        self._core.session.source = token

    def guest(self) -> auth.SignedIn:
        """Begin a session of a new guest."""
        return self._shell.run(auth.guest(self._core))

    def password(self, email: str, password: str, *, totp: str | None = None) -> auth.SignedIn:
        """Sign in. Raises: AuthenticationError: with the code TOTP_REQUIRED, give `totp`."""
        return self._shell.run(auth.password(self._core, email, password, totp))

    def register(self, email: str, password: str, **fields: Any) -> auth.SignedIn:
        """Make an account, and sign in."""
        return self._shell.run(auth.register(self._core, email, password, fields))

    def send_code(self, email: str) -> None:
        """Have a code sent by e-mail."""
        self._shell.run(auth.send_code(self._core, email))

    def code(self, email: str, code: str) -> auth.SignedIn:
        """Sign in with a code of an e-mail."""
        return self._shell.run(auth.code(self._core, email, code))

    def refresh(self) -> auth.SignedIn:
        """Take a new token for the session. Before its end this happens by itself."""
        return self._shell.run(auth.renew(self._core))

    def me(self) -> auth.Caller:
        """Return who the server takes this client for."""
        return self._shell.run(auth.me(self._core))

    def sign_out(self) -> None:
        """End the session."""
        self._shell.run(auth.sign_out(self._core))
