"""A disk that runs full: writes are refused before SQLite fails, reads go on, all comes back."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylon import limits, metrics
from pylon.clock import ManualClock
from pylon.errors import DiskFull
from supervisor.disk_guard import DiskGuard
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

DISK_BYTES = 96 * 1024 * 1024
FLOOR_BYTES = 32 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_free(disk: Path, free_bytes: int) -> None:
    """Fill the disk, or empty it, until about so much is free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    found = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - free_bytes)


def test_state_changes_at_the_floor_and_back_above_it(disk: Path) -> None:
    clock = ManualClock()
    guard = DiskGuard(disk, FLOOR_BYTES, clock)
    assert guard.find_refusal() is None and guard.find_problem() is None
    recovered_bytes = int(FLOOR_BYTES * limits.DISK_RECOVERY_FACTOR)
    page = 64 * 1024
    steps = (
        (FLOOR_BYTES + page, False), (FLOOR_BYTES - page, True), (FLOOR_BYTES + page, True),
        (recovered_bytes - page, True), (recovered_bytes + page, False),
        (FLOOR_BYTES + page, False),
    )
    for free_bytes, is_low in steps:
        leave_free(disk, free_bytes)
        clock.advance(2 * limits.DISK_LOOK_S)
        refusal = guard.find_refusal()
        assert isinstance(refusal, DiskFull) is is_low, free_bytes
        assert (guard.find_problem() is not None) is is_low
        assert metrics.DISK_LOW._value.get() == is_low
    leave_free(disk, 0)
    assert guard.find_refusal() is None, "it looks again only after a while"
    clock.advance(2 * limits.DISK_LOOK_S)
    error = guard.find_refusal()
    assert error is not None and str(disk) not in error.message + (error.hint or "")
    assert (error.details["free_bytes"], error.details["floor_bytes"]) == (0, FLOOR_BYTES)
    leave_free(disk, DISK_BYTES // 2)
    clock.advance(2 * limits.DISK_LOOK_S)
    assert guard.find_refusal() is None


def test_a_floor_of_zero_refuses_nothing(disk: Path) -> None:
    guard = DiskGuard(disk, 0, ManualClock())
    leave_free(disk, 0)
    assert guard.find_refusal() is None and guard.find_problem() is None


@pytest.mark.sqlite
def test_server_refuses_writes_reads_on_and_recovers(
    disk: Path, make_server: Callable[..., PylonServer]
) -> None:
    server = make_server(
        PYLON_DB_PATH=str(disk / "data" / "app.db"), PYLON_DISK_FLOOR_BYTES=str(FLOOR_BYTES),
    ).start()

    def insert(n: int) -> tuple[int, dict[str, object]]:
        status, body, headers = server.request(
            "POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=ADMIN_TOKEN)
        assert (status == 503) == ("retry-after" in headers)
        return status, body

    assert insert(1)[0] == 201
    leave_free(disk, FLOOR_BYTES // 2)
    wait_until("a write is refused", lambda: insert(2)[0] == 503)
    status, body = insert(3)
    error = body["error"]
    assert isinstance(error, dict)
    assert (status, error["code"], error["floor_bytes"]) == (503, "DISK_FULL", FLOOR_BYTES)
    wait_until("readyz says it", lambda: server.request("GET", "/readyz")[0] == 503)
    checks = server.request("GET", "/readyz")[1]["checks"]
    assert "PYLON_DISK_FLOOR_BYTES" in checks["writes"]["problem"]
    assert str(disk) not in json.dumps(checks), "it is shown to everybody"
    assert len(server.rows("Tick")) >= 1, "reads go on"
    page = server.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"})[1]
    assert "\npylon_disk_low 1.0" in page
    assert 'pylon_writes_refused_total{reason="disk_full"}' in page
    (disk / "ballast").unlink()
    wait_until("writes are accepted again", lambda: insert(4)[0] == 201)
    wait_until("ready again", lambda: server.request("GET", "/readyz")[0] == 200)
    events = [json.loads(line) for line in server.log_path.read_text().splitlines()
              if line.startswith("{")]
    low = [e for e in events if e["event"] == "disk.low"]
    assert [(e["path"], e["floor_bytes"]) for e in low] == [(str(disk / "data"), FLOOR_BYTES)]
    assert len([e for e in events if e["event"] == "disk.recovered"]) == 1
    assert server.terminate() == 0
