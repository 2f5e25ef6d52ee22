"""pylonctl doctor: each thing that it looks for is broken for real, found, and gets a remedy."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pylon.clock import SystemClock
from pylon.config import Config, load
from pylon.doctor import database, machine, node
from pylon.doctor.findings import Finding
from pylon.doctor.node import NodeState
from tests.support.ports import reserve_base_port
from tests.support.postgres import PostgresServer
from tests.support.server import PylonServer
from tests.support.wait import wait_until


def examine(server: PylonServer, *args: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit code of the doctor, and its findings by check."""
    done = server.ctl("doctor", "--json", *args)
    assert not done.stderr, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.stdout)["findings"]:
        found.setdefault(each["check"], []).append(each)
        assert each["level"] in ("ok", "note") or (each["why"] and each["remedy"]), each
    return done.returncode, found


def levels(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """The findings that are no good news: the last level of each check."""
    return {check: each["level"] for check, those in found.items() for each in those
            if each["level"] in ("warning", "error")}


def by_check(findings: Iterator[Finding]) -> dict[str, str]:
    return {each.check: each.level for each in findings}


def config_at(folder: Path, **env: str) -> Config:
    return load({"PYLON_DB_PATH": str(folder / "app.db"), **env}).config


@pytest.mark.sqlite
def test_sound_server_has_no_warning_and_the_backup_is_missed(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server().start()
    code, found = examine(server)
    assert (code, levels(found)) == (1, {"backup.age": "warning"})
    assert server.ctl("backup", str(server.folder / "bundle")).returncode == 0
    code, found = examine(server)
    assert (code, levels(found)) == (0, {})
    assert {"limits.files", "disk.space", "clock.wall", "ports.answer", "versions.python",
            "processes.roles", "database.wal", "files.owner"} <= set(found)
    text = server.ctl("doctor", "--all").stdout
    assert "ok      ports.answer: " in text and "0 errors, 0 warnings" in text
    record = Path(f"{server.db_path}.backup.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "at_s": 1_700_000_000}))
    assert levels(examine(server)[1]) == {"backup.age": "warning"}


@pytest.mark.sqlite
def test_dead_workers_are_told_and_a_killed_server_leaves_a_wal(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server().start()
    (old,) = server.pids("ws")
    os.kill(old, signal.SIGKILL)
    wait_until("a successor", lambda: server.pids("ws") not in ([], [old]))
    _, found = examine(server)
    assert levels(found)["processes.restarts"] == "warning"
    os.kill(server.pids("sse")[0], signal.SIGSTOP)
    wait_until("sse is not ready", lambda: not server.status()["roles"]["sse"]["ready"])
    code, found = examine(server)
    assert (code, levels(found)["processes.roles"]) == (2, "error")
    server.kill()
    _, found = examine(server)
    assert [each["level"] for each in found["database.wal"]] == ["note"]
    assert found["processes.roles"][0]["level"] == "note"
    assert found["ports.free"][0]["level"] == "ok"


@pytest.mark.sqlite
def test_low_limit_of_files_of_the_server_is_found(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server().start()
    assert server.process is not None
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (500, 500))
    (finding,) = examine(server)[1]["limits.files"]
    assert finding["level"] == "warning" and "500 files" in finding["what"]
    assert "LimitNOFILE" in finding["remedy"]


def test_taken_port_foreign_owner_and_open_key_are_found(
    make_server: Callable[..., PylonServer]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    server = make_server()
    data = server.db_path.parent
    data.mkdir(mode=0o700)
    (data / "secret.key").write_text("x")
    (data / "secret.key").chmod(0o644)
    (data / "app.db-wal").touch()
    os.chown(data / "app.db-wal", 12_345, 12_345)
    with closing(socket.create_server(("127.0.0.1", server.port))):
        code, found = examine(server)
    bad = levels(found)
    assert code == 2
    assert (bad["ports.free"], bad["files.owner"], bad["files.key"]) == ("error",) * 3
    assert "12345" in found["files.owner"][0]["what"]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with these options."""
    made: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(
            command, check=False, capture_output=True
        ).returncode:
            pytest.skip("cannot mount a file system here")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disks_in_memory_full_read_only_or_without_inodes(
    mount: Callable[[str], Path]
) -> None:
    floor = {"PYLON_DISK_FLOOR_BYTES": "1000000"}
    roomy = mount("size=16m")
    found = by_check(machine.check_disk(config_at(roomy, **floor), 0))
    assert found == {"disk.type": "warning", "disk.space": "ok", "disk.inodes": "ok"}
    found = by_check(machine.check_disk(config_at(roomy, **floor), 9_000_000))
    assert found["disk.space"] == "warning"
    full = by_check(machine.check_disk(config_at(mount("size=512k"), **floor), 0))
    assert full["disk.space"] == "error"
    assert by_check(machine.check_disk(config_at(mount("size=16m,ro"), **floor), 0))[
        "disk.mode"] == "error"
    few = mount("size=16m,nr_inodes=8")
    assert by_check(machine.check_disk(config_at(few, **floor), 0))["disk.inodes"] == "warning"
    for n in range(7):
        (few / str(n)).touch()
    assert by_check(machine.check_disk(config_at(few, **floor), 0))["disk.inodes"] == "error"


def test_file_system_is_that_of_the_innermost_mount() -> None:
    table = "\n".join((
        "1 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw",
        "2 1 0:9 / /srv rw - nfs4 server:/export rw,vers=4.2",
        "3 2 8:2 / /srv/my\\040data rw - xfs /dev/sdb1 ro",
        "4 1 0:5 / /over rw - ext4 /dev/x rw",
        "5 1 0:6 / /over rw - fuse.sshfs user@host: rw",
    ))
    kinds = {
        path: machine.mount_of(Path(path), table)[0]
        for path in ("/etc", "/srv", "/srv/app", "/srv/my data/app", "/srvx", "/over/app")
    }
    assert kinds == {"/etc": "ext4", "/srv": "nfs4", "/srv/app": "nfs4",
                     "/srv/my data/app": "xfs", "/srvx": "ext4", "/over/app": "fuse.sshfs"}
    assert "ro" in machine.mount_of(Path("/srv/my data"), table)[1]


def test_files_from_the_future_mean_a_wrong_clock(tmp_path: Path) -> None:
    (tmp_path / "app.db").touch()
    config = config_at(tmp_path)
    assert by_check(machine.check_clock(config, SystemClock()))["clock.wall"] == "ok"
    later = SystemClock().wall_ns() + 3_600 * 10**9
    os.utime(tmp_path / "app.db", ns=(later, later))
    assert by_check(machine.check_clock(config, SystemClock()))["clock.wall"] == "error"


def test_clock_that_runs_away_is_found(tmp_path: Path) -> None:
    class RunningAway(SystemClock):
        """Its wall clock runs at double speed."""

        begun = SystemClock.wall_ns()

        @staticmethod
        def wall_ns() -> int:  # type: ignore[override]
            return 2 * SystemClock.wall_ns() - RunningAway.begun

    found = by_check(machine.check_clock(config_at(tmp_path), RunningAway()))
    assert found["clock.steady"] == "warning"


def test_silent_port_old_server_and_held_wal_are_found(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    state = NodeState(
        os.getpid(), {"http": reserve_base_port()},
        {"version": "0.0.1", "wal_bytes": 1 << 30, "roles": {}, "restarts": 0},
        {"pylon_wal_held_seconds": 600.0, "pylon_quarantined_fingerprints": 1.0},
    )
    assert by_check(node.check_ports(config, state, []))["ports.answer"] == "error"
    assert by_check(node.check_versions(state, "3"))["versions.server"] == "warning"
    assert by_check(node.check_wal(config, state))["database.wal"] == "warning"
    assert by_check(node.check_processes(state))["processes.quarantine"] == "error"


def test_continuous_backup_that_falls_behind_is_found(tmp_path: Path) -> None:
    config = config_at(tmp_path, PYLON_BACKUP_URL=(tmp_path / "archive").as_uri())

    def check(lag_s: float) -> dict[str, str]:
        values = {"pylon_backup_lag_seconds": lag_s}
        return by_check(node.check_backup(config, NodeState(1, {}, {}, values), 0.0))

    assert [check(lag_s)["backup.lag"] for lag_s in (3.0, 3_000.0)] == ["ok", "error"]
    assert by_check(node.check_backup(config, None, 0.0)) == {"backup.lag": "note"}


@pytest.mark.parametrize("archived", [False, True])
def test_files_that_no_backup_has_are_found(tmp_path: Path, archived: bool) -> None:
    settings = {"PYLON_BACKUP_URL": (tmp_path / "archive").as_uri()} if archived else {}
    config = config_at(tmp_path, **settings)
    assert "backup.files" not in by_check(node.check_backup(config, None, 0.0))
    folder = config.files_folder / "ab"
    folder.mkdir(parents=True)
    (folder / ("0" * 38 + "ab")).write_bytes(b"1")
    assert by_check(node.check_backup(config, None, 0.0))["backup.files"] == "warning"


def test_what_keeps_postgres_from_freeing_space_is_found(
    tmp_path: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_at(tmp_path, DATABASE_URL=postgres_server.url)

    def check() -> dict[str, Finding]:
        return {each.check: each for each in database.check_database(config)}

    assert not {"postgres.transactions", "postgres.slots"} & check().keys()
    monkeypatch.setattr(database, "_OLD_TRANSACTION_S", 0.0)
    postgres_server.run_sql("SELECT pg_create_physical_replication_slot('left_over', true)")
    try:
        with psycopg.connect(postgres_server.url, application_name="forgotten") as conn:
            conn.execute("SELECT 1")
            found = check()
    finally:
        postgres_server.run_sql("SELECT pg_drop_replication_slot('left_over')")
    assert found["postgres.transactions"].level == found["postgres.slots"].level == "warning"
    assert "forgotten" in found["postgres.transactions"].what
    assert "left_over" in found["postgres.slots"].what


def test_postgres_is_examined_and_its_faults_are_found(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    def check(**env: str) -> dict[str, str]:
        config = config_at(tmp_path, **{"DATABASE_URL": postgres_server.url, **env})
        return by_check(database.check_database(config))

    found = check()
    assert found["postgres.answer"] in ("ok", "warning")  # slow on a busy machine
    assert (found["postgres.version"], found["postgres.clock"]) == ("ok", "ok")
    assert "postgres.default_transaction_read_only" not in found
    assert check(PYLON_HTTP_WORKERS="64")["postgres.connections"] == "warning"
    separator = "&" if "?" in postgres_server.url else "?"
    read_only = postgres_server.url + separator + (
        "options=-c%20default_transaction_read_only%3Don")
    assert check(DATABASE_URL=read_only)["postgres.default_transaction_read_only"] == "error"
    nobody = f"postgres://u:secret@127.0.0.1:{reserve_base_port()}/x"
    config = config_at(tmp_path, DATABASE_URL=nobody)
    (finding,) = database.check_database(config)
    assert (finding.check, finding.level) == ("postgres.answer", "error")
    assert "secret" not in f"{finding}"
