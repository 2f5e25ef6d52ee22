"""PostgreSQL bundle check: verifies the bundle, and that its dump can be read.

The plain check needs no server: it compares every byte with the checksums, and reads the dump's
table of contents. The deep check restores the dump into a database of its own, and compares the
head, the lineage, the structure and the digest of every table with what the bundle states.

Invariants: the bundle is only read. The database of a deep check is dropped at its end. Called by
`manager`, for `pylonctl backup verify` and `pylonctl restore`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pylon.clock import Clock, SystemRandom
from pylon.database_url import shown_url
from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.backups import VerifyReport
from pylon.storage.bundle.contents import CONTENTS, POSTGRES, Contents, Facts
from pylon.storage.bundle.verify import check_bundle, report_of
from pylon.storage.postgres.backup.create import (
    DUMP,
    database_errors,
    open_backup_session,
)
from pylon.storage.postgres.backup.facts import FIXED_TEXTS, read_facts, server_version
from pylon.storage.postgres.backup.programs import (
    find_program,
    libpq_environment,
    read_program,
    run_program,
)
from pylon.storage.postgres.connect import error_text
from pylon.storage.postgres.names import quote

# Lines of the table of contents that `restore` makes itself: the schema, and who owns what.
_SCHEMA_LINE: Final = re.compile(r"^\d+; \d+ \d+ (SCHEMA - |COMMENT - SCHEMA |ACL - SCHEMA )")


def verify_backup(source: Path) -> VerifyReport:
    """Check the bundle in `source` without a server.

    Raises:
        BackupInvalid: the text names the file and the problem.
        BackupRefused: pg_restore is not installed, or is too old.
    """
    contents = check_bundle(source, POSTGRES)
    listed = "\n".join(list_entries(source, contents))
    for table in contents.tables:
        if not re.search(
            rf"; \d+ \d+ TABLE DATA {re.escape(contents.schema)} {re.escape(table)}( |$)", listed,
            re.MULTILINE,
        ):
            raise BackupInvalid(f"{source / DUMP} has no rows of {table}, {CONTENTS} names it")
    return report_of(source, contents)


def verify_deeply(source: Path, url: str, clock: Clock) -> VerifyReport:
    """Check the bundle in `source`, and what a restore of it would give.

    Args:
        url: of a server on which the role may make a database.

    Raises:
        BackupInvalid: the text names the table and the problem.
        BackupRefused: no database can be made there.
    """
    report = verify_backup(source)
    contents = check_bundle(source, POSTGRES)
    with database_errors(shown_url(url)), _scratch_database(url) as scratch:
        with psycopg.connect(scratch, autocommit=True) as conn:
            conn.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(contents.schema)}")
        restore_dump(source, contents, scratch)
        with open_backup_session(scratch, clock) as session:
            for statement in FIXED_TEXTS:
                session.conn.execute(statement)
            session.conn.execute(
                "SELECT set_config('search_path', %s, false)", (quote(contents.schema),)
            )
            require_facts(read_facts(session.conn), contents)
    return report


def list_entries(source: Path, contents: Contents) -> list[str]:
    """Return the dump's table of contents, without the schema itself.

    Raises:
        BackupInvalid: pg_restore cannot read it.
        BackupRefused: pg_restore is not installed, or is too old.
    """
    program = find_program("pg_restore", _version_of(contents))
    try:
        text = read_program([program, "--list", source / DUMP])
    except BackupInvalid as ex:
        raise BackupInvalid(f"{source / DUMP} cannot be read: {ex.message}") from None
    return [
        line for line in text.splitlines()
        if not line.startswith(";") and not _SCHEMA_LINE.match(line)
    ]


def restore_dump(source: Path, contents: Contents, url: str) -> None:
    """Restore the dump into its schema, which is there and empty: all of it, or nothing.

    Raises:
        BackupInvalid: pg_restore failed; the text has its reason.
    """
    entries = list_entries(source, contents)
    with psycopg.connect(url, autocommit=True) as conn:
        version = server_version(conn)
        name = conn.info.dbname
    program = find_program("pg_restore", max(version, _version_of(contents)))
    with TemporaryDirectory() as folder:
        listed = Path(folder) / "entries"
        listed.write_text("\n".join(entries) + "\n")
        try:
            run_program(
                [
                    program, "--single-transaction", "--exit-on-error", "--no-owner",
                    "--no-privileges", "--no-password", f"--use-list={listed}",
                    f"--dbname={make_conninfo(dbname=name)}", source / DUMP,
                ],
                libpq_environment(url, "restore"),
            )
        except BackupInvalid as ex:
            raise BackupInvalid(f"{source / DUMP} cannot be restored: {ex.message}") from None


def require_facts(found: Facts, contents: Contents, *, with_structure: bool = True) -> None:
    """Compare restored data with what the bundle states.

    Args:
        with_structure: also the hash of columns and indexes.

    Raises:
        BackupInvalid: the text names the first thing that differs.
    """
    for name, stated in contents.tables.items():
        entry = found.tables.get(name)
        if entry is None:
            raise BackupInvalid(f"the dump has no table {name}, {CONTENTS} names it")
        if entry != stated:
            raise BackupInvalid(
                f"{name} has {entry.rows} rows with the digest {entry.digest}, {CONTENTS} says "
                f"{stated.rows} and {stated.digest}"
            )
    for name in found.tables.keys() - contents.tables.keys():
        raise BackupInvalid(f"the dump has a table {name}, {CONTENTS} does not name it")
    for what, value, wanted in (
        ("head", found.seq, contents.seq), ("lineage", found.lineage, contents.lineage),
        ("schema hash", found.schema_hash, contents.schema_hash),
    ):
        if value != wanted and (with_structure or what != "schema hash"):
            raise BackupInvalid(f"the {what} of the dump is {value}, {CONTENTS} says {wanted}")


def _version_of(contents: Contents) -> int:
    """Return the version of the server that the dump is of, as a number."""
    found = re.match(r"\d+", contents.server_version)
    return int(found.group()) * 10_000 if found else 0


@contextmanager
def _scratch_database(url: str) -> Iterator[str]:
    """Make a database, and drop it at the end of the block. Yields its URL, with the schema."""
    name = f"pylon_verify_{SystemRandom().token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as conn:
        try:
            conn.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        except psycopg.ProgrammingError as ex:
            raise BackupRefused(
                f"a deep check needs a database of its own: {error_text(ex)}",
                hint="give the role the right (ALTER ROLE ... CREATEDB), or set DATABASE_URL to "
                "another server for this command",
            ) from ex
        try:
            yield make_conninfo("", **{**conninfo_to_dict(url), "dbname": name})
        finally:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
