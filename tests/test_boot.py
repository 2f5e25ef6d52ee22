"""workers.boot: who may start a worker, and that none outlives its supervisor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.server import PylonServer
from tests.support.stage import ROOT, Stage
from tests.support.wait import wait_until

pytestmark = pytest.mark.usefixtures("processes")

STARTER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import os, signal, time
from pylon.runtime.parent_death import die_with_parent
die_with_parent(os.getppid())
print(os.getpid(), flush=True)
while True: time.sleep(60)
'''])
sys.stdin.read()
"""


def test_a_worker_dies_with_its_supervisor() -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()

    def gone() -> bool:
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True

    wait_until("the worker died", gone)
    supervisor.stdout.close()


def mapped_kib(pid: int, path: Path) -> int:
    """Return how much of a file a process has mapped and read."""
    sizes = []
    for part in Path(f"/proc/{pid}/smaps").read_text().split("VmFlags:"):
        if f"{path}\n" in part:
            sizes.append(int(part.partition("\nRss:")[2].split()[0]))
    return sum(sizes)


def test_a_worker_that_becomes_quiet_releases_memory(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server(PYLON_HTTP_WORKERS="1").start()
    [pid] = server.pids("http")
    token, _ = server.guest()
    changes = [
        {"entity": "Tick", "row_id": "x", "kind": "insert", "data": {"n": n, "sender": "x" * 1_000}}
        for n in range(500)
    ]
    for _ in range(2):
        status, body, _ = server.request(
            "POST", "/api/sync/push", {"changes": changes}, token=token
        )
        assert status == 200 and not body["errors"]

    def read_rows() -> bool:
        status, _, _ = server.request("GET", "/api/entities/Tick?limit=1000", token=token)
        assert status == 200
        return mapped_kib(pid, server.db_path) > 1_000

    wait_until("a checkpoint, and reads of the file", read_rows)
    wait_until("the worker is quiet", lambda: mapped_kib(pid, server.db_path) < 200)


def test_a_worker_started_by_hand_is_refused() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYLON_")}
    done = subprocess.run(
        [sys.executable, "-m", "workers", "ws"], cwd=ROOT, env=env, capture_output=True, timeout=30
    )
    assert done.returncode == 78
    assert b"pylonctl start" in done.stderr


def test_a_broken_manifest_is_refused_with_78(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    try:
        stage.runtime.manifest.write_text("{")
        try:
            stage.start("ws")
        except AssertionError:
            assert stage.workers[-1].exit_code() == 78
        else:
            raise AssertionError("started with a broken manifest")
    finally:
        stage.close()


FAILING = """
import sys
from pylon.runtime.gevent_patch import patch; patch()
from pylon import log
from workers.http import arbiter
from workers.http.arbiter import HttpApplication
log.configure("json", "info", "http", "1")
def broken():
    raise {error}
arbiter.HttpProcess = broken
HttpApplication.__new__(HttpApplication).load()
"""
UNCAUGHT = """
from pylon import log
log.configure("json", "info", "ws", "1")
raise {error}
"""


@pytest.mark.parametrize("code", [FAILING, UNCAUGHT], ids=["http", "ws"])
@pytest.mark.parametrize(("error", "has_trace"), [
    ("OSError(28, 'No space left on device', '/var/lib/pylon')", False),
    ("__import__('pylon.errors').errors.Unavailable('the store is gone')", False),
    ("TypeError('a defect')", True),
], ids=["of the system", "of ours", "a defect"])
def test_a_worker_that_cannot_boot_says_so_in_one_line(
    code: str, error: str, has_trace: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code.replace("{error}", error)], cwd=ROOT, capture_output=True,
        text=True, timeout=60,
    )
    assert done.returncode == (3 if code == FAILING else 1)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()  # no traceback between lines of JSON
    said = json.loads(line)
    assert said["event"] in ("worker.boot_failed", "process.failed")
    assert ("trace" in said) is has_trace
    assert any(word in said["error"] for word in ("No space left", "store is gone", "a defect"))


RAISES = """
import gevent
from gevent.hub import get_hub
from pylon import log
from pylon.errors import InvalidJson
from workers import boot
log.configure("json", "info", "http", "1")
get_hub().print_exception = boot._log_greenlet

def fail(error):
    raise error

for error in (InvalidJson("refused"), KeyError("defect")):
    try:
        get_hub().threadpool.spawn(fail, error).get()
    except Exception as ex:
        print("raised", type(ex).__name__, flush=True)
gevent.spawn(fail, InvalidJson("nobody waits for it")).join()
"""


def test_an_error_for_a_client_that_a_thread_raises_is_not_logged() -> None:
    """10 MB of brackets, refused over and over, wrote as many tracebacks into the log."""
    done = subprocess.run(
        [sys.executable, "-c", RAISES], cwd=ROOT, capture_output=True, text=True, timeout=30,
        check=True,
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if line.startswith("raised")] == [
        "raised InvalidJson", "raised KeyError"
    ]
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert [line["error"] for line in logged] == ["'defect'", "nobody waits for it"]
