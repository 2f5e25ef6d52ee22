"""The small parts of the supervisor: pidfile, sockets, notify, data directory, heartbeats."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits, metrics
from pylon.bus.messages import WorkerStatus
from pylon.bus.runtime import Runtime
from pylon.clock import ManualClock, SeededRandom, SystemClock
from pylon.config import Config, load
from pylon.data_dir import prepare_data_dir
from pylon.data_dir_lock import DataDirLock
from pylon.errors import StartRefused
from pylon.metrics.wire import Family, Sample
from pylon.storage.factory import open_store
from pylon.storage.records import StoreSizes
from supervisor import template
from supervisor.backups import Backups
from supervisor.children import Children
from supervisor.control import ClientLeft
from supervisor.events import Progress
from supervisor.heartbeats import Heartbeats
from supervisor.notify import Notifier
from supervisor.sockets import open_listeners
from tests.support.ports import reserve_base_port
from tests.support.wait import wait_until


def settings(**env: str) -> Config:
    return load(env).config


# --- Pidfile -----------------------------------------------------------------------------------


def test_the_lock_is_exclusive_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "app.db.pid"
    held = DataDirLock.acquire(path)
    with pytest.raises(StartRefused, match="a process that is starting"):
        DataDirLock.acquire(path)
    held.write(pid=4711)
    with pytest.raises(StartRefused, match="pid 4711"):
        DataDirLock.acquire(path)
    held.release()
    held.release()
    DataDirLock.acquire(path).release()
    assert path.read_text() == ""


def test_a_lock_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "app.db.pid"
    looking = DataDirLock.acquire(path)
    timer = threading.Timer(0.1, looking.release)
    timer.start()
    DataDirLock.acquire(path).release()
    timer.join()
    assert path.exists()


def test_a_pidfile_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="cannot be made"):
        DataDirLock.acquire(tmp_path / "missing" / "x.pid")


# --- Listening sockets ---------------------------------------------------------------------------


def test_roles_that_are_off_bind_nothing() -> None:
    port = reserve_base_port()
    config = settings(
        PYLON_PORT=str(port), PYLON_BIND="127.0.0.1", PYLON_SHARD_WORKERS="0", PYLON_SSE_WORKERS="0"
    )
    listeners = open_listeners(config, {}, os.getpid())
    assert listeners.ports == {"http": port, "ws": port + 1}
    with socket.create_connection(("127.0.0.1", port + 1)):
        listeners.close()


def test_a_taken_port_is_named_and_the_others_are_let_go() -> None:
    port = reserve_base_port()
    config = settings(PYLON_PORT=str(port), PYLON_BIND="127.0.0.1")
    with socket.create_server(("127.0.0.1", port + 3)):
        with pytest.raises(StartRefused, match=rf"Port {port + 3} .*PYLON_SHARD_PORT"):
            open_listeners(config, {}, os.getpid())
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", port)) != 0


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartRefused, match="PYLON_BIND"):
        open_listeners(settings(PYLON_BIND="192.0.2.1"), {}, os.getpid())


INHERITED = """
import os, sys, socket
sys.path.insert(0, sys.argv[1])
from pylon.config import load
from pylon.errors import StartRefused
from pylon.roles import PORT_BY_ROLE
from supervisor.sockets import open_listeners, port_warnings
base, names, kind = int(sys.argv[2]), sys.argv[3], sys.argv[4]
found = []
for n in range(2):
    s = socket.socket(); s.bind(("127.0.0.1", 0))
    if kind == "listening": s.listen()
    found.append(s.getsockname()[1]); os.dup2(s.detach(), 50 + n)
environ = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": names}
loaded = load({"PYLON_PORT": str(base), "PYLON_BIND": "127.0.0.1", "PYLON_SHARD_WORKERS": "0"}
              if "shards" in names else {"PYLON_PORT": str(base), "PYLON_BIND": "127.0.0.1"})
try:
    listeners = open_listeners(loaded.config, environ, os.getpid(), 50)
    ports = listeners.ports
    print(*[found.index(p) if p in found else p - base for p in ports.values()])
    print(*listeners.warnings, *port_warnings(loaded, ports), sep="\\n")
    from supervisor.main import _child_environ
    from pylon.storage.factory import open_store
    child = _child_environ(loaded, {}, open_store(loaded.config), ports, None, 1)
    assert all(child[PORT_BY_ROLE[role].setting] == str(port) for role, port in ports.items())
except StartRefused as ex:
    print(ex.message)
"""


@pytest.mark.parametrize(("names", "kind", "answer"), [
    ("unknown:unknown", "listening", "0 1 2 3"),  # by order: http and ws; the rest are bound
    ("ws:http", "listening", "1 0 2 3"),
    ("http:ws", "listening", "PYLON_WS_PORT makes the ws port"),
    ("http:shards", "listening", "0 1 2\nsystemd listens for shards, which is switched off"),
    ("http:http", "listening", "systemd passed 2 sockets"),
    ("http:ws", "bound only", "does not listen"),
])
@pytest.mark.usefixtures("processes")
def test_sockets_of_systemd(names: str, kind: str, answer: str) -> None:
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", INHERITED, root, str(reserve_base_port()), names, kind],
        capture_output=True, text=True, check=True,
    )
    assert answer in done.stdout


def test_sockets_for_another_process_are_left_alone() -> None:
    port = reserve_base_port()
    config = settings(PYLON_PORT=str(port), PYLON_BIND="127.0.0.1")
    listeners = open_listeners(config, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, os.getpid())
    assert listeners.ports["http"] == port
    listeners.close()


# --- systemd -------------------------------------------------------------------------------------


def test_notify_speaks_to_an_abstract_socket_and_says_each_status_once() -> None:
    name = f"pylon-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name)
        server.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name}, 1)
        notifier.status("a")
        notifier.status("a")
        notifier.extend_timeout(1.5)
        assert [server.recv(100) for _ in range(2)] == [
            b"STATUS=a", b"EXTEND_TIMEOUT_USEC=1500000\nWATCHDOG=1"]
        assert notifier.enabled
    notifier.ready()  # nobody there any more: no error


@pytest.mark.parametrize(("environ", "period_s"), [
    ({"WATCHDOG_USEC": "3000000"}, 1.5), ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "9"}, 1.5),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None), ({"WATCHDOG_USEC": "0"}, None),
    ({"WATCHDOG_USEC": "x"}, None), ({}, None),
])
def test_watchdog_period(environ: dict[str, str], period_s: float | None) -> None:
    assert Notifier(environ, 9).watchdog_period_s == period_s


# --- Data directory -------------------------------------------------------------------------------


def test_the_data_directory_is_made_private(tmp_path: Path) -> None:
    config = settings(PYLON_DB_PATH=str(tmp_path / "a" / "b" / "app.db"))
    prepare_data_dir(config)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    with open_store(config).provision() as store:
        assert store.data_path == tmp_path / "a" / "b" / "app.db"
        store.data_path.write_text("")
        store.sync()


def test_an_unfit_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="PYLON_DB_PATH sets it"):
        prepare_data_dir(settings(PYLON_DB_PATH=str(tmp_path / "file" / "app.db")))
    with pytest.raises(StartRefused, match="a folder"):
        prepare_data_dir(settings(PYLON_DB_PATH=str(tmp_path)))


def test_memory_is_private_and_forgotten(tmp_path: Path) -> None:
    config = settings(PYLON_IN_MEMORY="1", PYLON_DB_PATH=str(tmp_path / "x.db"))
    with open_store(config).provision() as store:
        path = store.data_path
        assert path.parent.stat().st_mode & 0o077 == 0
        path.write_text("rows")
    assert not path.parent.exists()


# --- Heartbeats and news ---------------------------------------------------------------------


def beat(worker: str, pid: int, ready: bool = True) -> WorkerStatus:
    family = Family("pylon_x_total", "h", "counter", [Sample("pylon_x_total", {}, 2)])
    return WorkerStatus("http", worker, pid, ready, 0, [family])


def test_readiness_is_fresh_and_dead_processes_are_forgotten() -> None:
    clock, changes = ManualClock(), [0]

    def changed() -> None:
        changes[0] += 1

    heartbeats = Heartbeats(clock, changed)
    gone = subprocess.Popen(["true"])
    gone.wait()
    heartbeats.take(beat("1", os.getpid()))
    heartbeats.take(beat("1", os.getpid()))
    heartbeats.take(beat("2", gone.pid))
    assert changes == [2]
    assert heartbeats.ready_pids("http") == sorted([os.getpid(), gone.pid])
    assert [dead.pid for dead in heartbeats.forget_dead()] == [gone.pid]
    assert heartbeats.forget_dead() == []
    assert heartbeats.ready_pids("http") == [os.getpid()]
    assert [s.value for f in heartbeats.families([]) for s in f.samples] == [4]
    heartbeats.take(beat("1", os.getpid(), ready=False))
    assert heartbeats.ready_pids("http") == []
    heartbeats.take(beat("1", os.getpid()))
    assert changes == [4]
    clock.advance(limits.HEARTBEAT_FRESH_S + 0.1)
    assert heartbeats.ready_pids("http") == []
    assert [b.worker for b in heartbeats.list_beats("http")] == ["1"]
    assert heartbeats.list_beats("ws") == []


def test_news_reach_late_listeners_from_the_beginning() -> None:
    updates = Progress()
    updates.publish(step="a")
    lines = updates.listen()
    updates.publish(step="b", done=True)
    assert [lines.get_nowait() for _ in range(2)] == [
        {"step": "a"}, {"step": "b", "done": True}]
    assert lines.empty()


PR_SET_CHILD_SUBREAPER = 36
WAITING_TEMPLATE = """
from workers import template
import time
template._LATE_MODULES, template.ROLES = (), ()
template.main(lambda role: time.sleep(60))
"""


@pytest.fixture
def arbiter(
    processes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Children, Heartbeats, ManualClock]]:
    """Children with one HTTP child, a process that only waits, on a clock that stands still."""
    wait = [sys.executable, "-c", WAITING_TEMPLATE]
    monkeypatch.setattr(template, "template_command", lambda: wait)
    clock = ManualClock()
    clock.advance(1000)
    heartbeats = Heartbeats(clock, lambda: None)
    listeners = open_listeners(
        settings(PYLON_WS_WORKERS="0", PYLON_SSE_WORKERS="0", PYLON_SHARD_WORKERS="0"), {}, 0
    )
    first = template.Template(SystemClock(), SeededRandom(1))
    made = Children(
        first, {"http": 1}, listeners, Runtime(tmp_path), os.environ, heartbeats, clock,
        SeededRandom(1),
    )
    wait_until("it is started", lambda: made.tick() or made.list_arbiters())
    yield made, heartbeats, clock
    made.kill_all()
    first.stop()
    listeners.close()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def test_an_arbiter_is_not_silent_because_its_workers_have_ended_in_a_drain(
    arbiter: tuple[Children, Heartbeats, ManualClock],
) -> None:
    """A drain after more than a minute sent SIGABRT to the arbiter once its workers were gone."""
    made, heartbeats, clock = arbiter
    heartbeats.take(beat("1", os.getpid()))
    clock.advance(100)
    heartbeats.forget("http", "1")
    made.draining = True
    for _ in range(3):
        clock.advance(100)
        made.tick()
    assert made.alive(("http",)) == 1


def test_an_arbiter_whose_workers_have_all_died_gets_the_time_to_start_new_ones(
    arbiter: tuple[Children, Heartbeats, ManualClock],
) -> None:
    made, heartbeats, clock = arbiter
    for _ in range(10):
        clock.advance(20)
        heartbeats.take(beat("1", os.getpid()))
        made.tick()
    heartbeats.forget("http", "1")
    clock.advance(limits.WORKER_BOOT_S - 1)
    made.tick()
    assert made.alive(("http",)) == 1
    clock.advance(2)
    made.tick()
    clock.advance(limits.ABORT_GRACE_S + 1)
    wait_until("it is aborted", lambda: made.tick() or made.restarts == 1)


def http_restarts() -> float:
    return sum(
        sample.value for family in metrics.supervisor_snapshot() for sample in family.samples
        if sample.name == "pylon_worker_restarts_total" and sample.labels["role"] == "http"
    )


def test_dead_gunicorn_workers_are_counted_unless_their_arbiter_or_a_drain_ended_them(
    arbiter: tuple[Children, Heartbeats, ManualClock],
) -> None:
    made, heartbeats, _ = arbiter
    before = http_restarts()
    gone = subprocess.Popen(["true"])
    gone.wait()

    def die(*workers: str) -> float:
        for worker in workers:
            heartbeats.take(beat(worker, gone.pid))
        made.count_dead_workers(heartbeats.forget_dead())
        return http_restarts() - before

    heartbeats.take(beat("0", os.getppid()))
    heartbeats.take(beat("0", os.getpid()))  # a successor, before anybody looked
    assert (die(), die("1"), die()) == (1, 2, 2)
    assert made.restarts == 2
    ((_, pid),) = made.list_arbiters()
    os.kill(pid, signal.SIGKILL)
    wait_until("the arbiter has ended", lambda: (
        "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    ))
    assert die("3") == 3  # the arbiter alone
    made.draining = True
    assert die("4") == 3


def test_a_backup_that_holds_back_too_much_wal_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BACKUP_WAL_BYTES", 1_000)
    wal_bytes = 0
    said: list[dict[str, Any]] = []

    class StubDialogue:
        """A `pylonctl backup` that gives up when it is told to."""

        peer_pid = 7

        def send_line(self, line: dict[str, Any]) -> None:
            said.append(line)

        def read_line(self, _patience_s: float) -> None:
            if said[-1].get("cancel"):
                raise ClientLeft
            nonlocal wal_bytes
            wal_bytes = 2_001

    backups = Backups(
        tmp_path / "app.db", lambda: StoreSizes(2_000, wal_bytes, 0),
        tmp_path / "manifest.json", ManualClock(),
    )
    assert backups.converse({}, StubDialogue()) == {"recorded": False}  # type: ignore[arg-type]
    assert [sorted(line) for line in said] == [["manifest"], ["cancel", "why"]]
    assert "2001 bytes of writes" in said[1]["why"] and "(at most 2000)" in said[1]["why"]
