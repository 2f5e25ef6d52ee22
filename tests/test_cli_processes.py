"""`pylonctl` and a server that runs: detach, status, stop, dev with reload."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.manifests import notes_app
from tests.support.server import PylonServer
from tests.support.wait import WAIT_S, wait_until


def test_detach_status_stop(make_server: Callable[..., PylonServer]) -> None:
    server = make_server()
    done = server.ctl("start", "--detach", "--json")
    assert done.returncode == 0, done.stderr
    try:
        started = json.loads(done.stdout)
        assert (started["code"], started["port"]) == ("START_OK", server.port)
        assert server.request("GET", "/readyz")[0] == 200
        status = server.status()
        assert status["running"] and status["ready"]
        assert status["ports"]["sse"] == server.port + 2
        assert "running: pid" in server.ctl("status").stdout
        again = server.ctl("start")
        assert again.returncode == 78
        assert f"pid {status['pid']}" in again.stderr
        assert server.ctl("check-config").returncode == 0, "its own ports are not in its way"
        assert server.ctl("restore", "x", "--yes").returncode == 1
    finally:
        stopped = server.ctl("stop")
    assert stopped.returncode == 0, stopped.stderr
    lines = stopped.stdout.splitlines()
    assert lines[0].startswith("  announced") and lines[-1].startswith("stopped (pid ")
    assert server.ctl("status").returncode == 69
    assert not server.db_path.with_name("app.db-wal").exists()


def test_detached_start_that_is_refused_says_why(make_server: Callable[..., PylonServer]) -> None:
    server = make_server()
    server.env["PYLON_BIND"] = "203.0.113.1"
    done = server.ctl("start", "--detach")
    assert done.returncode == 78
    assert "203.0.113.1" in done.stderr


def test_stop_with_a_dead_control_socket_uses_the_pid(server: PylonServer) -> None:
    runtime_dir = Path(server.status()["runtime_dir"])
    (runtime_dir / "control.sock").unlink()
    done = server.ctl("stop")
    assert done.returncode == 0, done.stderr
    assert "sending SIGTERM" in done.stderr
    assert server.process is not None and server.process.wait(WAIT_S) == 0


class Dev:
    """`pylonctl dev` in an app's folder."""

    def __init__(self, server: PylonServer) -> None:
        self.server = server
        self.manifest = server.manifest_path
        for name in ("DEV_MODE", "ADMIN_TOKEN", "CORS_ORIGIN", "LOG_FORMAT"):
            del server.env[f"PYLON_{name}"]
        (server.folder / ".env").write_text(f"PYLON_ADMIN_TOKEN={'d' * 40}\n")
        self.log = server.folder / "dev.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pylon.cli.main", "dev"],
                env=server.full_env(), cwd=server.folder, stdout=log, stderr=log,
            )

    def text(self) -> str:
        return self.log.read_text()

    def supervisor_pid(self) -> int:
        done = self.server.ctl("status", "--dev", "--json")
        body = json.loads(done.stdout) if done.returncode == 0 else {}
        return int(body["pid"]) if body.get("ready") else 0


@pytest.fixture
def dev(make_server: Callable[..., PylonServer]) -> Iterator[Dev]:
    dev = Dev(make_server())
    yield dev
    if dev.process.poll() is None:
        dev.process.terminate()
        dev.process.wait(WAIT_S)


def test_dev_reloads_keeps_and_ends(dev: Dev) -> None:
    wait_until("dev is ready", lambda: "is ready" in dev.text())
    first = dev.supervisor_pid()
    assert first
    assert "curl http://localhost:" in dev.text()

    manifest = notes_app()
    good = json.dumps(manifest)
    manifest["policies"][0]["allow"] = "data.nope"
    dev.manifest.write_text(json.dumps(manifest))
    wait_until("the bad manifest is reported", lambda: "not restarted" in dev.text())
    assert "POLICY_EXPRESSION_INVALID" in dev.text()
    assert dev.supervisor_pid() == first

    dev.manifest.write_text(good + "\n")
    wait_until("another supervisor", lambda: dev.supervisor_pid() not in (0, first))

    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(WAIT_S) == 0
    assert dev.server.ctl("status", "--dev").returncode == 69


def test_the_server_does_not_outlive_a_killed_dev(dev: Dev) -> None:
    wait_until("dev is ready", lambda: "is ready" in dev.text())
    pid = dev.supervisor_pid()
    dev.process.kill()
    dev.process.wait(WAIT_S)

    def gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state == "Z"

    wait_until("the supervisor ended", gone)
