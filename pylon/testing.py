"""Testing: a real server of an app for its own tests, as a fixture of pytest.

`pylon_server` starts `pylonctl start --dev` on free ports, with an empty database in a temporary
folder, and ends it behind the last test. The app's `.env` counts, except for the seed and the
ports. In `tests/conftest.py` stands ``from pylon.testing import pylon_server``.

Bound: a start that takes longer than 60 s fails with the server's log. Called by the tests of apps.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from pylon.clock import SystemRandom

_START_S: Final = 60.0
_POLL_S: Final = 0.05
_PORTS: Final = 4  # of a server, side by side
_ENDED_S: Final = 20.0
_FIRST_PORT: Final = 10_000
_LAST_PORT: Final = 32_000


class RequestRefused(AssertionError):
    """The server refused a request: `status` and `answer` say why."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(f"{status}: {json.dumps(answer)}")
        self.status = status
        self.answer = answer


class Caller:
    """Somebody who calls the server, with the token of a session."""

    def __init__(self, port: int, token: str | None, user_id: str | None) -> None:
        self._port = port
        self.token = token
        self.user_id = user_id

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request. Return the status, and the decoded JSON of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            headers = {"Content-Type": "application/json"}
            if self.token is not None:
                headers["Authorization"] = f"Bearer {self.token}"
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, headers)
            response = connection.getresponse()
            raw = response.read()
            return response.status, json.loads(raw) if raw else None
        finally:
            connection.close()

    def rows(self, entity: str) -> list[dict[str, Any]]:
        """Return the rows of an entity that the caller may read.

        Raises:
            RequestRefused: the server refuses the request.
        """
        answer = self._done("GET", f"/api/entities/{entity}")
        found: list[dict[str, Any]] = answer["data"] if isinstance(answer, dict) else answer
        return found

    def insert(self, entity: str, row: dict[str, Any]) -> str:
        """Insert a row. Return its id.

        Raises:
            RequestRefused: the server refuses the row.
        """
        made: str = self._done("POST", f"/api/entities/{entity}", row)["id"]
        return made

    def _done(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.request(method, path, body)
        if status >= 300:
            raise RequestRefused(status, answer)
        return answer


class PylonServer:
    """A running server of an app."""

    def __init__(self, app_folder: Path, folder: Path) -> None:
        """Prepare a server of the app in `app_folder`, with its data in `folder`."""
        self.port = _free_port()
        self._log = folder / "server.log"
        env_file = folder / "env"
        lines = _lines(app_folder / ".env")
        env_file.write_text("".join(f"{line}\n" for line in lines if not _is_own(line)))
        env_file.chmod(0o600)
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYLON_")},
            "PYLON_ENV_FILE": str(env_file), "PYLON_DEV_MODE": "true",
            "PYLON_ADMIN_TOKEN": os.urandom(32).hex(), "PYLON_BIND": "127.0.0.1",
            "PYLON_PORT": str(self.port), "PYLON_DB_PATH": str(folder / "data" / "app.db"),
            "PYLON_RUNTIME_DIR": str(folder / "run"), "PYLON_RATE_LIMIT_MAX": "0",
            "PYLON_RATE_LIMIT_MAX_AUTHED": "0", "PYLON_GUESTS_PER_IP_PER_MIN": "0",
        }
        self._app_folder = app_folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            RuntimeError: it is not ready in time; the text has its log.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pylon.cli.main", "start", "--dev"],
                cwd=self._app_folder, env=self._env, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )
        ends_s = time.monotonic() + _START_S
        while time.monotonic() < ends_s and self._process.poll() is None:
            try:
                if self.anonymous().request("GET", "/readyz")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(_POLL_S)
        self.stop()
        raise RuntimeError(f"the server is not ready:\n{self.log()}")

    def stop(self) -> None:
        """End it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_ENDED_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Return what the server has printed."""
        return self._log.read_text(errors="replace")

    def anonymous(self) -> Caller:
        """Return a caller without a session."""
        return Caller(self.port, None, None)

    def guest(self) -> Caller:
        """Return a caller with a new guest session."""
        status, answer = self.anonymous().request("POST", "/api/auth/guest")
        if status >= 300:
            raise RequestRefused(status, answer)
        return Caller(self.port, answer["token"], answer["user_id"])

    def admin(self) -> Caller:
        """Return a caller with the admin token."""
        return Caller(self.port, self._env["PYLON_ADMIN_TOKEN"], None)


@pytest.fixture(scope="session")
def pylon_server(request: pytest.FixtureRequest) -> Iterator[PylonServer]:
    """A running server of the app in the root folder of the tests."""
    with ExitStack() as stack:
        # Not pytest's folder: the path of a Unix socket has 107 bytes at most.
        folder = Path(tempfile.mkdtemp(prefix="pylon-test-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = PylonServer(request.config.rootpath, folder)
        stack.callback(server.stop)
        server.start()
        yield server


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _is_own(line: str) -> bool:
    name = line.partition("=")[0].strip()
    return name.endswith("_PORT") or name in (
        "PYLON_SEED", "PYLON_ADMIN_TOKEN", "PYLON_DB_PATH", "PYLON_BIND", "DATABASE_URL",
    )


def _free_port() -> int:
    """Return the first of some free ports side by side.

    They lie below those that the kernel gives to outgoing connections: one of these could take a
    port between this look and the start of the server.
    """
    while True:
        port = _FIRST_PORT + SystemRandom().below(_LAST_PORT - _FIRST_PORT)
        with ExitStack() as stack:
            try:
                for offset in range(_PORTS):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
