"""Starts and stops that meet a disk that is full or read-only: a sentence, and the exit code."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon.clock import ManualClock
from pylon.data_dir_lock import DataDirLock
from pylon.disk_errors import describe_os_error, start_error
from pylon.errors import StartDelayed, StartRefused
from supervisor.closers import Closers
from tests.support.manifests import notes_app
from tests.support.server import PylonServer
from tests.support.storage import open_engine

TRY_AGAIN = 75


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        with pytest.raises(OSError, match="No space"), (folder / "filler").open("wb") as file:
            while True:
                file.write(b"x" * 4_096)
                file.flush()
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.usefixtures("processes")
def test_a_start_on_a_full_disk_is_one_sentence_and_may_be_tried_again(
    tmp_path: Path, full_disk: Path
) -> None:
    places = {
        "database": {"PYLON_DB_PATH": str(full_disk / "app.db")},
        "runtime": {"PYLON_RUNTIME_DIR": str(full_disk / "run")},
    }
    for name, env in places.items():
        server = PylonServer(tmp_path / name, notes_app(), env)
        done = server.ctl("start")
        lines = [line for line in done.stderr.splitlines() if line.startswith("pylonctl:")]
        assert done.returncode == TRY_AGAIN, done.stderr
        assert len(lines) == 1 and str(full_disk) in lines[0], done.stderr
        assert "Errno" not in done.stderr and "Traceback" not in done.stderr


def test_an_engine_on_a_full_disk_delays_the_start(full_disk: Path) -> None:
    with pytest.raises(StartDelayed, match="make room on its disk"):
        open_engine(full_disk / "b.db")


def test_an_error_of_the_system_names_path_and_remedy() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert describe_os_error(full, "/data") == (
        "/data: No space left on device (free space on its disk)")
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS), "/run/x")
    assert describe_os_error(read_only, "/data") == (
        "/run/x: Read-only file system (mount its file system read-write)")
    assert isinstance(start_error(full), StartDelayed)
    refused = start_error(OSError(errno.EACCES, "Permission denied"), "/data")
    assert isinstance(refused, StartRefused) and not isinstance(refused, StartDelayed)


def test_a_pidfile_on_a_full_disk_delays_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pidfile = DataDirLock.acquire(tmp_path / "a.pid")

    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(StartDelayed, match="No space left"):
        pidfile.write(pid=1)
    monkeypatch.undo()
    pidfile.release()


def test_what_cannot_be_closed_is_logged_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pidfile = DataDirLock.acquire(tmp_path / "a.pid")
    engine = open_engine(tmp_path / "a.db", ManualClock())

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with Closers() as closers:
        closers.callback(engine.close)
        closers.callback(pidfile.release)
        monkeypatch.setattr(os, "ftruncate", read_only)
    assert closers.has_failed
    logged = capfd.readouterr().err
    assert "stop.incomplete" in logged and "a.pid: Read-only file system" in logged
    assert "Errno" not in logged
    monkeypatch.undo()
    DataDirLock.acquire(tmp_path / "a.pid").release()  # the lock is gone all the same
