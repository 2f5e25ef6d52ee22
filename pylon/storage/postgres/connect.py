"""Connections: opens connections to the server, checks it, and translates its errors into Pylon's.

A connection has its part of a node in `application_name` (`pylon-writer/<node>`), so that an
operator and another node's writer know whose it is. A URL that names several hosts leads a writer
to the one that takes writes. Settings of a session (`Limits`) are set after the connect, because
poolers refuse them in the first message.

Invariants: a dead peer is noticed within about 25 s, by keepalives and by `tcp_user_timeout`. No
message has the URL's password. Called by the modules of this package.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pylon.clock import Clock
from pylon.database_url import shown_url
from pylon.errors import (
    InternalError,
    InvalidValue,
    PylonError,
    QueryTimeout,
    StartDelayed,
    StartRefused,
    StoreUnavailable,
)
from pylon.storage.postgres.shared_sessions import refuse_shared_sessions
from pylon.storage.postgres.wire import (
    NO_LIMIT_S,
    BlockingSession,
    WaitForSocket,
    wait_by_poll,
)

T = TypeVar("T")

LOWEST_VERSION: Final = 140_000
CONNECT_TIMEOUT_S: Final = 5
RETRY_FIRST_S: Final = 0.1  # the first and the longest pause between two attempts to connect
RETRY_MAX_S: Final = 5.0
_NAME_BYTES: Final = 63  # of application_name
_DURABLE: Final = frozenset({"on", "remote_apply"})  # values of synchronous_commit
_NETWORK: Final[dict[str, Any]] = {
    "keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 20_000, "connect_timeout": CONNECT_TIMEOUT_S,
}

# Errors of the store itself: the request is not at fault, and may succeed later.
STORE_FAILURES: Final[tuple[type[Exception], ...]] = (
    psycopg.OperationalError, psycopg.InterfaceError, errors.ReadOnlySqlTransaction,
    errors.InsufficientPrivilege,
)
_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (errors.DiskFull, "disk_full"),
    (errors.ReadOnlySqlTransaction, "read_only"),
    (errors.InsufficientPrivilege, "permission"),
    (errors.LockNotAvailable, "busy"),
    (errors.QueryCanceled, "busy"),
    (errors.OutOfMemory, "memory"),
    (errors.DataCorrupted, "corrupt"),
    (errors.IndexCorrupted, "corrupt"),
    (errors.IoError, "io"),
)
# No later attempt helps: libpq has no SQLSTATE for a refused connect.
_WRONG: Final = ("authentication failed", "does not exist", "no pg_hba.conf entry")
_FACTS: Final = (
    "SELECT current_setting('server_version_num'), current_setting('server_encoding'), "
    "current_setting('fsync'), current_setting('full_page_writes'), pg_is_in_recovery()"
)
# Without parallel plans: the order of a UNION ALL counts. The others are how results are read.
_SET: Final = (
    "SELECT current_setting('synchronous_commit'), "
    "set_config('lock_timeout', $1, false), set_config('statement_timeout', $2, false), "
    "set_config('idle_in_transaction_session_timeout', $3, false), "
    "set_config('client_min_messages', 'error', false), set_config('jit', 'off', false), "
    "set_config('max_parallel_workers_per_gather', '0', false), "
    "set_config('extra_float_digits', '1', false), set_config('bytea_output', 'hex', false)"
)


# PERF: all statements of a writer find rows by keys, so no plan gets better by its values; planning
# one anew for each batch costs 40 to 100 us.
_PLAN_ONCE: Final = (
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', false), "
    "set_config('jit', 'off', false)"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the server lets a session's statements work and wait, in milliseconds. 0: without
    end."""

    lock_ms: int = 5_000
    statement_ms: int = 0
    idle_in_transaction_ms: int = 5_000


WRITER_LIMITS: Final = Limits(lock_ms=1_000, statement_ms=30_000)
PLAIN_LIMITS: Final = Limits()
RELAY_LIMITS: Final = Limits(statement_ms=10_000)


def open_session(
    url: str, part: str, node: str, clock: Clock, limits: Limits = PLAIN_LIMITS, *,
    writes: bool = True, timeout_s: float = NO_LIMIT_S, wait: WaitForSocket = wait_by_poll,
    is_first: bool = False,
) -> BlockingSession:
    """Open a connection, for the upkeep, the schema or commands.

    Args:
        part: of the node, for example `upkeep`; with `node` it is the application_name.
        writes: of several hosts, choose the one that takes writes; commits are durable.
        timeout_s: of each call of the session. wait: how it waits.
        is_first: of a start, which looks for a pooler that Pylon cannot use.

    Raises:
        StartRefused: such a pooler is between.
        psycopg.Error
    """
    conn = open_connection(url, part, node, writes=writes)
    if is_first:
        try:  # before anything is prepared or set on a server process that may be another's next
            refuse_shared_sessions(
                conn, lambda: open_connection(url, part, node, writes=writes),
                f"DATABASE_URL ({shown_url(url)})",
            )
        except BaseException:
            conn.close()
            raise
    session = BlockingSession(conn, clock, timeout_s=timeout_s, wait=wait)
    set_limits(session, limits, writes=writes)
    return session


def set_limits(session: BlockingSession, limits: Limits, *, writes: bool) -> None:
    """Set the limits of a new session.

    Raises:
        psycopg.Error: the session is closed then.
    """
    try:
        found = session.execute(_SET, (
            f"{limits.lock_ms}ms", f"{limits.statement_ms}ms", f"{limits.idle_in_transaction_ms}ms"
        ))
        durability = found.get_value(0, 0) or b""
        if writes and durability.decode() not in _DURABLE:
            session.execute("SELECT set_config('synchronous_commit', 'on', false)")
    except psycopg.Error:
        session.close()
        raise


def open_writer(url: str, node: str, clock: Clock) -> BlockingSession:
    """Open the connection of a node's writer.

    Raises:
        psycopg.Error
    """
    session = open_session(url, "writer", node, clock, WRITER_LIMITS)
    try:
        session.execute(_PLAN_ONCE)
    except psycopg.Error:
        session.close()
        raise
    return session


def open_reader(url: str, node: str, clock: Clock, statement_ms: int) -> BlockingSession:
    """Open a connection that reads.

    Args:
        statement_ms: how long a statement may take.

    Raises:
        StoreUnavailable
    """
    try:
        return open_session(
            url, "reader", node, clock, Limits(statement_ms=statement_ms), writes=False
        )
    except psycopg.Error as error:
        raise translate(error) from error


def open_connection(
    url: str, part: str, node: str, *, writes: bool = True
) -> psycopg.Connection[Any]:
    """Open a connection in autocommit mode, without the settings of a session.

    Raises:
        psycopg.Error
    """
    return psycopg.connect(connection_text(url, part, node, writes=writes), autocommit=True)


def connection_text(url: str, part: str, node: str, *, writes: bool) -> str:
    """Return what libpq is given to open a connection."""
    known = conninfo_to_dict(url)
    given: dict[str, Any] = {name: value for name, value in _NETWORK.items() if name not in known}
    if writes and "," in f"{known.get('host', '')}" and "target_session_attrs" not in known:
        given["target_session_attrs"] = "read-write"
    given["application_name"] = application_name(part, node)
    return make_conninfo(url, **given)


def application_name(part: str, node: str) -> str:
    """Return the name under which the server knows a connection."""
    return f"pylon-{part}/{node}".encode()[:_NAME_BYTES].decode(errors="ignore")


def retry_pause_s(failures: int, random_s: Callable[[float, float], float]) -> float:
    """Return how long to wait after that many failed attempts to connect: full jitter.

    Args:
        random_s: a random number between two.
    """
    longest_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2**min(failures, 10))
    return random_s(RETRY_FIRST_S, max(RETRY_FIRST_S, longest_s))


def wait_for_server(
    connect: Callable[[], T], url: str, wait_s: float, clock: Clock,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """Connect for a start, and try again while the server does not answer.

    Raises:
        StartRefused: the server refuses, and would do so again. StartDelayed: it did not answer
            within `wait_s`, or is a standby.
    """
    until_s = clock.monotonic_s() + wait_s
    failures = 0
    while True:
        try:
            return connect()
        except psycopg.Error as error:
            text = error_text(error)
            if any(part in text for part in _WRONG):
                raise StartRefused(f"DATABASE_URL ({shown_url(url)}): {text}") from error
            problem: Exception = error
        except StartDelayed as error:
            text, problem = error.message, error
        wait_more_s = retry_pause_s(failures, random.uniform)
        if clock.monotonic_s() + wait_more_s > until_s:
            if isinstance(problem, StartDelayed):
                raise problem
            raise StartDelayed(
                f"DATABASE_URL ({shown_url(url)}): the database did not answer within "
                f"{wait_s:g} s: {text}"
            ) from problem
        failures += 1
        pause(wait_more_s)


def check_server(session: BlockingSession, url: str, *, is_dev: bool = False) -> int:
    """Check that a server can keep what Pylon promises. Return its version, as 150018.

    Raises:
        StartRefused: it cannot. StartDelayed: it is a standby now.
        psycopg.Error
    """
    found = session.execute(_FACTS)
    version_text, encoding, fsync, pages, standby = (
        (found.get_value(0, column) or b"").decode() for column in range(5)
    )
    version = int(version_text)
    place = f"DATABASE_URL ({shown_url(url)})"
    if version < LOWEST_VERSION:
        raise StartRefused(
            f"{place}: PostgreSQL {version // 10_000} is too old, it must be 14 or later"
        )
    if encoding != "UTF8":
        raise StartRefused(
            f"{place}: the database has the encoding {encoding}; make one with "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
    if not is_dev:
        for name, value in (("fsync", fsync), ("full_page_writes", pages)):
            if value != "on":
                raise StartRefused(
                    f"{place}: the server has {name}={value}, so a crash would lose acknowledged "
                    f"writes; set {name}=on in postgresql.conf"
                )
    if standby == "t":
        raise StartDelayed(f"{place}: the server is a standby, which takes no writes")
    return version


def is_lost(error: BaseException) -> bool:
    """Whether an error says that the connection is gone, so that the outcome of what was sent is
    unknown. An error of a single statement comes from the server and is none of these."""
    if not isinstance(error, psycopg.Error):
        return False
    state = error.diag.sqlstate
    return state is None or state.startswith(("08", "57P"))


def error_text(error: BaseException) -> str:
    """Return the first line of an error's text, for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def refusal_reason(error: BaseException) -> str:
    """Return why a batch was refused: the label of pylon_writes_refused_total."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "unavailable")


def translate(error: psycopg.Error) -> PylonError:
    """Return the error for the client for an error of PostgreSQL."""
    if isinstance(error, errors.QueryCanceled):
        return QueryTimeout("the query took too long", hint="narrow it, or add an index")
    if isinstance(error, STORE_FAILURES):
        return StoreUnavailable(f"the database is not available: {error_text(error)}")
    if isinstance(error, errors.CharacterNotInRepertoire):
        return InvalidValue(f"no text can be stored with this character: {error_text(error)}")
    return InternalError("the database refused a statement")
