"""pylon.private_folders: a start removes the folders of killed runs, and nothing else."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylon.private_folders import (
    LOCK,
    collect_dead_folders,
    make_private_folder,
    remove_private_folder,
)
from tests.support.server import PylonServer

FILES = ("a", "b-*")


def killed_folder(parent: Path) -> Path:
    """The folder of a process that was killed."""
    text = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from pylon.private_folders import make_private_folder\n"
        "path = make_private_folder('pylon-', Path(sys.argv[1]))\n"
        "(path / 'a').touch(); (path / 'b-1').touch()\n"
        "print(path, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, str(parent)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    return Path(done.stdout.strip())


@pytest.mark.usefixtures("processes")
def test_folders_of_killed_processes_go_and_those_in_use_stay(tmp_path: Path) -> None:
    live, dead = make_private_folder("pylon-", tmp_path), killed_folder(tmp_path)
    assert live.stat().st_mode & 0o777 == 0o700
    assert collect_dead_folders("pylon-", FILES, tmp_path) == [dead]
    assert list(tmp_path.iterdir()) == [live]
    remove_private_folder(live, FILES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("processes")
def test_what_is_not_surely_ours_stays(tmp_path: Path) -> None:
    other_name, no_lock = tmp_path / "pylon-life-abcdefgh", tmp_path / "pylon-abcdefgh"
    for folder in (other_name, no_lock):
        folder.mkdir()
    (other_name / LOCK).touch()
    (tmp_path / "pylon-12345678").touch()
    aim = tmp_path / "aim"
    aim.mkdir()
    (aim / LOCK).touch()
    (tmp_path / "pylon-linklink").symlink_to(aim)
    with_more = killed_folder(tmp_path)
    (with_more / "somebody's").touch()
    assert collect_dead_folders("pylon-", FILES, tmp_path) == []
    assert (aim / LOCK).exists()
    assert (with_more / "somebody's").exists()
    assert other_name.exists()
    assert no_lock.exists()


def test_folder_that_is_being_made_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    removed: list[Path] = []

    def collect_and_lock(fd: int, operation: int) -> None:
        monkeypatch.setattr("fcntl.flock", lock)
        removed.extend(collect_dead_folders("pylon-", FILES, tmp_path))
        lock(fd, operation)

    monkeypatch.setattr("fcntl.flock", collect_and_lock)
    path = make_private_folder("pylon-", tmp_path)
    assert removed == []
    assert [found.name for found in path.iterdir()] == [LOCK]
    remove_private_folder(path, FILES)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for those of sockets; those of pytest-xdist do not."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        yield Path(name)


def test_the_runtime_folder_of_a_killed_server_goes_at_the_next_start(
    make_server: Callable[..., PylonServer], short_folder: Path
) -> None:
    temporary = short_folder
    server = make_server()
    server.env["TMPDIR"] = str(temporary)
    server.start()
    [first] = temporary.glob("pylon-*")
    server.kill()
    assert first.exists()
    server.start()
    [second] = temporary.glob("pylon-*")
    assert second != first
    assert server.terminate() == 0
    assert list(temporary.iterdir()) == []
