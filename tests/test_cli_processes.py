"""`pylonctl` and a server that runs: detach, status, stop, dev with reload."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
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
    wait_until("it is ready again", lambda: dev.text().count("is ready") == 2)
    assert dev.supervisor_pid() == first  # the process stays, and what it has imported

    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(WAIT_S) == 0
    assert dev.server.ctl("status", "--dev").returncode == 69


APP = """
from pylon import SimState, shard

@shard("{kind}")
class Room(SimState):
    pass
"""


def test_a_saved_app_is_reloaded_without_a_refused_connection(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server()
    app = server.folder / "app.py"
    app.write_text(APP.format(kind="first"))
    server.env["PYLON_APP"] = str(app)
    dev = Dev(server)
    refused: list[int] = []
    ended = threading.Event()

    def connect() -> None:
        while not ended.wait(0.005):
            for offset in range(4):
                try:
                    socket.create_connection(("127.0.0.1", server.port + offset), 20).close()
                except OSError:
                    refused.append(offset)

    try:
        wait_until("dev is ready", lambda: "is ready" in dev.text())
        first = dev.supervisor_pid()
        prober = threading.Thread(target=connect)
        prober.start()
        app.write_text("import nothing_like_this\n")
        wait_until("a bad app is reported", lambda: "not restarted" in dev.text())
        assert "nothing_like_this" in dev.text()
        app.write_text(APP.format(kind="other"))  # of the same size, perhaps in the same second
        wait_until("the new code is loaded", lambda: 'shards=["other"]' in dev.text())
        wait_until("it is ready again", lambda: dev.text().count("is ready") == 2)
        ended.set()
        prober.join()
        assert refused == []
        assert dev.supervisor_pid() == first
    finally:
        ended.set()
        dev.process.terminate()
        assert dev.process.wait(WAIT_S) == 0


def test_the_server_does_not_outlive_a_killed_dev(dev: Dev) -> None:
    wait_until("dev is ready", lambda: "is ready" in dev.text())
    pid = dev.supervisor_pid()
    dev.process.kill()
    dev.process.wait(WAIT_S)

    def has_ended() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state == "Z"

    assert wait_until("the supervisor ended", has_ended)
