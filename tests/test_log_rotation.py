"""The log of `start --detach` is rotated: processes go on in the new file, no line is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pylon import limits, log
from pylon.data_dir_lock import log_file_of
from supervisor.log_rotation import LogRotation
from tests.support.server import PylonServer
from tests.support.wait import wait_until


@pytest.fixture
def log_fd(tmp_path: Path) -> Iterator[int]:
    """A log as `start --detach` opens it, which the log of this process writes to."""
    path = log_file_of(tmp_path / "app.db")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    log.configure("json", "info", "", "", fd=fd)
    yield fd
    log.configure("json", "info", "", "")
    os.close(fd)


def lines_of(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines() if '"n":' in line]


def test_every_line_is_in_one_file_and_the_oldest_file_goes(tmp_path: Path, log_fd: int) -> None:
    path = log_file_of(tmp_path / "app.db")
    rotation = LogRotation(str(tmp_path / "app.db"), 10_000, log_fd)
    lines = log.get_logger("t")
    for n in range(2_000):
        lines.info("line", n=n, filler="x" * 100)
        rotation.look()
    files = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, 6))]
    assert limits.LOG_FILES_KEPT == 5 and sorted(tmp_path.iterdir()) == sorted(files)
    kept = [n for file in reversed(files) for n in lines_of(file)]
    assert kept == list(range(kept[0], 2_000)) and len(kept) > 300
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert all(9_000 < file.stat().st_size < 11_000 for file in files[1:])


def test_a_log_of_somebody_else_is_left_alone(tmp_path: Path, log_fd: int) -> None:
    log.get_logger("t").info("line", filler="x" * 1_000)
    LogRotation(str(tmp_path / "other.db"), 100, log_fd).look()
    LogRotation(str(tmp_path / "app.db"), 0, log_fd).look()
    assert [path.name for path in tmp_path.iterdir()] == ["app.db.log"]


def test_a_process_follows_a_renamed_file_but_no_symlink(tmp_path: Path, log_fd: int) -> None:
    path = log_file_of(tmp_path / "app.db")
    lines = log.get_logger("t")
    path.rename(tmp_path / "moved")
    lines.info("line", n=1)  # there is no new file yet
    path.symlink_to(tmp_path / "other")
    (tmp_path / "other").touch()
    lines.info("line", n=2)
    path.unlink()
    path.touch()
    lines.info("line", n=3)
    assert (lines_of(tmp_path / "moved"), lines_of(tmp_path / "other"), lines_of(path)) == (
        [1, 2], [], [3])


@pytest.mark.usefixtures("processes")
def test_detached_server_rotates_and_its_workers_follow(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server(PYLON_LOG_MAX_BYTES="4000", PYLON_LOG_LEVEL="debug")
    done = server.ctl("start", "--detach", "--json")
    assert done.returncode == 0, done.stderr
    path = log_file_of(server.db_path)
    pid = server.status()["pid"]
    try:
        wait_until(
            "it is rotated",
            lambda: server.request("GET", "/api/entities/Tick")[0] != 0
            and path.with_name(f"{path.name}.1").exists(),
        )

        def worker_writes_to_new_file() -> bool:
            server.request("GET", "/api/entities/Tick")
            with suppress(FileNotFoundError):
                return any(
                    json.loads(line).get("role") == "http" for line in path.read_text().splitlines()
                )
            return False

        wait_until("an HTTP worker writes to the new file", worker_writes_to_new_file)
        rotated = [p for p in path.parent.iterdir() if p.name.startswith(path.name + ".")]
        events = [json.loads(line)["event"] for p in (path, *rotated)
                  for line in p.read_text().splitlines()]
        assert "log.rotated" in events
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until("it ends", lambda: server.ctl("status").returncode != 0)
