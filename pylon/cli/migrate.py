"""`pylonctl migrate`: moves all data between SQLite and PostgreSQL, in either direction.

It reads the source at one commit, copies all tables, makes the indexes, and compares every row.
Cursors of clients stay valid. The source stays as it is. A move that was killed goes on where it
was when it is run again with the same arguments.

With `--online` the server stays up while the rows are copied. Then pylonctl takes over what the
server has written meanwhile, until that is little. Then all writes are refused with 503 while it
takes over the rest. It stops a server on SQLite afterwards, and waits for the end of those on
PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pylon.app_manifest import read_app_manifest
from pylon.cli.output import json_flag, note, result, wants_json
from pylon.cli.running import Running, find_running, require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.control import ControlDialogue
from pylon.data_dir_lock import is_locked
from pylon.database_url import postgres_url, shown_url
from pylon.errors import MigrationRefused, NotRunning
from pylon.manifest.model import Manifest
from pylon.migrate.follow import LAG_EVENTS, Follower
from pylon.migrate.move import Move, Progress
from pylon.migrate.survey import Survey, survey
from pylon.storage.backend import Backend
from pylon.storage.factory import open_store, open_store_at

_clock = SystemClock()
_PROGRESS_EVERY_S: Final = 1.0
_ROUNDS: Final = 20  # of taking over, before the server is stopped in any case
_STOP_S: Final = 120.0
_POLL_S: Final = 0.05
_SERVERS_POLL_S: Final = 1.0

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def migrate() -> None:
    """Move all data between SQLite and PostgreSQL."""


def _options(command: F) -> F:
    for flag, text in (
        ("--restart", "Begin anew, and forget what an earlier run has copied."),
        ("--dry-run", "Read the source, list what does not fit, and write nothing."),
        ("--online", "Let the server run while the rows are copied."),
    ):
        command = click.option(flag, is_flag=True, help=text)(command)
    return json_flag(dev_flag(command))


@migrate.command("sqlite-to-postgres")
@click.option("--from", "path", metavar="PATH", help="The database file, instead of PYLON_DB_PATH.")
@click.option("--to", "url", metavar="URL", help="The database, instead of DATABASE_URL.")
@_options
def sqlite_to_postgres(
    path: str | None, url: str | None, online: bool, dry_run: bool, restart: bool, dev: bool
) -> None:
    """Move a SQLite database into an empty schema of PostgreSQL."""
    config = read_settings(dev=dev).config
    file = Path(path or config.db_path)
    to = _url_of(url, config)
    run = _Migration(config, open_store_at(file), _at_url(config, to), shown_url(to))
    run.make(online=online, dry_run=dry_run, restart=restart, sqlite=file)
    if not dry_run:
        run.report(
            f"start the server with DATABASE_URL set to {shown_url(to)}, and with the same secret "
            "key: PYLON_SECRET_KEY, or the text of secret.key beside the SQLite file in it"
        )


@migrate.command("postgres-to-sqlite")
@click.option("--from", "url", metavar="URL", help="The database, instead of DATABASE_URL.")
@click.option("--to", "path", metavar="PATH", help="The file to make, instead of PYLON_DB_PATH.")
@_options
def postgres_to_sqlite(
    url: str | None, path: str | None, online: bool, dry_run: bool, restart: bool, dev: bool
) -> None:
    """Move a schema of PostgreSQL into a new SQLite database."""
    config = read_settings(dev=dev).config
    file = Path(path or config.db_path)
    run = _Migration(config, _at_url(config, _url_of(url, config)), open_store_at(file), str(file))
    run.make(online=online, dry_run=dry_run, restart=restart, sqlite=None)
    if not dry_run:
        run.report(f"start the server without DATABASE_URL, and with PYLON_DB_PATH={file}")


class _Migration:
    """One run of the command."""

    def __init__(self, config: Config, source: Backend, target: Backend, to: str) -> None:
        self._config = config
        self._manifest: Manifest = read_app_manifest(config)
        self._source = source.transfer
        self._target = target.transfer
        self._target_name = "PostgreSQL" if target.name == "postgresql" else "SQLite"
        self._to = to
        self._told_s = _clock.monotonic_s()
        self._started_s = _clock.monotonic_s()
        self._body: dict[str, Any] = {}

    def make(self, *, online: bool, dry_run: bool, restart: bool, sqlite: Path | None) -> None:
        """Move the data.

        Args:
            sqlite: the file of a SQLite source, whose server is stopped at the end.
        """
        if sqlite is not None:
            online = online and is_locked(sqlite)
        if dry_run:
            self._check(online=False)
            return
        if restart:
            self._source.forget_copy()
        with ExitStack() as held:
            if not online:
                held.enter_context(self._source.hold_source())
            found = self._check(online=online)
            target = held.enter_context(closing(self._target.open_target(self._manifest)))
            move = Move(target, self._manifest, _clock, self._tell)
            with closing(self._source.open_source(self._manifest, copy=online)) as source:
                earlier = move.find_note(restart=restart)
                if earlier is not None:
                    note(f"going on with a migration that was at the stage {earlier.stage.value}")
                reports = move.copy(source, earlier, is_online=online)
                if not online:
                    move.finish(source)
            stopped_s = 0.0
            if online:
                follower = Follower(move, target, self._manifest)
                self._follow(follower)
                began_s = _clock.monotonic_s()
                dialogue = self._refuse_writes(held, sqlite)
                with closing(self._source.open_source(self._manifest)) as source:
                    follower.catch_up(source)
                    follower.compare_counts(source)
                    move.finish(source)
                stopped_s = round(_clock.monotonic_s() - began_s, 3)
                if dialogue is not None and sqlite is not None:
                    dialogue.send_line(moved=True)
                    dialogue.receive_line()
                    _stop_server(self._config, sqlite)
                self._await_servers()
            self._source.forget_copy()
        assert move.note is not None
        self._body = {
            "ok": True, "code": "MIGRATED", "to": self._to, "head_seq": move.note.head,
            "rows": found.rows, "duration_s": round(_clock.monotonic_s() - self._started_s, 3),
            "refused_writes_s": stopped_s,
            "tables": [
                {"table": r.table, "rows": r.rows, "sha256": r.digest} for r in reports
            ],
        }

    def _refuse_writes(self, held: ExitStack, sqlite: Path | None) -> ControlDialogue | None:
        """Have the servers on the source refuse all writes while `held` is open. Return the
        dialogue with the server on a SQLite file, whose end lets it write again.

        Raises:
            MigrationRefused, NotRunning: they cannot.
        """
        server = None if sqlite is None else find_running(
            replace(self._config, db_path=str(sqlite))
        )
        if not isinstance(server, Running):  # PostgreSQL; or the server has ended meanwhile
            held.enter_context(self._source.hold_source(while_running=sqlite is None))
            return None
        note("the server refuses writes now, and the rest is taken over")
        dialogue = held.enter_context(server.control(_STOP_S).open_dialogue("move"))
        dialogue.receive_line()
        return dialogue

    def _await_servers(self) -> None:
        """Refuse the writes of the servers that still run on the source until they have ended:
        nobody would find them in the target."""
        servers = self._source.list_servers()
        if not servers:
            return
        note(
            f"all data are moved; stop the servers ({', '.join(servers)}). Their writes are "
            "refused until they have ended; Ctrl-C lets them write again, to the old database"
        )
        if isinstance(find_running(self._config), Running):
            _stop_server(self._config, Path(self._config.db_path))
        while servers:
            time.sleep(_SERVERS_POLL_S)
            servers = self._source.list_servers()

    def report(self, next_step: str) -> None:
        """Print the result."""
        body = self._body
        lines = [
            f"{t['table']}: {t['rows']} rows, sha256 {t['sha256']}"
            for t in body["tables"] if t["rows"]
        ]
        if body["refused_writes_s"]:
            lines.append(f"no write was accepted for the last {body['refused_writes_s']:g} s")
        lines.append(
            f"moved and verified {body['rows']} rows to {self._to} in {body['duration_s']:g} s; "
            f"head {body['head_seq']}; {next_step}"
        )
        result(body, "\n".join(lines))

    def _check(self, *, online: bool) -> Survey:
        """Read the source, and refuse what does not fit.

        Raises:
            MigrationRefused: `problems` has a line for each reason.
        """
        with closing(self._source.open_source(self._manifest, copy=online)) as source:
            place = source.facts.place
            found = survey(source, self._manifest, self._target.limits, self._target_name)
        for line in found.left_behind:
            note(f"stays behind: {line}")
        for line in found.problems:
            note(f"does not fit: {line}")
        if found.problems:
            raise MigrationRefused(
                f"{place} has {len(found.problems)} kinds of data that do not fit into "
                f"{self._target_name}; nothing was written",
                hint="correct the rows that the lines name, then run this again",
                problems=found.problems,
            )
        self._report_survey(found, place)
        return found

    def _report_survey(self, found: Survey, place: str) -> None:
        note(f"{place}: {found.rows} rows in {len(found.rows_by_table)} tables fit")
        if not self._is_dry_run():
            return
        result(
            {"ok": True, "code": "MIGRATION_FITS", "rows": found.rows,
             "tables": found.rows_by_table, "left_behind": list(found.left_behind)},
            "\n".join(f"{name}: {rows} rows" for name, rows in found.rows_by_table.items()),
        )

    @staticmethod
    def _is_dry_run() -> bool:
        return bool(click.get_current_context().params.get("dry_run"))

    def _follow(self, follower: Follower) -> None:
        """Take over what the server writes, until that is little at a time."""
        for _ in range(_ROUNDS):
            with closing(self._source.open_source(self._manifest)) as source:
                events = follower.catch_up(source)
            note(f"took over {events} later changes")
            if events < LAG_EVENTS:
                return

    def _tell(self, progress: Progress) -> None:
        now_s = _clock.monotonic_s()
        is_whole = progress.rows == progress.rows_in_all and progress.step == "copy"
        if wants_json() or not (is_whole or now_s - self._told_s >= _PROGRESS_EVERY_S):
            return
        self._told_s = now_s
        note(
            f"{progress.step} {progress.table}: {progress.rows} of {progress.rows_in_all} rows, "
            f"{progress.rows_per_s:,.0f} rows/s"
        )


def _url_of(given: str | None, config: Config) -> str:
    """Return the URL of the option, or of the settings.

    Raises:
        click.UsageError: there is none, or it is no URL of PostgreSQL.
    """
    url = given or config.database_direct_url or config.database_url
    if url is None:
        raise click.UsageError("which PostgreSQL database? Set DATABASE_URL, or give its URL")
    try:
        return postgres_url(url)
    except ValueError as ex:
        raise click.UsageError(f"the URL of the database: {ex}") from None


def _at_url(config: Config, url: str) -> Backend:
    return open_store(replace(config, database_url=url, database_direct_url=None))


def _stop_server(config: Config, path: Path) -> None:
    """Drain the server of a data directory, and wait until it has ended.

    Raises:
        MigrationRefused: it did not end in time.
    """
    if find_running(replace(config, db_path=str(path))) is None:
        return
    note("stopping the server: all data are moved")
    running = require_running(replace(config, db_path=str(path)))
    deadline_s = _clock.monotonic_s() + _STOP_S
    try:
        running.control(_STOP_S).ask("stop")
    except NotRunning:
        note("the server ended before it answered")
    while is_locked(path):
        if _clock.monotonic_s() > deadline_s:
            raise MigrationRefused(
                f"the server on {path} (pid {running.pid}) did not end within {_STOP_S:g} s",
                hint="end it, then run this again: it goes on where it was",
            )
        time.sleep(_POLL_S)
