"""The database's disk is full: no write is acknowledged that is not kept, and all goes on later.

The files of PostgreSQL are on a small disk in memory, which a ballast file fills. Needs root.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.nodes.fleet import Fleet
from tests.support import stores
from tests.support.postgres import PostgresServer, find_programs

pytestmark = [
    pytest.mark.usefixtures("processes", "postgres_server"), pytest.mark.slow,
    pytest.mark.timeout(400),
]

DISK = "160m"
FULL_S = 4.0


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk; a skip says why there is none. Its path is short, for the sake of sockets."""
    place = Path(tempfile.mkdtemp(prefix="pylon-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)],
        capture_output=True, text=True, check=False, timeout=10,
    )
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    place.chmod(0o777)  # PostgreSQL runs as another user
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=20)
    place.rmdir()


def fill(disk: Path) -> Path:
    """Fill the disk to its last page."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_promises_hold_over_a_full_disk(
    disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    version = stores.wanted_version(find_programs())
    assert version is not None
    server = PostgresServer(
        find_programs()[version], disk, "max_wal_size=48MB", "min_wal_size=32MB",
    )
    fleet = Fleet(
        tmp_path_factory.mktemp("full"), 2,
        lambda number: {"DATABASE_URL": server.url, "PYLON_NODE": f"node{number}"}, clients=4,
    )
    try:
        with fleet.running():
            ballast = fill(disk)
            before = fleet.load.acknowledged
            time.sleep(FULL_S)  # what the log's last segment holds is written, then nothing
            during = fleet.load.acknowledged - before
            ballast.unlink()
            if not server.is_running():
                server.start()
            ready_s = fleet.wait_ready()
            resumed_s = fleet.load.wait_for_progress()
            problems = fleet.check()
            print(f"{during} writes acknowledged within {FULL_S:g} s of a full disk; ready after"
                  f" {ready_s:.1f} s, writes after {resumed_s:.1f} s")
            assert problems == []
    finally:
        server.close()
