"""PostgreSQL backup: dumps the app's schema at one commit into a bundle, while others write.

A transaction exports its snapshot, and `pg_dump` reads in that snapshot. So the dump, the head and
the digests are of one commit. No write waits for it: `pg_dump` takes locks that only changes of
tables conflict with, and gives up after 10 s where such a change holds one.

Called by `manager`, for `pylonctl backup`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from pylon.clock import Clock
from pylon.database_url import shown_url
from pylon.errors import BackupRefused, StoreUnavailable
from pylon.storage.backups import BackupReport, Progress
from pylon.storage.bundle.contents import DATA_FILES, POSTGRES, Facts
from pylon.storage.bundle.create import check_target, create_bundle
from pylon.storage.postgres.backup.facts import FIXED_TEXTS, Connection, read_facts, server_version
from pylon.storage.postgres.backup.programs import find_program, libpq_environment, run_program
from pylon.storage.postgres.connect import Limits, error_text, open_session
from pylon.storage.postgres.wire import BlockingSession

DUMP: Final = DATA_FILES[POSTGRES]
_LOCK_WAIT: Final = "10s"
_TABLE_LINE: Final = "dumping contents of table"
_SESSION: Final = Limits(lock_ms=10_000, statement_ms=0, idle_in_transaction_ms=0)


def create_backup(
    url: str, manifest_path: Path | None, target: Path, clock: Clock,
    on_progress: Progress | None = None, on_copied: Callable[[], None] | None = None,
    key_file: Path | None = None,
) -> BackupReport:
    """Write a bundle of the URL's schema to the folder `target`, which must be missing or empty.

    Args:
        on_progress: called now and then with the tables left and all tables; an exception that it
            raises ends the dump.
        on_copied: called after the last read of the database.

    Raises:
        BackupRefused: the target is taken; there is no data; pg_dump is missing or too old.
        BackupInvalid: pg_dump failed; the text has its reason.
        StoreUnavailable: the database cannot be read.
    """
    check_target(target.absolute())
    place = shown_url(url)
    with database_errors(place), open_backup_session(url, clock) as session:
        conn = session.conn
        for statement in FIXED_TEXTS:
            conn.execute(statement)
        program = find_program("pg_dump", server_version(conn))
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        facts = read_facts(conn, with_tables=False)
        if not facts.lineage:
            raise BackupRefused(f"there is no database of Pylon at {place} (DATABASE_URL)")

        def copy_data(folder: Path) -> Facts:
            _dump(program, url, facts.schema, _export_snapshot(conn), folder / DUMP, on_progress)
            whole = read_facts(conn)
            if on_copied is not None:
                on_copied()
            return whole

        return create_bundle(target, manifest_path, clock, copy_data, key_file)


def _export_snapshot(conn: Connection) -> str:
    found = conn.execute("SELECT pg_export_snapshot()").fetchone()
    assert found is not None
    return str(found[0])


def _dump(
    program: Path, url: str, schema: str, snapshot: str, path: Path, on_progress: Progress | None
) -> None:
    args: list[str | Path] = [
        program, "--format=custom", f"--snapshot={snapshot}", "--no-owner", "--no-password",
        f"--lock-wait-timeout={_LOCK_WAIT}", "--compress=1", "--verbose",
        f"--schema={quote_pattern(schema)}", f"--file={path}",
    ]
    tables = done = 0

    def count(line: str) -> None:
        nonlocal done
        done += _TABLE_LINE in line

    def report() -> None:
        if on_progress is not None:
            on_progress(max(tables - done, 0), tables)

    with psycopg.connect(url, autocommit=True) as conn:
        tables = len(conn.execute(
            "SELECT 1 FROM pg_tables WHERE schemaname = current_schema()"
        ).fetchall())
    run_program(args, libpq_environment(url, "backup"), count, report)


def quote_pattern(schema: str) -> str:
    """Return the pattern of pg_dump that matches one schema and no other."""
    return '"' + schema.replace('"', '""') + '"'


@contextmanager
def open_backup_session(url: str, clock: Clock) -> Iterator[BlockingSession]:
    """Open a connection that no limit of time ends.

    Raises:
        psycopg.Error
    """
    session = open_session(url, "backup", "", clock, _SESSION)
    try:
        yield session
    finally:
        session.close()


@contextmanager
def database_errors(place: str) -> Iterator[None]:
    """Turn errors of psycopg into Pylon's.

    Raises:
        StoreUnavailable: the server failed, or cannot be reached.
    """
    try:
        yield
    except psycopg.Error as ex:
        raise StoreUnavailable(f"the database {place} failed: {error_text(ex)}") from ex
