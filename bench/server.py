"""A server for the load tools: `pylonctl start` on free loopback ports, in a temporary folder."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ADMIN = "bench-admin-token-0123456789abcdef0123456789"
SECRET_KEY = bytes(range(32)).hex()
START_S = 60.0
_PAGE_ROWS = 1_000  # PYLON_LIST_LIMIT
MANIFEST = {
    "manifest_version": 1, "name": "bench", "version": "1", "routes": [],
    "entities": [{
        "name": "Item", "crdt": False,
        "fields": [
            {"name": "sku", "type": "string", "optional": False, "unique": True},
            {"name": "title", "type": "string", "optional": False, "unique": False},
            {"name": "shelf", "type": "string", "optional": False, "unique": False},
            {"name": "count", "type": "int", "optional": False, "unique": False},
        ],
        "indexes": [{"name": "by_shelf", "fields": ["shelf"], "unique": False}],
    }],
    "policies": [{"name": "open", "entity": "Item", "allow": "true"}],
}


class Server:
    """A running server."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, env: dict[str, str], cli: list[str],
    ) -> None:
        """Args: `cli` is the command line of its `pylonctl`."""
        self.process = process
        self.port = port
        self.db_path = Path(env["PYLON_DB_PATH"])
        self.manifest_path = Path(env["PYLON_MANIFEST"])
        self._env = env
        self._cli = cli

    def request(self, method: str, path: str, body: Any = None, token: str = ADMIN) -> Any:
        """One request; the decoded answer. Raises for a status of 400 and more."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            conn.request(
                method, path, None if body is None else json.dumps(body).encode(),
                {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            )
            answer = conn.getresponse()
            raw = answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {raw[:300]!r}")
            return json.loads(raw)
        finally:
            conn.close()

    def status(self) -> dict[str, Any]:
        """`pylonctl status --json`."""
        done = subprocess.run(
            [*self._cli, "status", "--json"], env=self._env, capture_output=True,
            text=True, check=True,
        )
        out: dict[str, Any] = json.loads(done.stdout)
        return out

    def ctl(self, *args: str, timeout_s: float = 200.0) -> subprocess.CompletedProcess[str]:
        """Run `pylonctl` with the settings of the server."""
        return subprocess.run(
            [*self._cli, *args], env=self._env, capture_output=True, text=True, check=False,
            timeout=timeout_s,
        )

    def processes(self) -> dict[str, int]:
        """Name to pid, of the supervisor, the arbiter of the HTTP workers and every worker."""
        found = {"supervisor": self.process.pid}
        for role, state in self.status()["roles"].items():
            for number, pid in enumerate(state["pids"], start=1):
                found[f"{role}/{number}"] = pid
        if "http/1" in found:
            found["http arbiter"] = _parent_of(found["http/1"])
        return found

    def usage(self, processes: dict[str, int]) -> dict[str, tuple[float, float]]:
        """RSS in MiB and CPU seconds of each process."""
        return {name: (_rss_mib(pid), _cpu_s(pid)) for name, pid in processes.items()}


def item(number: int) -> dict[str, Any]:
    """Row `number`: 10 of 1,000 share a shelf; 111 titles of 1,000 contain `-1`, about."""
    return {
        "sku": f"sku-{number:08d}", "title": f"item-{number}", "shelf": f"shelf-{number % 100}",
        "count": number,
    }


def upgrade_request(*lines: str) -> bytes:
    """The request that opens a WebSocket, with further header lines."""
    key = base64.b64encode(os.urandom(16)).decode()
    return "\r\n".join((
        "GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", *lines, "", "",
    )).encode()


def fill(server: Server, count: int) -> list[str]:
    """Insert rows 0 to `count` by push; their ids."""
    for start in range(0, count, 500):
        changes = [
            {"entity": "Item", "row_id": "x", "kind": "insert", "data": item(number)}
            for number in range(start, min(count, start + 500))
        ]
        answer = server.request("POST", "/api/sync/push", {"changes": changes})
        if answer["errors"]:
            raise RuntimeError(str(answer["errors"][:3]))
    ids: list[str] = []
    while len(ids) < count:
        page = {"$limit": _PAGE_ROWS, "$offset": len(ids), "$order": {"count": "asc"}}
        ids += [row["id"] for row in server.request("POST", "/api/query/Item", page)]
    return ids


@contextmanager
def served(
    manifest: Mapping[str, Any] = MANIFEST, checkout: Path | None = None, poll_s: float = 0.1,
    log_path: Path | None = None, prefix: Sequence[str] = (), **settings: str,
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and drain it at the end.

    Args:
        checkout: of the code to serve, with a ``.venv``; None: this one.
        poll_s: between two questions whether it is ready.
        log_path: a file for the log; None: the log goes where that of this process goes.
        prefix: a command that executes the server's, such as ``taskset -c 0``.
    """
    python = sys.executable if checkout is None else str(checkout / ".venv/bin/python")
    cli = [python, "-P", "-m", "pylon.cli.main"]  # -P: not the package of the current folder
    with tempfile.TemporaryDirectory(prefix="pylon-load-") as name:
        folder = Path(name)
        (folder / "pylon.manifest.json").write_text(json.dumps(manifest))
        port = free_port()
        # An installed Pylon has its bytecode in files. A server that compiles its modules at each
        # start needs 3 MiB more.
        unwanted = ("PYLON_", "PYTHONDONTWRITEBYTECODE")
        env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)} | {
            "PYLON_MANIFEST": str(folder / "pylon.manifest.json"),
            "PYLON_DB_PATH": str(folder / "data" / "bench.db"),
            "PYLON_CORS_ORIGIN": "http://localhost:3000", "PYLON_ADMIN_TOKEN": ADMIN,
            "PYLON_BIND": "127.0.0.1", "PYLON_PORT": str(port), "PYLON_SOCKETS_PER_IP": "0",
            "PYLON_LOG_LEVEL": "warning", **settings,
        }
        if checkout is None or (checkout / "pylon/app_rates.py").exists():  # else it refuses them
            env |= {"PYLON_RATE_LIMIT_MAX": "0", "PYLON_RATE_LIMIT_MAX_AUTHED": "0", **settings}
        if "DATABASE_URL" in env:
            env.setdefault("PYLON_SECRET_KEY", SECRET_KEY)
        log_file = None if log_path is None else log_path.open("wb")
        process = subprocess.Popen(
            [*prefix, *cli, "start"], env=env, cwd=checkout, stdout=log_file, stderr=log_file
        )
        server = Server(process, port, env, cli)
        try:
            _wait_ready(server, poll_s)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if log_file is not None:
                log_file.close()


def _wait_ready(server: Server, poll_s: float) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            server.request("GET", "/readyz")
        except (OSError, RuntimeError, http.client.HTTPException) as ex:
            if server.process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"the server is not ready: {ex}") from ex
            time.sleep(poll_s)
        else:
            return


def free_port() -> int:
    """P such that P to P+3 are free at the moment."""
    for base in range(10_000 + os.getpid() % 1000 * 4, 32_000, 4):
        sockets = []
        try:
            for offset in range(4):
                sockets.append(socket.create_server(("127.0.0.1", base + offset)))
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
        return base
    raise SystemExit("no four free ports in a row")


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def _parent_of(pid: int) -> int:
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
