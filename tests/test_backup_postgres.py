"""Backups on PostgreSQL: one commit under load, every damage found, nothing lost by a restore."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
import pytest

from pylon.clock import ManualClock, SystemClock
from pylon.errors import BackupInvalid, BackupRefused, SchemaRefused
from pylon.storage.bundle.create import entry_of
from pylon.storage.postgres.backup.manager import PostgresBackups
from pylon.storage.postgres.backup.programs import find_program, libpq_environment
from pylon.storage.postgres.connect import open_session
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.transfer.manager import PostgresTransfer
from pylon.storage.sqlite.backup.manager import SqliteBackups
from pylon.storage.sqlite.transfer.manager import SqliteTransfer
from tests.support import moved_store as kit
from tests.support.storage import MANIFEST, row_id

ROOT = Path(__file__).parent.parent


@pytest.fixture
def url(tmp_path: Path, postgres_url: str) -> str:
    """A schema with data of every kind."""
    kit.fill(tmp_path / "a.db")
    kit.move(SqliteTransfer(tmp_path / "a.db"), PostgresTransfer(postgres_url))
    (tmp_path / "app.json").write_text('{"name": "app"}')
    return postgres_url


@pytest.fixture
def backups(url: str, tmp_path: Path) -> PostgresBackups:
    return PostgresBackups(url, ManualClock())


@pytest.fixture
def dropped(postgres_url: str) -> Iterator[None]:
    """Drop the schemas that restores of the test have kept."""
    yield
    for name in kept_schemas(postgres_url):
        execute(postgres_url, f"DROP SCHEMA {name} CASCADE")


def execute(url: str, *statements: str) -> list[Any]:
    """Execute statements; the rows of the last one."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            found = conn.execute(statement)
        return found.fetchall() if found.description else []


def schema_of(url: str) -> str:
    return unquote(url).rpartition("search_path=")[2]


def kept_schemas(url: str) -> list[str]:
    return [name for (name,) in execute(
        url, f"SELECT nspname FROM pg_namespace WHERE nspname LIKE '{schema_of(url)}_replaced_%'"
    )]


def restate(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change MANIFEST.json, and make it true of the files as they are now."""
    path = bundle / "MANIFEST.json"
    body = json.loads(path.read_text())
    change(body)
    for name in body["files"]:
        entry = entry_of(bundle / name)
        body["files"][name] = {"size_bytes": entry.size_bytes, "sha256": entry.sha256}
    path.write_text(json.dumps(body))


def test_bundle_states_its_store_server_schema_and_tables(
    backups: PostgresBackups, url: str, tmp_path: Path
) -> None:
    progress: list[tuple[int, int]] = []
    copied: list[bool] = []
    report = backups.create(
        tmp_path / "bundle", tmp_path / "app.json", lambda *found: progress.append(found),
        lambda: copied.append(True),
    )
    names = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert names == {"VERSION", "pylon.dump", "manifest.json", "MANIFEST.json"}
    stated = json.loads((tmp_path / "bundle" / "MANIFEST.json").read_text())
    ((version, head),) = execute(
        url, "SELECT current_setting('server_version'), max(value) FROM _pylon_change_seq"
    )
    assert (stated["format"], stated["store"], stated["server_version"]) == (
        2, "postgres", version
    )
    assert stated["schema"] == schema_of(url)
    assert stated["tables"]["Task"]["rows"] == 40
    assert report.seq == stated["seq"] == head
    assert report.manifest and copied == [True]
    assert all(0 <= left <= tables for left, tables in progress)
    assert backups.verify(tmp_path / "bundle").seq == head
    assert PostgresBackups("").verify(tmp_path / "bundle").seq == head


def test_backup_under_load_is_one_commit_and_lets_no_writer_wait(
    backups: PostgresBackups, url: str, tmp_path: Path
) -> None:
    execute(url, "CREATE TABLE a (id INT PRIMARY KEY, n INT, filler TEXT)",
            "CREATE TABLE b (id INT PRIMARY KEY, n INT, filler TEXT)",
            "INSERT INTO a SELECT n, 0, repeat(md5(n::text), 8) FROM generate_series(0, 4999) n",
            "INSERT INTO b SELECT * FROM a")
    ending = threading.Event()
    commits = 0
    during: list[int] = []

    def write() -> None:
        nonlocal commits
        with psycopg.connect(url) as conn:
            while not ending.is_set():
                conn.execute("UPDATE a SET n = n + 1 WHERE id = %s", (commits % 5_000,))
                conn.execute("UPDATE b SET n = n + 1 WHERE id = %s", (commits * 7 % 5_000,))
                conn.execute("UPDATE _pylon_change_seq SET value = value + 1")
                conn.commit()
                commits += 1

    ((before,),) = execute(url, "SELECT value FROM _pylon_change_seq")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(2):
            report = backups.create(
                tmp_path / f"b{number}", None, lambda left, tables: during.append(commits)
            )
            assert report.seq > before
            assert backups.verify(tmp_path / f"b{number}", deep=True).seq == report.seq
            restored = restored_sums(backups, url, tmp_path / f"b{number}")
            assert restored == (report.seq - before,) * 2
    finally:
        ending.set()
        writer.join()
    assert max(during) > min(during), "the writer was held up by the backup"


def restored_sums(backups: PostgresBackups, url: str, bundle: Path) -> tuple[int, int]:
    """The sums of the tables `a` and `b` of a bundle, restored in a database of its own."""
    name = f"sums_{schema_of(url)}"
    other = url.replace("/postgres?", f"/{name}?")
    execute(url, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        PostgresBackups(other).restore(bundle, bundle.parent / "no.json")
        ((a, b),) = execute(other, "SELECT (SELECT sum(n) FROM a), (SELECT sum(n) FROM b)")
        return int(a), int(b)
    finally:
        execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: flip(b / "pylon.dump"), "another SHA-256"),
        (lambda b: flip(b / "manifest.json"), "another SHA-256"),
        (lambda b: (b / "pylon.dump").write_bytes((b / "pylon.dump").read_bytes()[:-9]), "bytes"),
        (lambda b: (b / "pylon.dump").unlink(), "is missing"),
        (lambda b: (b / "more").write_bytes(b"x"), "does not belong"),
        (lambda b: (b / "MANIFEST.json").write_text("{"), "cannot be read"),
        (lambda b: ((b / "pylon.dump").write_bytes(b"no dump"), restate(b, lambda m: None)),
         "cannot be read: .*archive"),
        (lambda b: restate(b, lambda m: m["tables"].update(Lost={"rows": 1, "digest": "0"})),
         "no rows of Lost"),
    ],
)
def test_verify_finds_the_damage_without_a_server(
    backups: PostgresBackups, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    bundle = tmp_path / "bundle"
    backups.create(bundle, tmp_path / "app.json")
    damage(bundle)
    with pytest.raises(BackupInvalid, match=says):
        PostgresBackups("").verify(bundle)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["tables"]["Task"].update(rows=39), "Task has 40 rows"),
        (lambda m: m["tables"]["Task"].update(digest="ab"), "Task has 40 rows with the digest"),
        (lambda m: m["tables"].pop("Note"), "a table Note"),
        (lambda m: m.update(seq=7), "the head of the dump"),
        (lambda m: m.update(lineage="other"), "the lineage of the dump"),
        (lambda m: m.update(schema_hash="other"), "the schema hash"),
    ],
)
def test_deep_check_compares_head_lineage_structure_and_rows(
    backups: PostgresBackups, tmp_path: Path, change: Callable[[Any], object], says: str
) -> None:
    bundle = tmp_path / "bundle"
    backups.create(bundle, None)
    restate(bundle, lambda m: change(m) and None)
    backups.verify(bundle)
    with pytest.raises(BackupInvalid, match=says):
        backups.verify(bundle, deep=True)


def damage_rows(bundle: Path) -> None:
    """Damage the dump before its checksums are made."""
    raw = bytearray((bundle / "pylon.dump").read_bytes())
    at = len(raw) * 3 // 4
    raw[at : at + 200] = bytes(byte ^ 0x55 for byte in raw[at : at + 200])
    (bundle / "pylon.dump").write_bytes(bytes(raw))
    restate(bundle, lambda m: None)


def test_deep_check_finds_a_damaged_row_and_leaves_no_database(
    backups: PostgresBackups, url: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    backups.create(bundle, None)
    damage_rows(bundle)
    with pytest.raises(BackupInvalid):
        backups.verify(bundle, deep=True)
    assert execute(url, "SELECT 1 FROM pg_database WHERE datname LIKE 'pylon_verify_%'") == []


def test_restore_replaces_the_schema_keeps_it_and_opens_an_epoch(
    backups: PostgresBackups, url: str, tmp_path: Path, dropped: None
) -> None:
    before = kit.all_rows(PostgresTransfer(url))
    report = backups.create(tmp_path / "bundle", tmp_path / "app.json")
    execute(url, f"DELETE FROM \"Task\" WHERE id > '{row_id(5)}'",
            "UPDATE _pylon_change_seq SET value = value + 500",
            "CREATE TABLE theirs (n INT)")
    (tmp_path / "app.json").write_text('{"name": "changed"}')
    with pytest.raises(BackupRefused, match="--replace"):
        backups.restore(tmp_path / "bundle", tmp_path / "app.json", replace=False)
    made = backups.restore(tmp_path / "bundle", tmp_path / "app.json")
    (kept,) = kept_schemas(url)
    assert made.replaced[0] == f"schema {kept}"
    assert json.loads((tmp_path / "app.json").read_text()) == {"name": "app"}
    assert execute(url, f'SELECT count(*) FROM {kept}."Task"') == [(5,)]
    after = kit.all_rows(PostgresTransfer(url))
    own = {"_pylon_epochs": [], "_pylon_change_seq": []}
    assert after | own == before | own
    *old, (first_seq, void_from, reason, _) = after["_pylon_epochs"]
    assert old == before["_pylon_epochs"]
    assert (void_from, reason) == (report.seq, "restore")
    assert first_seq > report.seq + 500
    # The schema is as it was, indexes too.
    again = backups.create(tmp_path / "again", None)
    assert again.schema_hash == report.schema_hash


def test_the_schema_public_is_backed_up_and_replaced_too(
    url: str, tmp_path: Path
) -> None:
    """pg_dump treats this schema in its own way."""
    name = f"public_{schema_of(url)}"
    execute(url, f"CREATE DATABASE {name} TEMPLATE template0")
    other = url.partition("&options=")[0].replace("/postgres?", f"/{name}?")
    try:
        kit.move(SqliteTransfer(tmp_path / "a.db"), PostgresTransfer(other))
        before = kit.all_rows(PostgresTransfer(other))
        backups = PostgresBackups(other, ManualClock())
        backups.create(tmp_path / "bundle", None)
        backups.verify(tmp_path / "bundle", deep=True)
        execute(other, 'DELETE FROM "Task"')
        made = backups.restore(tmp_path / "bundle", tmp_path / "no.json")
        assert made.replaced[0].startswith("schema public_replaced_")
        own: dict[str, list[Any]] = {"_pylon_epochs": [], "_pylon_change_seq": []}
        assert kit.all_rows(PostgresTransfer(other)) | own == before | own
    finally:
        execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def test_restore_of_another_lineage_voids_all_cursors(
    backups: PostgresBackups, url: str, tmp_path: Path, dropped: None
) -> None:
    backups.create(tmp_path / "bundle", None)
    execute(url, "UPDATE _pylon_meta SET value = 'other' WHERE key = 'lineage'")
    backups.restore(tmp_path / "bundle", tmp_path / "no.json")
    assert execute(
        url, "SELECT void_from FROM _pylon_epochs ORDER BY first_seq DESC LIMIT 1"
    ) == [(0,)]


def test_a_failed_restore_leaves_the_schema_as_it_was(
    backups: PostgresBackups, url: str, tmp_path: Path
) -> None:
    before = kit.all_rows(PostgresTransfer(url))
    bundle = tmp_path / "bundle"
    backups.create(bundle, None)
    damage_rows(bundle)
    with pytest.raises(BackupInvalid, match=r"cannot be (read|restored)|has \d+ rows"):
        backups.restore(bundle, tmp_path / "no.json")
    assert kit.all_rows(PostgresTransfer(url)) == before
    assert kept_schemas(url) == []


@pytest.mark.parametrize("step", ["restore_dump", "_check", "_finish"])
def test_a_restore_that_was_killed_is_run_again(
    step: str, backups: PostgresBackups, url: str, tmp_path: Path, dropped: None, processes: None
) -> None:
    """The second run knows what the first one has replaced: another lineage voids all cursors."""
    before = kit.all_rows(PostgresTransfer(url))
    bundle = tmp_path / "bundle"
    backups.create(bundle, None)
    execute(url, "UPDATE _pylon_meta SET value = 'other' WHERE key = 'lineage'")
    owner = "restore" if step == "restore_dump" else "restore._Restore"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pylon.storage.postgres.backup import restore\n"
        "from pylon.storage.postgres.backup.manager import PostgresBackups\n"
        f"{owner}.{step} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "PostgresBackups(sys.argv[1]).restore(Path(sys.argv[2]), Path('none.json'))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, url, str(bundle)], timeout=60, check=False,
        capture_output=True, text=True, cwd=ROOT,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with closing(open_session(url, "plain", "", SystemClock())) as session, \
            pytest.raises(SchemaRefused, match="was not finished"):
        prepare_store(session, MANIFEST, SystemClock())
    backups.restore(bundle, tmp_path / "no.json")
    assert len(kept_schemas(url)) == 1
    after = kit.all_rows(PostgresTransfer(url))
    own: dict[str, list[Any]] = {"_pylon_epochs": [], "_pylon_change_seq": []}
    assert after | own == before | own
    assert after["_pylon_epochs"][-1][1] == 0, "all cursors are void"


def test_restore_while_a_server_runs_is_refused(
    backups: PostgresBackups, url: str, tmp_path: Path
) -> None:
    backups.create(tmp_path / "bundle", None)
    execute(url, "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, "
            "started_at, seen_at) VALUES ('n1', '', '', '', '', '', now(), now())")
    with pytest.raises(BackupRefused, match=r"servers run on .*: n1"):
        backups.restore(tmp_path / "bundle", tmp_path / "no.json")


def test_target_that_is_taken_is_refused_before_the_dump(
    backups: PostgresBackups, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(BackupRefused, match="not an empty folder"):
        backups.create(tmp_path / "taken", None)


def test_a_backup_that_is_cancelled_leaves_nothing(
    backups: PostgresBackups, tmp_path: Path
) -> None:
    def cancel(left: int, tables: int) -> None:
        raise BackupRefused("no more")

    with pytest.raises(BackupRefused, match="no more"):
        backups.create(tmp_path / "bundle", None, cancel)
    assert not list(tmp_path.glob("bundle*"))


def test_a_bundle_of_one_store_is_refused_by_the_other(
    backups: PostgresBackups, tmp_path: Path
) -> None:
    backups.create(tmp_path / "dump", None)
    sqlite = SqliteBackups(tmp_path / "a.db")
    sqlite.create(tmp_path / "file", None)
    with pytest.raises(BackupInvalid, match="migrate postgres-to-sqlite"):
        sqlite.restore(tmp_path / "dump", tmp_path / "no.json")
    with pytest.raises(BackupInvalid, match="migrate sqlite-to-postgres"):
        backups.restore(tmp_path / "file", tmp_path / "no.json")


def test_an_empty_schema_has_nothing_to_back_up(postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(BackupRefused, match="no database of Pylon"):
        PostgresBackups(postgres_url).create(tmp_path / "bundle", None)


def test_the_program_of_the_servers_version_is_chosen_or_its_package_is_named(
    tmp_path: Path
) -> None:
    folders = []
    for version in ("14.9", "16.2", "18.1"):
        folder = tmp_path / version
        folder.mkdir()
        program = folder / "pg_dump"
        program.write_text(f'#!/bin/sh\necho "pg_dump (PostgreSQL) {version} (Debian)"\n')
        program.chmod(0o755)
        folders.append(folder)
    assert find_program("pg_dump", 150_004, folders) == tmp_path / "16.2" / "pg_dump"
    assert find_program("pg_dump", 180_000, folders) == tmp_path / "18.1" / "pg_dump"
    with pytest.raises(BackupRefused, match="of PostgreSQL 18, older than the server's 19") as old:
        find_program("pg_dump", 190_000, folders)
    assert "postgresql-client-19" in (old.value.hint or "")
    with pytest.raises(BackupRefused, match="not installed") as missing:
        find_program("pg_dump", 170_000, [])
    assert "postgresql-client-17" in (missing.value.hint or "")


def test_the_password_is_in_the_environment_of_a_program_only() -> None:
    environment = libpq_environment("postgresql://me:s%20cret@db.example.com:6000/app", "backup")
    assert environment["PGPASSWORD"] == "s cret"
    assert (environment["PGHOST"], environment["PGPORT"]) == ("db.example.com", "6000")
    assert (environment["PGUSER"], environment["PGDATABASE"]) == ("me", "app")


def test_a_restored_schema_can_be_moved_back(
    backups: PostgresBackups, url: str, tmp_path: Path, dropped: None
) -> None:
    backups.create(tmp_path / "bundle", None)
    backups.restore(tmp_path / "bundle", tmp_path / "no.json")
    kit.move(PostgresTransfer(url), SqliteTransfer(tmp_path / "b.db"))
    with closing(SqliteTransfer(tmp_path / "b.db").open_source(MANIFEST)) as source:
        assert source.facts.head > 10**12
