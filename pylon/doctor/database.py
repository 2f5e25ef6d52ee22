"""The PostgreSQL server: whether it answers, its settings, its clock, its connections, and what
keeps it from freeing space: old transactions, and replication slots that nobody reads.

Called by `pylonctl doctor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from pylon.config import Config
from pylon.database_url import shown_url
from pylon.doctor.findings import ERROR, NOTE, OK, WARNING, Finding
from pylon.storage.factory import survey_database
from pylon.storage.records import DatabaseFacts

_SLOW_S: Final = 0.02
_CLOCK_WARNING_S: Final = 1.0
_CLOCK_ERROR_S: Final = 10.0
_OLD_TRANSACTION_S: Final = 300.0
_LOWEST_VERSION: Final = 14
_LOCAL: Final = frozenset({"", "localhost", "127.0.0.1", "::1", "[::1]"})
# Setting, value that is right, level of another value, and what that costs.
_WANTED: Final = (
    ("server_encoding", "UTF8", ERROR, "a start is refused"),
    ("fsync", "on", ERROR, "a crash of the machine breaks the database; a start is refused"),
    ("full_page_writes", "on", ERROR, "a crash loses acknowledged writes; a start is refused"),
    ("default_transaction_read_only", "off", ERROR, "no write is taken"),
    ("synchronous_commit", "on", NOTE, "Pylon sets it to on for its own writes"),
)
_SHORT_READS: Final = 3  # connections of a worker for short reads
_OF_SUPERVISOR: Final = 4


def check_database(config: Config) -> Iterator[Finding]:
    """Check the server of DATABASE_URL, and of PYLON_DATABASE_DIRECT_URL where it is another."""
    if config.database_url is None:
        return
    urls = [("DATABASE_URL", config.database_url)]
    if config.database_direct_url not in (None, config.database_url):
        urls.append(("PYLON_DATABASE_DIRECT_URL", config.database_direct_url or ""))
    for setting, url in urls:
        place = f"{setting} ({shown_url(url)})"
        try:
            facts = survey_database(url)
        except ConnectionError as ex:
            yield Finding(
                ERROR, "postgres.answer", f"{place}: {ex}", "every request gets 503",
                "is the server up, does the firewall let this machine in, are user, password and "
                "pg_hba.conf right: psql with the same URL",
            )
            continue
        yield from _judge(config, place, url, facts)


def _judge(config: Config, place: str, url: str, facts: DatabaseFacts) -> Iterator[Finding]:
    slow = max(facts.answer_s, 0.0) > _SLOW_S
    yield Finding(
        WARNING if slow else OK, "postgres.answer",
        f"{place} connects in {facts.connect_s * 1_000:.0f} ms and answers in "
        f"{facts.answer_s * 1_000:.1f} ms",
        "each read and each batch of writes waits so long" if slow else "",
        "run the server and the database in one zone" if slow else "",
    )
    version = facts.settings["server_version"]
    is_old = int(version.partition(".")[0]) < _LOWEST_VERSION
    yield Finding(
        ERROR if is_old else OK, "postgres.version", f"PostgreSQL {version}",
        "a start is refused" if is_old else "", "14 or later is needed" if is_old else "",
    )
    if facts.is_standby:
        yield Finding(
            ERROR, "postgres.standby", f"{place} is a standby", "it takes no writes",
            "name the primary, or all hosts in one URL (docs/postgres.md)",
        )
    for name, wanted, level, why in _WANTED:
        value = facts.settings.get(name, wanted)
        if value != wanted:
            yield Finding(level, f"postgres.{name}", f"{name} is {value}", why,
                          f"set {name}={wanted} on the server or for the role")
    yield _judge_clock(facts)
    yield _judge_connections(config, facts)
    yield from _judge_held_space(facts)
    host = (urlsplit(url).hostname or "").lower()
    if not facts.is_encrypted and host not in _LOCAL:
        yield Finding(
            WARNING, "postgres.tls", f"the connection to {host} is not encrypted",
            "who hears the network reads all data and the password",
            "add sslmode=verify-full and sslrootcert to the URL",
        )


def _judge_clock(facts: DatabaseFacts) -> Finding:
    ahead_s = facts.clock_ahead_s
    what = f"the database's clock is {abs(ahead_s):.2f} s {'ahead' if ahead_s > 0 else 'behind'}"
    level = (ERROR if abs(ahead_s) > _CLOCK_ERROR_S
             else WARNING if abs(ahead_s) > _CLOCK_WARNING_S else OK)
    if level == OK:
        return Finding(OK, "postgres.clock", what)
    return Finding(level, "postgres.clock", what,
                   "sessions and times of rows differ between machines",
                   "let chrony or systemd-timesyncd keep the time on both machines")


def _judge_connections(config: Config, facts: DatabaseFacts) -> Finding:
    workers = sum(config.workers_of(role) for role in config.roles)
    need = workers * (config.database_connections + _SHORT_READS) + _OF_SUPERVISOR
    allowed = (int(facts.settings["max_connections"])
               - int(facts.settings.get("superuser_reserved_connections", "0")))
    what = (f"{facts.connections} of {allowed} connections are in use; this node opens up to "
            f"{need}")
    if need > allowed:
        return Finding(
            WARNING, "postgres.connections", what, "workers get errors when none is left",
            "raise max_connections, or lower PYLON_DATABASE_CONNECTIONS (docs/postgres.md)",
        )
    return Finding(OK, "postgres.connections", what)


def _judge_held_space(facts: DatabaseFacts) -> Iterator[Finding]:
    if facts.oldest_transaction_s > _OLD_TRANSACTION_S:
        yield Finding(
            WARNING, "postgres.transactions",
            f"a transaction is open since {facts.oldest_transaction_s / 60:.0f} min "
            f"({facts.oldest_transaction})",
            "the space of rows and events that were deleted since then is not freed",
            "end it: a forgotten psql, a stuck program; SELECT pg_terminate_backend(pid)",
        )
    if facts.unused_slots:
        yield Finding(
            WARNING, "postgres.slots",
            f"nobody reads the replication slots {', '.join(facts.unused_slots)}",
            "the server keeps all of its log for them, until its disk is full",
            "connect the standby again, or SELECT pg_drop_replication_slot(name)",
        )
