"""PostgreSQL restore: fills the app's schema from a bundle, and keeps what was in it.

The order of the steps is: verify the bundle; rename the schema, if it has tables, to
`<schema>_replaced_<time>`, and make an empty one with the note of an unfinished move, all in one
transaction; let pg_restore fill it, in one transaction; compare head, lineage and the digest of
every table with the bundle; open a new epoch and remove the note, in one transaction. No server
starts while the note is there. If a step fails, the old schema gets its name again. A restore that
was killed is run again: the note has head and lineage of the schema that was replaced, and what was
restored in part is dropped.

The names in a dump are those of its schema. A bundle of another schema is restored under that
name first, and then renamed; so the database must not have both.

Invariants: nothing that was replaced is dropped. The new epoch voids the cursors of the replaced
history that do not fit the restored one. The caller holds the lock of the data directory; the
session holds the lock of schema changes. Called by `manager`, for `pylonctl restore`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from pylon.clock import Clock
from pylon.database_url import shown_url
from pylon.errors import BackupRefused
from pylon.storage.backups import RestoreReport
from pylon.storage.bundle.contents import APP_MANIFEST, POSTGRES, Contents, Facts
from pylon.storage.bundle.restore import find_free_stamp, kept_path, put_manifest
from pylon.storage.bundle.verify import check_bundle
from pylon.storage.postgres import epochs, meta, registry
from pylon.storage.postgres.backup.create import database_errors, open_backup_session
from pylon.storage.postgres.backup.facts import FIXED_TEXTS, Connection, read_facts
from pylon.storage.postgres.backup.verify import require_facts, restore_dump, verify_backup
from pylon.storage.postgres.locks import SCHEMA, lock_key
from pylon.storage.postgres.names import NAME_BYTES, quote
from pylon.storage.postgres.transfer.unfinished import NOTE_TABLE
from pylon.storage.postgres.wire import BlockingSession

_EXISTS: Final = "SELECT count(*) FROM pg_namespace WHERE nspname = %s"
_TABLES: Final = (
    "SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
    "WHERE nspname = %s AND relkind IN ('r', 'p') AND relname <> %s"
)


def restore_backup(
    source: Path, url: str, manifest_path: Path, clock: Clock, *, replace: bool
) -> RestoreReport:
    """Fill the schema of the URL from the bundle `source`, and replace the manifest.

    Args:
        replace: rename a schema that has tables; False: refuse it.

    Raises:
        BackupInvalid: the bundle does not pass the check, or pg_restore failed; the schema is as
            before.
        BackupRefused: the schema has tables, or a server runs on it.
        StoreUnavailable: the database cannot be used.
    """
    verified = verify_backup(source)
    contents = check_bundle(source, POSTGRES)
    with database_errors(shown_url(url)), open_backup_session(url, clock) as session:
        made = _Restore(session, url, contents, clock)
        replaced = made.fill(source, manifest_path, replace=replace)
    has_manifest = (source / APP_MANIFEST).is_file()
    if has_manifest:
        replaced += put_manifest(
            source / APP_MANIFEST, manifest_path.absolute(), made.stamp
        )
    return RestoreReport(
        source=str(source), manifest=has_manifest, seq=verified.seq, lineage=verified.lineage,
        replaced=tuple(replaced), unreadable="",
    )


class _Note(msgspec.Struct, frozen=True):
    """A restore's note in its schema until it is done: that it is one, and head and lineage of
    the schema that it replaces."""

    is_restore: bool
    seq: int | None
    lineage: str

    @property
    def facts(self) -> Facts | None:
        """Return what is known of the replaced schema; None: there was none."""
        return None if self.seq is None else Facts(self.seq, self.lineage, "")


class _Restore:
    """One restore. `stamp` is in the names of what it keeps."""

    def __init__(
        self, session: BlockingSession, url: str, contents: Contents, clock: Clock
    ) -> None:
        self.stamp = ""
        self._session = session
        self._conn: Connection = session.conn
        self._url = url
        self._contents = contents
        self._clock = clock
        self._schema = _schema_name(session.conn)
        self._is_partial = False  # whether a restore that was killed has left something

    def fill(self, source: Path, manifest_path: Path, *, replace: bool) -> list[str]:
        """Do it; the names of what was kept."""
        old = self._look(replace=replace)
        self.stamp = find_free_stamp(
            lambda tried: kept_path(manifest_path, tried).exists()
            or self._count(_EXISTS, self._kept_name(tried)) > 0, self._clock,
        )
        kept = self._kept_name(self.stamp) if old is not None and not self._is_partial else None
        self._make_room(kept, old)
        try:
            restore_dump(source, self._contents, self._url)
            self._check()
        except BaseException:
            self._undo(kept)
            raise
        self._finish(old)
        return [] if kept is None else [f"schema {kept}"]

    def _look(self, *, replace: bool) -> Facts | None:
        """Check that the schema may be filled. Return the facts of what is there; None: nothing."""
        other = self._contents.schema
        if other != self._schema and self._count(_EXISTS, other):
            raise BackupRefused(
                f"the bundle is of the schema {other}, and this database has one of that name: "
                f"restore into {other}, or into another database"
            )
        if not self._count(_EXISTS, self._schema):
            return None
        found = self._conn.execute(
            "SELECT coalesce(pg_try_advisory_lock(%s), true)", (lock_key(self._session, SCHEMA),)
        ).fetchone()
        if found is None or not found[0]:
            raise BackupRefused(
                f"a server starts on the schema {self._schema}, or a migration works on it: "
                "stop it first"
            )
        unfinished = self._read_note()
        if unfinished is not None:
            self._is_partial = True
            return unfinished.facts
        if not self._count(_TABLES, self._schema, NOTE_TABLE):
            return None
        if not replace:
            raise BackupRefused(
                f"the schema {self._schema} of {shown_url(self._url)} has tables: with --replace "
                "it is kept under another name"
            )
        facts = read_facts(self._conn, with_tables=False)
        if self._has_table("_pylon_nodes"):
            statement: Any = registry.LIVING
            nodes = [str(name) for (name,) in self._conn.execute(statement)]
            if nodes:
                raise BackupRefused(
                    f"servers run on {shown_url(self._url)}: {', '.join(nodes)}: stop them first "
                    "(pylonctl stop; one that was killed counts for 10 s)"
                )
        return facts

    def _read_note(self) -> _Note | None:
        """Return the note of a restore that was killed."""
        if not self._has_table(NOTE_TABLE):
            return None
        found = self._conn.execute(f"SELECT note FROM {NOTE_TABLE}").fetchone()
        try:
            return None if found is None else msgspec.json.decode(found[0], type=_Note)
        except msgspec.ValidationError:  # of an unfinished migration
            return None

    def _make_room(self, kept: str | None, old: Facts | None) -> None:
        schema = self._contents.schema
        note = _Note(True, None if old is None else old.seq, "" if old is None else old.lineage)
        with self._conn.transaction():
            if kept is not None:
                self._execute(f"ALTER SCHEMA {quote(self._schema)} RENAME TO {quote(kept)}")
            elif self._is_partial:
                self._execute(f"DROP SCHEMA {quote(self._schema)} CASCADE")
            self._execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
            table = f"{quote(schema)}.{NOTE_TABLE}"
            self._execute(f"CREATE TABLE {table} (id INT PRIMARY KEY, note TEXT)")
            statement: Any = f"INSERT INTO {table} VALUES (1, %s)"
            self._conn.execute(statement, (msgspec.json.encode(note).decode(),))

    def _check(self) -> None:
        """Compare every table with what the bundle states."""
        for statement in FIXED_TEXTS:
            self._execute(statement)
        with self._conn.transaction():
            self._use(self._contents.schema)
            found = read_facts(self._conn)
        del found.tables[NOTE_TABLE]
        # The note, and another version's words for the same structure, change the hash.
        require_facts(found, self._contents, with_structure=False)

    def _undo(self, kept: str | None) -> None:
        schema = self._contents.schema
        with self._conn.transaction():
            # All that is in it was restored just now.
            self._execute(f"DROP SCHEMA {quote(schema)} CASCADE")
            if kept is None:
                self._execute(f"CREATE SCHEMA IF NOT EXISTS {quote(self._schema)}")
            else:
                self._execute(f"ALTER SCHEMA {quote(kept)} RENAME TO {quote(self._schema)}")

    def _finish(self, old: Facts | None) -> None:
        """Open an epoch that voids every cursor that the restored history does not contain.

        Cursors above the restored head are void in any case, and the new epoch begins above all
        seqs of the replaced schema. If that had another lineage, all cursors are void.
        """
        schema, contents = self._contents.schema, self._contents
        history = epochs.read_history(self._session)
        foreign = old is not None and (old.lineage != contents.lineage or not contents.lineage)
        with self._conn.transaction():
            if schema != self._schema:
                # An empty schema may be there.
                if self._count(_EXISTS, self._schema):
                    self._execute(f"DROP SCHEMA {quote(self._schema)}")
                self._execute(f"ALTER SCHEMA {quote(schema)} RENAME TO {quote(self._schema)}")
            self._use(self._schema)
            self._execute(f"DROP TABLE {NOTE_TABLE}")
            head = max(contents.seq, old.seq if old is not None else 0)
            self._execute("DELETE FROM _pylon_change_seq")
            self._conn.execute("INSERT INTO _pylon_change_seq VALUES (1, %s)", (head,))
            self._execute("DELETE FROM _pylon_nodes")
            epochs.open_epoch(
                self._session, "restore", self._clock, void_from=0 if foreign else contents.seq
            )
            meta.put(self._session, epochs.HISTORY, history)

    def _kept_name(self, stamp: str) -> str:
        ending = f"_replaced_{stamp.lower()}"
        start = self._schema.encode()[: NAME_BYTES - len(ending)].decode(errors="ignore")
        return start + ending

    def _use(self, schema: str) -> None:
        """Let the names of the open transaction be those of a schema."""
        self._conn.execute("SELECT set_config('search_path', %s, true)", (quote(schema),))

    def _has_table(self, name: str) -> bool:
        found = self._conn.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone()
        return bool(found and found[0])

    def _count(self, sql: str, *values: str) -> int:
        statement: Any = sql
        found = self._conn.execute(statement, values).fetchone()
        return 0 if found is None else int(found[0])

    def _execute(self, sql: str) -> None:
        statement: Any = sql
        self._conn.execute(statement)


def _schema_name(conn: psycopg.Connection[Any]) -> str:
    """Return the schema of the connection, also one that does not exist.

    Raises:
        BackupRefused: the search_path names none.
    """
    found = conn.execute("SELECT current_schema(), current_setting('search_path')").fetchone()
    assert found is not None
    if found[0] is not None:
        return str(found[0])
    for name in str(found[1]).split(","):
        plain = name.strip().strip('"')
        if plain and plain != "$user":
            return plain
    raise BackupRefused(f"the search_path {found[1]!r} names no schema")
