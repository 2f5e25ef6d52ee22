"""Bundles: one commit, whatever is written meanwhile; every damage is found."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from pylon import __version__
from pylon.clock import ManualClock
from pylon.data_dir_lock import DataDirLocked, is_locked, lock_data_dir, pidfile_of
from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.bundle.create import entry_of
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.backup.create import create_backup
from pylon.storage.sqlite.backup.verify import verify_backup
from pylon.storage.sqlite.error_text import error_text


def make_database(path: Path, rows: int = 5_000) -> apsw.Connection:
    """Two tables whose sums must agree at every commit, and a change log."""
    conn = apsw.Connection(os.fspath(path))
    conn.execute("PRAGMA journal_mode = WAL").fetchall()
    conn.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    conn.execute(
        "CREATE TABLE a(id INTEGER PRIMARY KEY, n INTEGER, filler TEXT);"
        "CREATE TABLE b(id INTEGER PRIMARY KEY, n INTEGER, filler TEXT);"
        "CREATE TABLE _pylon_change_log(seq INTEGER PRIMARY KEY, entity TEXT);"
        "CREATE TABLE _pylon_meta(key TEXT PRIMARY KEY, value TEXT);"
        "INSERT INTO _pylon_meta VALUES ('lineage', 'abc')"
    )
    with conn:
        for number in range(rows):
            conn.execute("INSERT INTO a VALUES (?, 0, ?)", (number, "x" * 200))
            conn.execute("INSERT INTO b VALUES (?, 0, ?)", (number, "y" * 200))
    return conn


@pytest.fixture
def app(tmp_path: Path) -> Path:
    make_database(tmp_path / "live.db", rows=100).close()
    (tmp_path / "app.json").write_text('{"name": "app"}')
    return tmp_path


def back_up(app: Path, target: Path) -> None:
    create_backup(app / "live.db", app / "app.json", target, ManualClock())


def test_bundle_has_every_file_and_its_hash(app: Path) -> None:
    target = app / "bundles" / "one"
    report = create_backup(app / "live.db", app / "app.json", target, ManualClock())
    names = {path.name for path in target.iterdir()}
    assert names == {"VERSION", "pylon.db", "manifest.json", "MANIFEST.json"}
    stated = json.loads((target / "MANIFEST.json").read_text())
    assert set(stated["files"]) == names - {"MANIFEST.json"}
    assert stated["lineage"] == "abc"
    assert stated["created_at"] == "2023-11-14T22:13:20+00:00"
    assert report.to_json()["ok"] is True
    assert report.manifest is True
    assert verify_backup(target).seq == 0


def test_backup_under_write_load_is_one_commit_and_ends(tmp_path: Path) -> None:
    conn = make_database(tmp_path / "live.db")
    ending = threading.Event()
    commits = 0
    during: list[int] = []

    def write() -> None:
        nonlocal commits
        while not ending.is_set():
            with conn:
                conn.execute("UPDATE a SET n = n + 1 WHERE id = ?", (commits % 5_000,))
                conn.execute("UPDATE b SET n = n + 1 WHERE id = ?", (commits * 7 % 5_000,))
                conn.execute("INSERT INTO _pylon_change_log(entity) VALUES ('a')")
            commits += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            before = commits
            report = create_backup(
                tmp_path / "live.db", tmp_path / "none.json", tmp_path / f"b{number}",
                ManualClock(), on_progress=lambda left, pages: during.append(commits),
            )
            with bundle.open_unchanging(tmp_path / f"b{number}" / "pylon.db") as copy:
                ((a, b, seq),) = copy.execute(
                    "SELECT (SELECT sum(n) FROM a), (SELECT sum(n) FROM b), "
                    "(SELECT max(seq) FROM _pylon_change_log)"
                ).fetchall()
                assert a == b == (seq or 0)
            assert report.seq == (seq or 0) >= before
            assert report.manifest is False
            assert verify_backup(tmp_path / f"b{number}").seq == report.seq
    finally:
        ending.set()
        writer.join()
        conn.close()
    assert max(during) > min(during), "the writer was held up by the backup"


def test_backup_leaves_no_side_files(app: Path) -> None:
    back_up(app, app / "bundle")
    assert {path.name for path in app.iterdir()} <= {
        "live.db", "live.db-wal", "live.db-shm", "app.json", "bundle",
    }
    assert not (app / "bundle" / "pylon.db-wal").exists()


def test_target_that_holds_something_is_refused(app: Path) -> None:
    (app / "taken").mkdir()
    (app / "taken" / "file").write_text("mine")
    with pytest.raises(BackupRefused, match="not an empty folder"):
        back_up(app, app / "taken")
    assert [path.name for path in (app / "taken").iterdir()] == ["file"]
    with pytest.raises(BackupRefused, match="not an empty folder"):
        back_up(app, app / "app.json")


def test_empty_target_is_filled(app: Path) -> None:
    (app / "empty").mkdir()
    back_up(app, app / "empty")
    assert verify_backup(app / "empty").files == 3


def test_no_database_is_refused(app: Path) -> None:
    with pytest.raises(BackupRefused, match="PYLON_DB_PATH"):
        create_backup(app / "no.db", app / "app.json", app / "b", ManualClock())


def test_damaged_source_leaves_nothing_behind(app: Path) -> None:
    (app / "bad.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(BackupInvalid):
        create_backup(app / "bad.db", app / "app.json", app / "b", ManualClock())
    assert [path for path in app.iterdir() if path.name.startswith("b.tmp")] == []
    assert not (app / "b").exists()


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def _restate(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / "MANIFEST.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: _flip(b / "pylon.db"), "another SHA-256"),
        (lambda b: _flip(b / "manifest.json"), "another SHA-256"),
        (lambda b: (b / "VERSION").write_text("longer than before"), "bytes"),
        (lambda b: (b / "VERSION").unlink(), "is missing"),
        (lambda b: (b / "pylon.db-wal").write_bytes(b"x"), "does not belong"),
        (lambda b: (b / "MANIFEST.json").unlink(), "no MANIFEST.json"),
        (lambda b: (b / "MANIFEST.json").write_text("{"), "cannot be read"),
        (lambda b: _restate(b, lambda m: m.update(seq=7)), "says"),
        (lambda b: _restate(b, lambda m: m.update(lineage="other")), "says"),
        (lambda b: _restate(b, lambda m: m.update(format=3)), "format 3"),
        (lambda b: _restate(b, lambda m: m["files"].update({"../x": m["files"]["VERSION"]})),
         "not a file of the bundle"),
        (lambda b: _restate(b, lambda m: m.update(store="oracle")), "store 'oracle'"),
        (lambda b: _restate(b, lambda m: m.update(files={})), "lists no pylon.db"),
    ],
)
def test_verify_finds_the_damage(
    app: Path, damage: Callable[[Path], None], says: str
) -> None:
    back_up(app, app / "bundle")
    damage(app / "bundle")
    with pytest.raises(BackupInvalid, match=says):
        verify_backup(app / "bundle")


def test_a_bundle_of_format_1_is_read(app: Path) -> None:
    back_up(app, app / "bundle")
    path = app / "bundle" / "MANIFEST.json"
    body = json.loads(path.read_text())
    assert (body["format"], body["store"], body["server_version"]) == (
        2, "sqlite", apsw.sqlite_lib_version()
    )
    for key in ("store", "server_version", "history_id", "schema", "tables"):
        del body[key]
    path.write_text(json.dumps(body | {"format": 1}))
    assert verify_backup(app / "bundle").lineage == "abc"


def test_a_bundle_of_the_other_store_is_refused_with_the_way_to_move_it(app: Path) -> None:
    back_up(app, app / "bundle")
    (app / "bundle" / "pylon.db").rename(app / "bundle" / "pylon.dump")
    _restate(app / "bundle", lambda m: m.update(
        store="postgres", files={"pylon.dump": {"size_bytes": 1, "sha256": ""}}
    ))
    with pytest.raises(BackupInvalid, match="migrate postgres-to-sqlite"):
        verify_backup(app / "bundle")


def test_verify_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BackupInvalid, match="is not a folder"):
        verify_backup(tmp_path / "nowhere")


def test_hold_excludes_and_lets_go(tmp_path: Path) -> None:
    db_path = tmp_path / "live.db"
    assert not is_locked(db_path)
    with lock_data_dir(db_path):
        assert is_locked(db_path)
        with pytest.raises(DataDirLocked), lock_data_dir(db_path):
            pass
    assert not is_locked(db_path)
    assert pidfile_of(db_path).name == "live.db.pid"


def sign_again(target: Path, **contents: object) -> None:
    """Make MANIFEST.json true of the files as they are now, with other `contents`."""
    stated = json.loads((target / "MANIFEST.json").read_text())
    for name in stated["files"]:
        entry = entry_of(target / name)
        stated["files"][name] = {"size_bytes": entry.size_bytes, "sha256": entry.sha256}
    (target / "MANIFEST.json").write_text(json.dumps(stated | contents))


@pytest.mark.parametrize("version", ["9.9.9", "0.1.1", "0.2", "1.0.0rc1"])
@pytest.mark.parametrize("where", ["MANIFEST.json", "VERSION"])
def test_a_bundle_of_a_newer_version_is_refused_with_both_versions(
    app: Path, version: str, where: str
) -> None:
    target = app / "one"
    back_up(app, target)
    if where == "VERSION":
        (target / "VERSION").write_text(version + "\n")
        sign_again(target)
    else:
        sign_again(target, version=version)
    with pytest.raises(BackupInvalid) as refused:
        verify_backup(target)
    assert version in refused.value.message and __version__ in refused.value.message


def test_a_bundle_of_an_older_version_or_of_this_one_is_taken(app: Path) -> None:
    target = app / "one"
    back_up(app, target)
    for version in ("0.0.9", "0.1.0.dev3", "0.1", __version__):
        sign_again(target, version=version)
        assert verify_backup(target).version == version
    sign_again(target, version="newest")
    with pytest.raises(BackupInvalid, match="which is none"):
        verify_backup(target)


def test_a_bundle_with_a_newer_schema_format_is_refused(app: Path) -> None:
    conn = apsw.Connection(os.fspath(app / "live.db"))
    conn.execute("INSERT INTO _pylon_meta VALUES ('schema_format', '7')")
    conn.close()
    back_up(app, app / "one")
    with pytest.raises(BackupInvalid, match="schema format 7"):
        verify_backup(app / "one")


def test_a_failure_that_sqlite_has_no_text_for_is_named_by_its_kind(tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_bytes(b"no database" * 1_000)
    source = apsw.Connection(os.fspath(tmp_path / "garbage.db"))
    target = apsw.Connection(":memory:")
    with pytest.raises(apsw.NotADBError) as failed, target.backup("main", source, "main") as copy:
        copy.step(1)
    assert str(failed.value) == "not an error"
    assert error_text(failed.value) == "the file is not a database"
    assert error_text(apsw.FullError("database or disk is full")) == "database or disk is full"
    assert error_text(apsw.RangeError("not an error")) == "RangeError"


def test_no_message_has_the_bare_text_of_an_sqlite_error() -> None:
    root = Path(__file__).parent.parent
    bare = re.compile(r"except \(?[^:\n]*apsw[^:\n]*as (\w+):\n(?:(?! +except).*\n){0,9}?.*\{\1\}")
    found = [
        str(path.relative_to(root))
        for package in ("pylon", "supervisor", "workers")
        for path in (root / package).rglob("*.py") if bare.search(path.read_text())
    ]
    assert found == []
