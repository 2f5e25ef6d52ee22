"""A real Pylon: `pylonctl start` in its own process tree, on free ports, in a folder of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import stores
from tests.support.ports import reserve_base_port
from tests.support.wait import WAIT_S, wait_until

ADMIN_TOKEN = "test-admin-token-0123456789abcdef0123456789abcdef"
ROLES = ("http", "ws", "sse", "shards")


class PylonServer:
    """One server. `start` waits for /readyz; the folder outlives any number of runs."""

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.manifest_path = folder / "pylon.manifest.json"
        self.manifest_path.write_text(json.dumps(manifest))
        self.db_path = folder / "data" / "app.db"
        self.port = reserve_base_port()
        self.host = "127.0.0.1"  # where the test reaches it
        self.command = [sys.executable, "-m", "pylon.cli.main", "start"]
        self.log_path = folder / "server.log"
        self.env = {
            "PYLON_DEV_MODE": "false",
            "PYLON_CORS_ORIGIN": "http://localhost:3000",
            "PYLON_ADMIN_TOKEN": ADMIN_TOKEN,
            "PYLON_MANIFEST": str(self.manifest_path),
            **stores.settings_at(self.db_path),
            "PYLON_BIND": "127.0.0.1",
            "PYLON_PORT": str(self.port),
            "PYLON_SOCKETS_PER_IP": "0",
            "PYLON_GUESTS_PER_IP_PER_MIN": "0",
            "PYLON_RATE_LIMIT_MAX": "0", "PYLON_RATE_LIMIT_MAX_AUTHED": "0",
            "PYLON_LOG_FORMAT": "json",
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    # --- running it ------------------------------------------------------------------

    def full_env(self) -> dict[str, str]:
        clean = {
            k: v for k, v in os.environ.items()
            if not k.startswith("PYLON_") and k != "DATABASE_URL"
        }
        if "DATABASE_URL" in self.env:  # where a start demands a key
            clean["PYLON_SECRET_KEY"] = stores.SECRET_KEY
        return {**clean, **self.env}

    def ctl(self, *args: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `pylonctl` with this server's settings."""
        return subprocess.run(
            [sys.executable, "-m", "pylon.cli.main", *args],
            env=self.full_env(), cwd=self.folder, text=True, capture_output=True,
            timeout=timeout_s, check=False,
        )

    def start(self, ready: bool = True) -> PylonServer:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.full_env(), cwd=self.folder, stdout=log, stderr=log,
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = WAIT_S) -> None:
        def ready() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"server ended with {self.process.returncode}:\n{self.log()}")
            try:
                return self.request("GET", "/readyz")[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        try:
            wait_until("server ready", ready, timeout_s)
        except AssertionError as ex:
            raise AssertionError(f"{ex}\n{self.log()}") from None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-6000:]

    def status(self) -> dict[str, Any]:
        done = self.ctl("status", "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        out: dict[str, Any] = json.loads(done.stdout)
        return out

    def pids(self, role: str) -> list[int]:
        """The pids of a role's processes (for http: of its gunicorn workers)."""
        pids: list[int] = self.status()["roles"][role]["pids"]
        return pids

    def terminate(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9 of the supervisor; its children follow it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_S)
        wait_until("ports are free again", self._ports_free)

    def _ports_free(self) -> bool:
        for offset in range(4):
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    s.bind(("127.0.0.1", self.port + offset))
                except OSError:
                    return False
        return True

    def close(self) -> None:
        """End whatever still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(WAIT_S)

    # --- talking to it ------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None,
        headers: Mapping[str, str] | None = None, timeout_s: float = WAIT_S,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """One request on a fresh connection: status, decoded JSON (or text), headers."""
        conn = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            send = dict(headers or {})
            data = None
            if body is not None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                send.setdefault("Content-Type", "application/json")
            if token is not None:
                send["Authorization"] = f"Bearer {token}"
            conn.request(method, path, data, send)
            answer = conn.getresponse()
            raw = answer.read()
            is_json = (answer.getheader("Content-Type") or "").startswith("application/json")
            value: Any = json.loads(raw) if raw and is_json else raw.decode(errors="replace")
            return answer.status, value, {k.lower(): v for k, v in answer.getheaders()}
        finally:
            conn.close()

    def guest(self) -> tuple[str, str]:
        """A new guest session: token and user id."""
        status, body, _ = self.request("POST", "/api/auth/guest")
        assert status == 201, body
        return body["token"], body["user_id"]

    def rows(self, entity: str, token: str = ADMIN_TOKEN) -> dict[str, dict[str, Any]]:
        """All rows of an entity that `token` may read, by id, paged by cursor."""
        out: dict[str, dict[str, Any]] = {}
        after = ""
        while True:
            status, body, _ = self.request(
                "GET", f"/api/entities/{entity}/cursor?limit=100&after={after}", token=token
            )
            assert status == 200, body
            out.update((row["id"], row) for row in body["data"])
            if not body["has_more"]:
                return out
            after = body["next_cursor"]
