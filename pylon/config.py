"""Settings: one table of all settings of Pylon, with name, parser, default and help.

`load` reads the values of the table into a `Config`: from the environment, from `.env` files for
`pylonctl dev`, else the defaults. `pylonctl config` prints the values with their origins. The
settings table of the README is generated from the table.

Invariants: an empty value means that the setting has its default. No other module reads a
`PYLON_*` variable, except `INTERNAL_NAMES`, which the supervisor sets for its children. The error
for a bad value names the setting, the value and the allowed values. Called by `pylon.cli.settings`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pylon.database_url import chosen_database, postgres_url, shown_url
from pylon.dotenv import parse_dotenv as parse_dotenv
from pylon.errors import SettingsRefused
from pylon.foreign_settings import find_foreign, judge_foreign
from pylon.roles import ROLE_BY_NAME, ROLE_NAMES
from pylon.setting_checks import refuse_unsafe as refuse_unsafe
from pylon.setting_values import (
    Parser,
    address,
    cluster_url,
    cookie_domain,
    cookie_name,
    db_path,
    node_name,
    origins,
    region_name,
    role_names,
    token,
    url,
)
from pylon.setting_values import boolean as _bool
from pylon.setting_values import choice as _choice
from pylon.setting_values import decimal as _float
from pylon.setting_values import integer as _int
from pylon.setting_values import text as _text


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the table. `env`: the whole variable name; `field`: the attribute of `Config`."""

    env: str
    field: str
    parse: Parser
    default: str | None
    help: str
    dev_default: str | None = None  # used instead of `default` when dev mode is on
    secret: bool = False
    shown: Callable[[str], str] | None = None  # the part of a secret that may be printed


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting("PYLON_DEV_MODE", "dev_mode", _bool, "false",
            "Open defaults for a developer's machine. Never on a server."),
    Setting("PYLON_ADMIN_TOKEN", "admin_token", token, None,
            "Bearer token that grants admin. Mandatory in dev mode.", secret=True),
    Setting("PYLON_ADMIN_TOKEN_PREVIOUS", "admin_token_previous", token, None,
            "The admin token before, which counts too while clients change to the new one.",
            secret=True),
    Setting("PYLON_METRICS_TOKEN", "metrics_token", token, None,
            "Bearer token that may read /metrics and nothing else.", secret=True),
    Setting("PYLON_MANIFEST", "manifest", _text, "pylon.manifest.json",
            "The app's manifest."),
    Setting("PYLON_DB_PATH", "db_path", db_path, ".pylon/dev.db",
            "The SQLite database file; its folder is the data directory."),
    Setting("DATABASE_URL", "database_url", chosen_database, None,
            "postgres://user:password@host:5432/database keeps the data in PostgreSQL, in place of "
            "the SQLite file.", secret=True, shown=shown_url),
    Setting("PYLON_DATABASE_DIRECT_URL", "database_direct_url", postgres_url, None,
            "The same database without a connection pooler between, where DATABASE_URL goes "
            "through one: for writes, for news of changes and for the locks.",
            secret=True, shown=shown_url),
    Setting("PYLON_DATABASE_CONNECTIONS", "database_connections", _int(1, 64), "3",
            "Connections of each worker to PostgreSQL for reads that may be long. Each worker has "
            "up to three more for short reads, the supervisor has four."),
    Setting("PYLON_DATABASE_WAIT_S", "database_wait_s", _float(0, 3600), "60",
            "How long a start waits for PostgreSQL; then it ends with exit code 75."),
    Setting("PYLON_DATABASE_OUTAGE_S", "database_outage_s", _float(1, 3600), "60",
            "How long sockets stay open while PostgreSQL does not answer. Then they are closed, "
            "and new ones are refused until it answers again."),
    Setting("PYLON_DATABASE_POLL_S", "database_poll_s", _float(0.05, 60), "1",
            "How often a node reads the change log of PostgreSQL although it was told of no "
            "change."),
    Setting("PYLON_IN_MEMORY", "in_memory", _bool, "false",
            "Keep the database in memory and forget it at exit (tests)."),
    Setting("PYLON_DURABILITY", "durability", _choice("normal", "full"), "normal",
            "normal: survives the death of every process; full: also loss of power."),
    Setting("PYLON_SEED", "seed", _text, None,
            "A JSON file {Entity: [rows]} that is inserted once, into an empty database."),
    Setting("PYLON_BIND", "bind", address, "0.0.0.0",
            "Address that all ports listen on.", dev_default="127.0.0.1"),
    Setting("PYLON_PORT", "port", _int(1, 65535), "4321",
            "HTTP port P; the others default to P+1, P+2 and P+3."),
    Setting("PYLON_WS_PORT", "ws_port", _int(0, 65535), "0",
            "WebSocket port; 0 means PYLON_PORT + 1."),
    Setting("PYLON_SSE_PORT", "sse_port", _int(0, 65535), "0",
            "Server-sent events port; 0 means PYLON_PORT + 2."),
    Setting("PYLON_SHARD_PORT", "shard_port", _int(0, 65535), "0",
            "Realtime shards port; 0 means PYLON_PORT + 3."),
    Setting("PYLON_ROLES", "roles", role_names, ",".join(ROLE_NAMES),
            "The roles that this node runs, as a comma list. Others may run on other nodes of the "
            "same PostgreSQL database."),
    Setting("PYLON_NODE", "node", node_name, None,
            "The name of this node among those that share a PostgreSQL database; default is the "
            "host name with four random digits, kept in the data directory."),
    Setting("PYLON_REGION", "region", region_name, None,
            "The region of this node. A shard is placed in the region that its params name, else "
            "in the region of the node that makes it."),
    Setting("PYLON_CLUSTER_URL", "cluster_url", cluster_url, None,
            "tcp://host:port by which other nodes reach the shards of this one. Shards worker n "
            "listens on the port plus n - 1, encrypted. Needed with shards on more than one node."),
    Setting("PYLON_HTTP_WORKERS", "http_workers", _int(1, 64), "2",
            "HTTP worker processes."),
    Setting("PYLON_WS_WORKERS", "ws_workers", _int(0, 64), "1",
            "WebSocket worker processes; 0 switches the role off."),
    Setting("PYLON_SSE_WORKERS", "sse_workers", _int(0, 64), "1",
            "SSE worker processes; 0 switches the role off."),
    Setting("PYLON_SHARD_WORKERS", "shard_workers", _int(0, 64), "1",
            "Shard worker processes; 0 switches the role off."),
    Setting("PYLON_CORS_ORIGIN", "cors_origin", origins, "",
            "The web app's origin, or a comma list of origins: pages that may read answers, send "
            "writes and use the session cookie, for example https://app.example.com. Mandatory "
            "outside dev mode; dev mode also trusts every loopback origin.",
            dev_default="*"),
    Setting("PYLON_CSRF_ORIGINS", "csrf_origins", origins, "",
            "Comma list of further origins that are trusted as those of PYLON_CORS_ORIGIN are."),
    Setting("PYLON_TRUST_PROXY_HOPS", "trust_proxy_hops", _int(0, 16), "0",
            "Number of trusted proxies in front: the client is the N-th entry from the right of "
            "X-Forwarded-For; with fewer entries it is the connection's address."),
    Setting("PYLON_SOCKETS_PER_IP", "sockets_per_ip", _int(0, 1_000_000), "64",
            "Open sockets of one client address on each port (an IPv6 client counts by its /64); "
            "0 means no limit.",
            dev_default="0"),
    Setting("PYLON_GUESTS_PER_IP_PER_MIN", "guests_per_ip_per_min", _int(0, 1_000_000), "30",
            "New guest sessions of one client address in a minute, and ten times as many at once "
            "(an IPv6 client counts by its /64); 0 means no limit.", dev_default="0"),
    Setting("PYLON_RATE_LIMIT_MAX", "rate_limit_max", _int(0, 1_000_000_000), "600",
            "Requests of one client address in PYLON_RATE_LIMIT_WINDOW (an IPv6 client counts by "
            "its /64, and a /48 may send four times as many), also a new socket; administrators "
            "and probes do not count. 0 means no limit.", dev_default="100000"),
    Setting("PYLON_RATE_LIMIT_MAX_AUTHED", "rate_limit_max_authed", _int(0, 1_000_000_000), "1000",
            "Requests of one user or guest in PYLON_RATE_LIMIT_WINDOW, from all addresses; 0 means "
            "no limit.", dev_default="100000"),
    Setting("PYLON_RATE_LIMIT_WINDOW", "rate_limit_window", _int(1, 86_400), "60",
            "Seconds of PYLON_RATE_LIMIT_MAX and PYLON_RATE_LIMIT_MAX_AUTHED."),
    Setting("PYLON_RATE_LIMIT_HEADERS", "rate_limit_headers",
            _choice("always", "low", "never"), "low",
            "The responses that tell what a rate has left (RateLimit, RateLimit-Policy): all, "
            "those with less than half left, or only a 429."),
    Setting("PYLON_SOCKET_MAX_LIFE_S", "socket_max_life_s", _int(0, 31_536_000), "0",
            "Seconds after which the server closes a socket, so that its client connects anew. "
            "Each socket lasts between three quarters of this and all of it. 0 means never."),
    Setting("PYLON_PUBLIC_URL", "public_url", url("http", "https"), None,
            "Base URL that clients reach the HTTP port by, e.g. https://api.example.com."),
    Setting("PYLON_WS_URL", "ws_url", url("ws", "wss"), None,
            "WebSocket URL that the server gives clients, e.g. wss://api.example.com/ws."),
    Setting("PYLON_SSE_URL", "sse_url", url("http", "https"), None,
            "SSE URL that the server gives clients."),
    Setting("PYLON_SHARD_URL", "shard_url", url("ws", "wss"), None,
            "Shards URL that the server gives clients."),
    Setting("PYLON_COOKIE_NAME", "cookie_name", cookie_name, None,
            "Session cookie; default is <app name>_session."),
    Setting("PYLON_COOKIE_DOMAIN", "cookie_domain", cookie_domain, None,
            "Domain of the session cookie."),
    Setting("PYLON_COOKIE_SECURE", "cookie_secure", _bool, "true",
            "Send the session cookie over TLS only.", dev_default="false"),
    Setting("PYLON_COOKIE_SAME_SITE", "cookie_same_site", _choice("lax", "strict", "none"), "lax",
            "SameSite attribute of the session cookie; none forces Secure."),
    Setting("PYLON_APP", "app", _text, None,
            "The app's Python file: its shards and matchmaking, e.g. game.py."),
    Setting("PYLON_STATIC_DIR", "static_dir", _text, None,
            "Folder of files to serve under /app/."),
    Setting("PYLON_OPENAPI_PUBLIC", "openapi_public", _bool, "false",
            "Serve /api/openapi.json to everybody, not to admins only; dev mode always does."),
    Setting("PYLON_ROW_MAX_BYTES", "row_max_bytes", _int(1_024, 10_485_760), "1048576",
            "Largest size of a row as JSON, in bytes. Clients can read, delete and shrink larger "
            "rows that exist already."),
    Setting("PYLON_CHANGE_LOG_RETAIN", "change_log_retain", _int(1_000, 100_000_000), "100000",
            "Change events kept; events younger than two minutes are kept in any case."),
    Setting("PYLON_CHANGE_LOG_RETAIN_BYTES", "change_log_retain_bytes",
            _int(1_048_576, 1_099_511_627_776), "268435456",
            "Largest size of the change events kept, in bytes. Events of the last two minutes may "
            "take four times as many; beyond that, clients that missed them pull everything "
            "again."),
    Setting("PYLON_LIST_LIMIT", "list_limit", _int(1, 100_000), "1000",
            "Largest number of rows in the response to a list or query."),
    Setting("PYLON_WS_MAX_MESSAGE_BYTES", "ws_max_message_bytes", _int(1_024, 16_777_216),
            "1048576", "Largest WebSocket message that a client may send."),
    Setting("PYLON_WS_DEFLATE", "ws_deflate", _bool, "true",
            "Agree to permessage-deflate with WebSocket clients that offer it, as browsers do."),
    Setting("PYLON_WS_UNSCOPED_PRESENCE", "ws_unscoped_presence", _bool, "false",
            "Relay presence and topic messages without a room, and every disconnect, to every "
            "WebSocket client, as old servers did. Costs N messages for each."),
    Setting("PYLON_DRAIN_SECS", "drain_s", _float(0, 3600), "30",
            "How long SIGTERM waits for requests in flight."),
    Setting("PYLON_DRAIN_DELAY_S", "drain_delay_s", _float(0, 3600), "0",
            "How long /readyz answers 503 before the ports close (for load balancers)."),
    Setting("PYLON_RUNTIME_DIR", "runtime_dir", _text, None,
            "Folder of the process sockets; default $RUNTIME_DIRECTORY, else a private folder in "
            "the temp directory."),
    Setting("PYLON_LOG_FORMAT", "log_format", _choice("json", "pretty"), "json",
            "Log lines as JSON objects (json) or as text for people (pretty).",
            dev_default="pretty"),
    Setting("PYLON_LOG_LEVEL", "log_level", _choice("debug", "info", "warning", "error"), "info",
            "Least severe log line shown."),
)

_BY_ENV: Final = {s.env: s for s in SETTINGS}


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one run. `SETTINGS` describes the fields."""

    dev_mode: bool
    admin_token: str | None
    admin_token_previous: str | None
    metrics_token: str | None
    manifest: str
    db_path: str
    database_url: str | None  # of PostgreSQL; None: SQLite
    database_direct_url: str | None
    database_connections: int
    database_wait_s: float
    database_outage_s: float
    database_poll_s: float
    in_memory: bool
    durability: str
    seed: str | None
    bind: str
    port: int
    ws_port: int
    sse_port: int
    shard_port: int
    roles: tuple[str, ...]
    node: str | None
    region: str | None
    cluster_url: str | None
    http_workers: int
    ws_workers: int
    sse_workers: int
    shard_workers: int
    cors_origin: tuple[str, ...]
    csrf_origins: tuple[str, ...]
    trust_proxy_hops: int
    sockets_per_ip: int
    guests_per_ip_per_min: int
    rate_limit_max: int
    rate_limit_max_authed: int
    rate_limit_window: int
    rate_limit_headers: str
    socket_max_life_s: int
    public_url: str | None
    ws_url: str | None
    sse_url: str | None
    shard_url: str | None
    cookie_name: str | None
    cookie_domain: str | None
    cookie_secure: bool
    cookie_same_site: str
    app: str | None
    static_dir: str | None
    openapi_public: bool
    row_max_bytes: int
    change_log_retain: int
    change_log_retain_bytes: int
    list_limit: int
    ws_max_message_bytes: int
    ws_deflate: bool
    ws_unscoped_presence: bool
    drain_s: float
    drain_delay_s: float
    runtime_dir: str | None
    log_format: str
    log_level: str

    def port_of(self, role: str) -> int:
        """Return the port of a role of `pylon.roles`."""
        entry = ROLE_BY_NAME[role]
        return int(getattr(self, entry.port_field)) or self.port + entry.port_offset

    def workers_of(self, role: str) -> int:
        """Return the number of processes of the role on this node; 0: the role is off."""
        if role not in self.roles:
            return 0
        return int(getattr(self, ROLE_BY_NAME[role].workers_field))

    @property
    def data_dir(self) -> Path:
        return Path(self.db_path).absolute().parent


@dataclass(frozen=True, slots=True)
class Loaded:
    """A `Config`, the origin of each value, and messages for the operator."""

    config: Config
    raw: dict[str, str | None]  # by variable name, as text
    # by variable name: "environment", path of a .env file, "default", "dev default", ...
    origin: dict[str, str]
    warnings: tuple[str, ...]
    refusals: tuple[str, ...] = ()  # a start refuses these; other verbs ignore them


Sources = list[tuple[str, Mapping[str, str]]]  # named sources, by descending precedence


def load(
    environ: Mapping[str, str], dotenv: Mapping[str, str] | None = None, dotenv_path: str = ".env"
) -> Loaded:
    """Read the table. The environment wins over `dotenv`, which wins over defaults.

    Raises:
        SettingsRefused: some values are invalid; one line for each, with value and remedy.
    """
    sources: Sources = [("environment", environ)]
    if dotenv:
        sources.append((dotenv_path, dotenv))
    problems: list[str] = []
    is_dev = _BY_ENV["PYLON_DEV_MODE"]
    dev, _, _ = _read(is_dev, sources, False, problems)
    problems.clear()  # the loop over the table reports it
    values: dict[str, Any] = {}
    raw: dict[str, str | None] = {}
    origin_by_env: dict[str, str] = {}
    for setting in SETTINGS:
        value, raw[setting.env], origin_by_env[setting.env] = _read(
            setting, sources, dev, problems
        )
        values[setting.field] = value
    config = Config(**values)
    judged = list(judge_foreign(sources, dev_mode=config.dev_mode))
    loaded = Loaded(
        config, raw, origin_by_env,
        warnings=(
            *_unknown_names(sources), *(text for refused, text in judged if not refused),
            *_warnings(config),
        ),
        refusals=tuple(text for refused, text in judged if refused),
    )
    if problems:
        raise SettingsRefused(problems, loaded)
    return loaded


def _read(
    setting: Setting, sources: Sources, dev: bool, problems: list[str]
) -> tuple[Any, str | None, str]:
    """Return the value, its text and its origin. A bad value adds a problem; the default applies.

    The first source that names the setting decides, even with an empty value. So an empty
    variable of the environment cancels a line of a `.env` file.
    """
    default, where = setting.default, "default"
    if dev and setting.dev_default is not None:
        default, where = setting.dev_default, "dev default"
    given = next(((name, source) for name, source in sources if setting.env in source), None)
    if given is not None and given[1][setting.env] != "":
        raw = given[1][setting.env]
        try:
            return setting.parse(raw), raw, given[0]
        except ValueError as ex:
            shown = "(hidden)" if setting.secret else repr(raw)
            problems.append(f"{setting.env} is {shown}: {ex}")
    return None if default is None else setting.parse(default), default, where


def _unknown_names(sources: Sources) -> list[str]:
    found = []
    for where, source in sources:
        for name in sorted(source):
            if not name.startswith("PYLON_") or name in _BY_ENV or name in INTERNAL_NAMES:
                continue
            if find_foreign(name) is None:
                near = difflib.get_close_matches(name, _BY_ENV, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                found.append(f"{name} (from {where}) is not a setting and is ignored{hint}")
    return found


# Variables that the supervisor sets for its children, and that tests use; not settings.
INTERNAL_NAMES: Final = frozenset({"PYLON_WORKER", "PYLON_LISTEN_FD", "PYLON_SUPERVISOR_PID"})

_ADMIN_TOKEN_MIN_CHARS: Final = 32


def _warnings(config: Config) -> list[str]:
    if config.dev_mode:
        return []
    if config.admin_token is None:
        return ["PYLON_ADMIN_TOKEN is not set: nobody can be admin"]
    if len(config.admin_token) < _ADMIN_TOKEN_MIN_CHARS:
        return [
            f"PYLON_ADMIN_TOKEN has {len(config.admin_token)} characters; "
            f"use at least {_ADMIN_TOKEN_MIN_CHARS} (for example: openssl rand -hex 32)"
        ]
    return []
