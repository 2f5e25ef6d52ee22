"""The template process: its workers are as if executed, and live and die with the supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import PylonServer
from tests.support.supervised import ROOT, Maker, Supervised, supervised_maker
from tests.support.sync_client import SyncClient
from tests.support.wait import WAIT_S, wait_until

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    with supervised_maker(tmp_path) as maker:
        yield maker


FORK = """
import json, os, sys
from pylon.bus.fork_requests import ForkRequest, pack_environ
from supervisor import template
template.template_command = lambda: [sys.executable, "-m", "tests.support.probe_template"]
os.environ["TEMPLATE_ONLY"] = "yes"
made = template.start_template()
while not made.is_ready():
    pass
environ = pack_environ({"MARK": "caf\\udce9", "PATH": os.environ["PATH"]})
for role, worker in (("ws", "1"), ("ws", "2"), ("sse", "1")):
    request = ForkRequest(role, worker, "/nowhere", environ, "/", 0o027)
    print(made.fork(request, os.open("/dev/null", os.O_RDONLY)), file=sys.stderr, flush=True)
sys.stdin.read()
"""


def test_siblings_differ_in_all_that_is_random_and_in_nothing_else() -> None:
    env = {**os.environ, "PROBE": "values", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", FORK], cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as supervisor:
        assert supervisor.stdout is not None and supervisor.stderr is not None
        said = [json.loads(supervisor.stdout.readline()) for _ in range(3)]
        pids = {
            int(line) for line in (supervisor.stderr.readline() for _ in range(4)) if line[0] != "{"
        }
        titles = [
            Path(f"/proc/{each['different']['pid']}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            for each in said
        ]
        supervisor.kill()
    assert {each["different"]["pid"] for each in said} == pids
    for name in said[0]["different"]:
        assert len({each["different"][name] for each in said}) == 3, name
    assert sorted(each["same"].pop("role") for each in said) == ["sse", "ws", "ws"]
    assert sorted(title[-1] for title in titles) == [b"workers.sse", b"workers.ws", b"workers.ws"]
    for each in said:
        same = each["same"]
        role = same.pop("argv")
        assert role in (["workers.ws"], ["workers.sse"])
        assert same.pop("parent") == supervisor.pid
        assert same.pop("fds")[:4] == [0, 1, 2, 3]
        assert same == {
            "counted": 0.0, "context": True, "mark": "caf\udce9", "template": None, "cwd": "/",
            "umask": 0o027, "group": True, "term": True,
        }


def processes_of(server: PylonServer) -> dict[str, list[int]]:
    """Return the pids of all descendants of the supervisor, by the last word of their title."""
    assert server.process is not None
    found: dict[str, list[int]] = {}
    parents = {server.process.pid}
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            title = path.with_name("cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        if fields[0] != "Z":
            stats[int(path.parent.name)] = (int(fields[1]), title)
    grown = True
    while grown:
        children = {pid for pid, (parent, _) in stats.items() if parent in parents} - parents
        parents |= children
        grown = bool(children)
    for pid in parents - {server.process.pid}:
        title = stats[pid][1]
        name = title[title.index(b"-m") + 1].decode() if b"-m" in title else "?"
        found.setdefault(name, []).append(pid)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def template_of(server: PylonServer) -> int:
    [pid] = wait_until("one template", lambda: processes_of(server).get("workers.template"))
    return int(pid)


def test_workers_outlive_their_template_and_get_a_new_one(server: PylonServer) -> None:
    assert server.process is not None
    token, _ = server.guest()
    before = {role: server.pids(role) for role in ("http", "ws", "sse", "shards")}
    first = template_of(server)
    with SyncClient(server, "ws", token) as client:
        os.kill(first, signal.SIGKILL)
        wait_until("it is gone", lambda: is_gone(first))
        second = wait_until("another one runs", lambda: processes_of(server).get(
            "workers.template"))[0]
        assert {role: server.pids(role) for role in before} == before
        status, _, _ = server.request(
            "POST", "/api/entities/Tick", {"n": 1, "sender": "x"}, token=token)
        assert status == 201
        wait_until("the row arrives", lambda: client.snapshot().get("Tick"))
        assert client.problems == []
    for role in ("sse", "http"):
        victim = server.pids(role)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(f"another {role} worker is ready", lambda r=role, v=victim: (
            v not in server.pids(r) and server.request("GET", "/readyz")[0] == 200
        ))
    [new] = set(server.pids("sse"))
    assert parent_of(new) == server.process.pid
    assert template_of(server) == second != first
    assert server.terminate() == 0, server.log()


def test_template_and_worker_die_together(server: PylonServer) -> None:
    worker = server.pids("ws")[0]
    victims = {
        template_of(server), worker, parent_of(server.pids("http")[0]), *server.pids("identity")
    }
    assert len(victims) == 4
    for pid in victims:
        os.kill(pid, signal.SIGKILL)

    def is_whole() -> bool:
        found = processes_of(server)
        old = {pid for pids in found.values() for pid in pids} & victims
        counts = {name: len(pids) for name, pids in found.items()}
        return not old and counts == {
            "workers.template": 1, "workers.http": 3, "workers.ws": 1, "workers.sse": 1,
            "workers.shards": 1, "workers.identity": 1,
        }

    wait_until("all are new", is_whole)
    wait_until("ready", lambda: (
        server.request("GET", "/readyz")[0] == 200 and worker not in server.pids("ws")
    ))
    # After the start, /readyz does not wait for a role that is not essential.
    wait_until("identity is ready", lambda: server.status()["roles"]["identity"]["ready"] == 1)
    zombies = [
        path for path in Path("/proc").glob("[0-9]*/stat")
        if is_zombie_of(path, server.process.pid if server.process else 0)
    ]
    assert zombies == []
    assert server.terminate() == 0


def is_zombie_of(path: Path, parent: int) -> bool:
    try:
        fields = path.read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] == "Z" and int(fields[1]) == parent


def test_nothing_outlives_the_supervisor(server: PylonServer) -> None:
    pids = [pid for found in processes_of(server).values() for pid in found]
    assert len(pids) >= 7
    server.kill()
    for pid in pids:
        wait_until(f"process {pid} is gone", lambda p=pid: is_gone(p))


def test_each_process_has_only_its_own_descriptors(server: PylonServer) -> None:
    """No worker holds the listener of another role, a bus socket or a database of the template."""
    token, _ = server.guest()
    with SyncClient(server, "ws", token), SyncClient(server, "sse", token):
        children = processes_of(server)
        [template] = children["workers.template"]
        arbiter = parent_of(server.pids("http")[0])
        assert [name for name in links(template) if not name.startswith(("pipe:", "/"))] == [
            name for name in links(template) if name.startswith("socket:")
        ]
        assert sum(name.startswith("socket:") for name in links(template)) == 1
        ports = {role: listening(server.port + n) for n, role in enumerate(
            ("http", "ws", "sse", "shards"))}
        for role in ("ws", "sse", "shards"):
            for pid in server.pids(role):
                assert {r for r, name in ports.items() if name in links(pid)} == {role}
        for pid in (*server.pids("http"), arbiter):
            assert {r for r, name in ports.items() if name in links(pid)} == {"http"}
        kinds = {name.partition(":")[0] for name in links(arbiter)}
        assert "anon_inode" not in kinds  # no hub: it forks
        databases = [name for name in links(arbiter) + links(template) if "app.db" in name]
        assert databases == []


def test_http_workers_share_their_routes_and_not_their_ids(server: PylonServer) -> None:
    beginnings: set[str] = set()

    def has_met_both() -> bool:
        _, _, headers = server.request("GET", "/api/manifest")
        beginnings.add(headers["x-request-id"][:8])
        return len(beginnings) == 2

    wait_until("both HTTP workers have answered", has_met_both)


def links(pid: int) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def listening(port: int) -> str:
    """Return the name of a listening socket, as descriptors show it."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return f"socket:[{fields[9]}]"
    raise AssertionError(f"nobody listens on {port}")


def test_a_worker_imports_nothing_that_the_template_has_not(
    make: Maker, tmp_path: Path
) -> None:
    imported = tmp_path / "imported"
    imported.touch()
    it = make(STAND_IN="probe", PROBE="imports", IMPORTED=str(imported)).start()
    server = as_server(it)
    token, _ = server.guest()
    with SyncClient(server, "ws", token) as ws, SyncClient(server, "sse", token) as sse:
        status, row, _ = server.request(
            "POST", "/api/entities/Todo", {"title": "a"}, token=token)
        assert status == 201
        for client in (ws, sse):
            wait_until("the row", lambda c=client: c.snapshot().get("Todo"))
    for path in (
        f"/api/entities/Todo/{row['id']}", "/api/entities/Todo", "/openapi.json", "/metrics",
        "/api/sync/pull?since=0", "/api/shards", "/api/client-config", "/api/manifest",
    ):
        assert server.request("GET", path, token="x" * 40)[0] in (200, 404), path
    server.request("POST", "/api/query/Todo", {"title": "a"}, token=token)
    assert it.end() == 0
    # The identity process imports its flows and their libraries after its fork on purpose: in the
    # template, their memory would be that of each worker (`workers.identity.server`).
    foreign = {
        line for line in imported.read_text().splitlines()
        if line.split()[1].partition(".")[0] not in sys.stdlib_module_names
        and line.split()[0] != "identity"
    }
    assert foreign == set()


def as_server(it: Supervised) -> PylonServer:
    """Return a client of the same server."""
    found = PylonServer.__new__(PylonServer)
    found.host, found.port, found.process = "127.0.0.1", it.port, None
    return found


def test_a_template_that_cannot_be_imported_ends_the_start(make: Maker, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "falcon").mkdir(parents=True)
    (broken / "falcon" / "__init__.py").write_text("raise ImportError('no falcon here')")
    it = make(STAND_IN="real")
    it.env["PYTHONPATH"] += f":{broken}"
    it.start(ready=False)
    assert it.process is not None
    assert it.process.wait(WAIT_S) == 70
    [failed] = it.events("process.failed")
    assert failed["role"] == "template" and "no falcon here" in failed["error"]
    [said] = it.events("supervisor.broken")
    assert "cannot import" in said["error"]


def test_a_worker_that_dies_at_its_start_is_reported(make: Maker) -> None:
    it = make(STAND_IN_WS="dies", LIMIT_RESTART_DELAY_MAX_S="0.01").start(ready=False)
    wait_until("reported", lambda: it.events("role.failing"))
    died: list[dict[str, Any]] = it.events("child.died")
    assert {each["exit"] for each in died if each["child"] == "ws/1"} == {"3"}
    assert it.end() == 0


def test_a_stopped_template_is_replaced(make_server: Callable[..., PylonServer]) -> None:
    """SIGSTOP: a fork that takes too long ends the template; the worker comes from another one."""
    server = make_server().start()
    first = template_of(server)
    os.kill(first, signal.SIGSTOP)
    victim = server.pids("sse")[0]
    os.kill(victim, signal.SIGKILL)
    wait_until("a new worker", lambda: (
        victim not in server.pids("sse") and server.request("GET", "/readyz")[0] == 200
    ), 40)
    assert is_gone(first)
    assert len(processes_of(server)["workers.sse"]) == 1
    assert server.terminate() == 0
