"""A PgBouncer in front of a PostgreSQL server of the tests, and a database of its own on it.

The database is one of its own, because a URL with the schema of a test has `options`, which
poolers refuse. PYLON_TEST_PGBOUNCER names the program, else that of PATH is used.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg

from tests.support.postgres import PostgresServer
from tests.support.wait import wait_until

PROGRAM: Final = os.environ.get("PYLON_TEST_PGBOUNCER", "pgbouncer")
_numbers = count(1)


@contextmanager
def pooled_database(server: PostgresServer) -> Iterator[tuple[str, str]]:
    """Make an empty database; yield its name and its URL without a pooler."""
    name = f"pooled_{os.getpid()}_{next(_numbers)}"
    server.run_sql(f"CREATE DATABASE {name}")
    try:
        yield name, server.url.replace("/postgres?", f"/{name}?")
    finally:
        server.run_sql(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def pooler(program: str, server: PostgresServer, name: str, mode: str) -> Iterator[str]:
    """Start a pooler in a mode (`session`, `transaction`); yield the URL of the database."""
    with tempfile.TemporaryDirectory(prefix="pylon-pool-") as place:
        folder = Path(place)
        config = folder / "pgbouncer.ini"
        config.write_text("\n".join((
            "[databases]", f"* = host={server.folder} user=pylon",
            "[pgbouncer]", "listen_addr =", "listen_port = 6432", f"unix_socket_dir = {folder}",
            "auth_type = any", f"pool_mode = {mode}", "default_pool_size = 60", "",
        )))
        user: dict[str, object] = {}
        if os.geteuid() == 0:  # PgBouncer refuses root, as PostgreSQL does
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        folder.chmod(0o755)
        log = (folder / "log").open("wb")
        with log, subprocess.Popen(
            ["setpriv", "--pdeathsig", "QUIT", program, str(config)], cwd="/",
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user,  # type: ignore[call-overload]
        ) as process:
            url = f"postgresql://pylon@/{name}?host={quote(str(folder), safe='')}&port=6432"

            def answers() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    psycopg.connect(url).close()
                except psycopg.OperationalError:
                    return False
                return True

            try:
                wait_until("the pooler answers", answers)
                yield url
            finally:
                process.terminate()
