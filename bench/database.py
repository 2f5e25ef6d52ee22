"""The PostgreSQL of a load tool: that of its `--url`, or a server of its own on this machine.

A server of its own has its files in the folder for temporary files, so on a disk where that is one,
and syncs them: its commits cost what they cost there. It ends with the tool. `slow_sync_ms` makes
each sync of its log slower by so much, as on a cloud volume (`slow_sync.c`, compiled by `cc`).
Called by the tools that measure PostgreSQL.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.postgres import PostgresServer, drop_schema, find_programs, make_schema

SHIM: Final = Path(__file__).parent / "slow_sync.c"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_US_PER_MS: Final = 1_000


def add_url(parser: ArgumentParser) -> None:
    """Add the argument `--url`."""
    parser.add_argument("--url", help="of a database on this machine; without it: its own server")


@contextmanager
def database(
    url: str | None, *options: str, slow_sync_ms: float = 0, version: int | None = None,
) -> Iterator[str]:
    """Yield the URL of an empty schema: in the database of `url`, or of a server of its own. The
    schema is dropped at the end.

    Args:
        options: settings of its own server, as `name=value`.
        version: of its own server; None: the oldest here.
    """
    if url is not None:
        made = make_schema(url)
        try:
            yield made
        finally:
            drop_schema(url, made)
        return
    found = find_programs()
    if not found:
        raise SystemExit("PostgreSQL is not installed (make test-tools); --url names a server")
    with tempfile.TemporaryDirectory(prefix="pylon-bench-") as name:
        if slow_sync_ms:
            os.environ |= _slowed(Path(name), slow_sync_ms)
        try:
            server = PostgresServer(
                found[version or min(found)], Path(tempfile.gettempdir()), "max_wal_size=2GB",
                "shared_buffers=256MB", *options,
            )
        finally:
            for variable in ("LD_PRELOAD", "FSYNC_US"):
                os.environ.pop(variable, None)
        try:
            yield make_schema(server.url)
        finally:
            server.close()


def _slowed(folder: Path, slow_sync_ms: float) -> dict[str, str]:
    """Compile the shim; return the environment of a server whose syncs it slows."""
    folder.chmod(0o755)  # the server runs as nobody
    library = folder / "slow_sync.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "FSYNC_US": str(round(slow_sync_ms * _US_PER_MS))}


def server_pid(url: str) -> int:
    """Return the pid of the first process of a server on this machine."""
    with psycopg.connect(url) as conn:
        return int(_stat(conn.info.backend_pid)[1])


def server_cpu_s(pid: int) -> float:
    """Return the CPU time of all processes of a server, also of those that have ended."""
    ended = sum(int(field) for field in _stat(pid)[13:15])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return ended / _TICKS + sum(process_cpu_s(int(each)) for each in (pid, *children))


def process_cpu_s(pid: int) -> float:
    """Return the CPU time of one process; 0 for one that has ended."""
    try:
        ns = Path(f"/proc/{pid}/schedstat").read_text().split()[0]
    except OSError:
        return 0.0
    return int(ns) / 1e9


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
