"""Backups of a running server: the caller copies, and the supervisor's end does not wait long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from pylon.cli.backup import _Bundle, _Copy
from pylon.config import load
from pylon.control import ControlDialogue
from pylon.errors import Unavailable
from pylon.storage.bundle.record import read_record
from pylon.storage.factory import open_store_at
from pylon.storage.sqlite.backup.verify import verify_backup
from pylon.storage.sqlite.wal_readers import find_readers
from tests.support.measured import page_values
from tests.support.supervised import Maker, Supervised, supervised_maker
from tests.support.wait import WAIT_S, wait_until

pytestmark = pytest.mark.usefixtures("processes")

AT = "pylon_backup_last_success_timestamp_seconds"


@pytest.fixture
def make(processes: None, tmp_path: Path) -> Iterator[Maker]:
    with supervised_maker(tmp_path) as maker:
        yield maker


def run_backup(it: Supervised, target: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "pylon.cli.main", "backup", str(target)],
        env=it.env, cwd=it.folder, capture_output=True, text=True, timeout=60, check=False,
    )


def bundle_of(it: Supervised, target: Path) -> _Bundle:
    return _Bundle(load(it.env).config, open_store_at(it.db_path), target, encryption=None)


def value_of(it: Supervised, name: str) -> float:
    page = it.control.ask("metrics", format="text")["body"]
    (value,) = page_values(page, name)
    return value


def test_backup_reaches_a_folder_that_only_its_caller_sees(make: Maker, tmp_path: Path) -> None:
    it = make().start()
    hidden, kept = tmp_path / "hidden", tmp_path / "kept"
    hidden.mkdir()
    # In a mount namespace of its own, as the server has one under PrivateTmp=yes.
    script = f'mount -t tmpfs none {hidden}; "$@" || exit; cp -a {hidden}/bundle {kept}'
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    done = run_backup(it, hidden / "bundle", *unshare, "sh", "-ec", script, "sh")
    assert done.returncode == 0, done.stderr
    assert verify_backup(kept).seq == it.status()["head_seq"]
    assert (kept.stat().st_mode & 0o777, (kept / "pylon.db").stat().st_mode & 0o777) == (
        0o700, 0o600)
    assert not list(hidden.iterdir()), "the server wrote nothing there either"
    assert it.end() == 0


def test_last_success_survives_a_restart(make: Maker, tmp_path: Path) -> None:
    it = make().start()
    assert value_of(it, AT) == 0
    assert run_backup(it, tmp_path / "one").returncode == 0
    at_s = value_of(it, AT)
    assert at_s > 1_600_000_000
    assert it.end() == 0
    it.start()
    assert value_of(it, AT) == at_s
    refused = run_backup(it, tmp_path / "one")
    assert (refused.returncode, "not an empty folder" in refused.stderr) == (1, True)
    page = it.control.ask("metrics", format="text")["body"]
    assert page_values(page, "pylon_backups_total", result="failed") == [1]
    assert it.end() == 0


def test_backup_of_a_stopped_server_is_known_after_its_start(make: Maker, tmp_path: Path) -> None:
    it = make().start()
    assert it.end() == 0
    assert run_backup(it, tmp_path / "one").returncode == 0
    record = read_record(it.db_path)
    assert record is not None and record.target == str(tmp_path / "one")
    it.start()
    assert value_of(it, AT) == record.at_s
    assert it.end() == 0


def test_one_backup_at_a_time(make: Maker, tmp_path: Path) -> None:
    it = make().start()
    with it.control.open_dialogue("backup") as first:
        assert "manifest" in first.receive_line()
        second = run_backup(it, tmp_path / "b")
        assert (second.returncode, "Another backup" in second.stderr) == (69, True)
    assert run_backup(it, tmp_path / "b").returncode == 0
    assert it.end() == 0


class HaltedCopy(_Copy):
    """A copy that stands still in its first step until something comes from the server."""

    def __init__(self, dialogue: ControlDialogue, bundle: _Bundle) -> None:
        super().__init__(dialogue, bundle)
        self.reading = threading.Event()

    def _print_progress(self, remaining: int, pages: int) -> None:
        self.reading.set()
        why = wait_until("cancelled", self._reason_to_cancel)
        raise Unavailable(why)


def test_sigterm_cancels_a_backup_and_empties_the_wal(make: Maker, tmp_path: Path) -> None:
    it = make().start()
    wal = it.db_path.with_name(it.db_path.name + "-wal")
    assert wal.stat().st_size > 0
    failures: list[Exception] = []
    dialogue = it.control.open_dialogue("backup")
    copy = HaltedCopy(dialogue, bundle_of(it, tmp_path / "bundles" / "one"))

    def run() -> None:
        try:
            with dialogue:
                copy.make()
        except Unavailable as ex:
            failures.append(ex)

    thread = threading.Thread(target=run)
    thread.start()
    assert copy.reading.wait(WAIT_S)
    assert it.end() == 0
    thread.join()
    assert it.events("drain")[-2]["wal_truncated"]
    assert len(failures) == 1 and "stopping" in str(failures[0])
    assert list((tmp_path / "bundles").iterdir()) == [], "no temporary folder stays"
    assert not wal.exists() or wal.stat().st_size == 0


def test_a_backup_that_has_copied_outlives_the_server(make: Maker, tmp_path: Path) -> None:
    it = make().start()

    class EndsServer(_Copy):
        def _report_copied(self) -> None:
            super()._report_copied()
            assert it.end() == 0

    with it.control.open_dialogue("backup") as dialogue:
        report = EndsServer(dialogue, bundle_of(it, tmp_path / "one")).make()
    assert verify_backup(tmp_path / "one").seq == report.seq
    record = read_record(it.db_path)
    assert record is not None and record.seq == report.seq


def test_a_reader_that_stays_is_named_and_the_exit_code_is_75(make: Maker) -> None:
    it = make(LIMIT_FLUSH_WAIT_S="0.1").start()
    conn = apsw.Connection(str(it.db_path))
    conn.execute("BEGIN; SELECT count(*) FROM sqlite_schema").fetchall()
    assert it.end() == 75
    (event,) = it.events("drain.wal_held")
    assert len(event["readers"]) == 1
    assert event["readers"][0].startswith(f"pid {os.getpid()} (")
    conn.close()
    it.start()
    assert it.end() == 0


def test_readers_are_found_by_their_transactions(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    conn = apsw.Connection(str(path))
    conn.execute("PRAGMA journal_mode = WAL").fetchall()
    conn.execute("CREATE TABLE t (n)")
    assert find_readers(path) == []
    conn.execute("BEGIN; SELECT * FROM t").fetchall()
    assert [reader.pid for reader in find_readers(path)] == [os.getpid()]
    conn.execute("COMMIT")
    assert find_readers(path) == []
    conn.close()
    assert find_readers(tmp_path / "none.db") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_pylonctl_ended_by_a_signal_leaves_nothing_half_made(
    make: Maker, tmp_path: Path, number: signal.Signals
) -> None:
    it = make().start()
    target = tmp_path / "bundles" / "one"
    code = (
        "import sys, time\n"
        "from pylon.storage.sqlite.backup import create\n"
        "from pylon.cli.main import main\n"
        "create.bundle.check_integrity = lambda conn: time.sleep(60)\n"
        "main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "backup", str(target)], env=it.env, cwd=it.folder,
    )
    wait_until("it copies", lambda: list(tmp_path.glob("bundles/one.tmp-*/pylon.db")))
    process.send_signal(number)
    assert process.wait(WAIT_S) == 128 + number
    assert list((tmp_path / "bundles").iterdir()) == []
    assert it.end() == 0
