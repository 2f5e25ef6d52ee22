"""The faults of one node on a SQLite file, by name: what happens, and how long a write may wait.

Processes of each kind are killed and frozen; the disk fails, is full, writes too little; the wall
clock jumps; the file is locked, or away; sockets of the bus vanish; all sockets of clients are cut
at once. Each fault leaves the node running, or coming back. Used by the tests of this folder.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from tests.faults.shim import Disk, Shim
from tests.nodes.fleet import Fleet, Node
from tests.support.wait import wait_until

BROKEN_S: Final = 1.5
FROZEN_S: Final = 2.0
HOUR_S: Final = 3_600.0
SOCKETS: Final = int(os.environ.get("PYLON_TEST_CUT_SOCKETS", "400"))
RUNTIME: Final = "run"  # the runtime folder, in the node's
_LINGER_NONE: Final = struct.pack("ii", 1, 0)  # a close that sends RST


@dataclass(frozen=True, slots=True)
class Stage:
    """One node under load, and its shim."""

    fleet: Fleet
    shim: Shim

    @property
    def node(self) -> Node:
        return self.fleet.nodes[0]


@dataclass(frozen=True, slots=True)
class Fault:
    """`wait_s`: the longest that a write may wait for its acknowledgement, with repetitions."""

    run: Callable[[Stage], object]
    wait_s: float


def pids_of(node: Node, kind: str) -> list[int]:
    """Return the processes of a kind: a role, `template`, `arbiter` or `supervisor`."""
    if kind == "supervisor":
        assert node.process is not None
        return [node.process.pid]
    if kind in ("template", "arbiter"):
        titles = {pid: _title(pid) for pid in node.all_pids()}
        if kind == "template":
            return [pid for pid, title in titles.items() if title == "workers.template"]
        workers = set(node.pids("http"))
        return [
            pid for pid, title in titles.items() if title == "workers.http" and pid not in workers
        ]
    return node.pids(kind)


def _title(pid: int) -> str:
    """Return the module that a process runs."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    found = [word for word in words if word.startswith(b"workers.")]
    return found[0].decode() if found else ""


def kill(stage: Stage, kind: str) -> None:
    """kill -9 of all processes of a kind, and a new start if it was the supervisor."""
    if kind == "supervisor":
        stage.fleet.kill_node(0)
        return
    pids = pids_of(stage.node, kind)
    assert pids, f"no process of the kind {kind}"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def freeze(stage: Stage, kind: str) -> None:
    """SIGSTOP and SIGCONT of all processes of a kind."""
    pids = pids_of(stage.node, kind)
    assert pids, f"no process of the kind {kind}"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(FROZEN_S)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def freeze_all(stage: Stage) -> None:
    stage.fleet.freeze_node(0, FROZEN_S)


def restart(stage: Stage) -> None:
    stage.fleet.restart_node(0)


def break_disk(stage: Stage, disk: Disk) -> None:
    """Let the disk fail. No write is acknowledged meanwhile that needs what fails."""
    with stage.shim.disk(disk):
        time.sleep(BROKEN_S)


def break_disk_at_a_kill(stage: Stage) -> None:
    """The disk writes too little, and the node dies before it knows what was written."""
    with stage.shim.disk(Disk.SHORT_WRITES):
        time.sleep(BROKEN_S / 2)
        stage.node.kill()
    stage.node.restart()


def jump(stage: Stage, seconds: float) -> None:
    """Let the wall clock jump, and jump back."""
    with stage.shim.clock_off_by(seconds):
        stage.fleet.load.wait_for_progress(20)


def lock(stage: Stage) -> None:
    """Another program holds the write lock of the file."""
    conn = apsw.Connection(str(stage.node.db_path))
    conn.set_busy_timeout(5_000)
    conn.execute("BEGIN IMMEDIATE")
    time.sleep(BROKEN_S)
    conn.execute("ROLLBACK")
    conn.close()


def take_file_away(stage: Stage) -> None:
    """Another file is in the place of the database for a while."""
    path = stage.node.db_path
    away = path.with_name("away.db")
    path.rename(away)
    path.write_bytes(b"")
    time.sleep(BROKEN_S)
    away.replace(path)


def lose_bus_sockets(stage: Stage) -> None:
    """The sockets of the bus vanish; a worker that starts then does not find them."""
    pids = [*pids_of(stage.node, "ws"), *pids_of(stage.node, "http")]
    for path in (stage.node.folder / RUNTIME).iterdir():
        if path.is_socket():
            path.unlink()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def cut_sockets(stage: Stage) -> None:
    """Many sockets are open, and all are cut at once."""
    node = stage.node
    token, _ = node.guest()
    request = (
        f"GET / HTTP/1.1\r\nHost: {node.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: bearer.{token}\r\n\r\n"
    ).encode()
    sockets = []
    for _ in range(SOCKETS):
        made = socket.create_connection((node.host, node.port + 1), timeout=10)
        made.sendall(request)
        sockets.append(made)
    for made in sockets:
        assert made.recv(12) == b"HTTP/1.1 101"
    for made in sockets:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        made.close()


def fill_and_kill(stage: Stage) -> None:
    """The disk is full when the writer dies, and still when it starts again."""
    with stage.shim.disk(Disk.FULL):
        time.sleep(BROKEN_S / 2)
        stage.node.kill()
        stage.node.restart()
        wait_until("the start is refused", lambda: (
            stage.node.process is not None and stage.node.process.poll() is not None
        ), 30)
    stage.node.restart()


KINDS: Final = ("supervisor", "template", "arbiter", "http", "ws", "sse", "shards", "identity")
LONG: Final = frozenset({"supervisor", "arbiter", "http"})  # writes wait for them

FAULTS: Final[dict[str, Fault]] = {
    "nothing": Fault(lambda stage: stage.fleet.load.wait_for_progress(60), 5.0),
    **{
        f"kill {kind}": Fault(
            lambda stage, kind=kind: kill(stage, kind), 15.0 if kind in LONG else 5.0
        ) for kind in KINDS
    },
    **{
        f"freeze {kind}": Fault(
            lambda stage, kind=kind: freeze(stage, kind), FROZEN_S + 5.0
        ) for kind in KINDS
    },
    "freeze the node": Fault(freeze_all, FROZEN_S + 5.0),
    "restart": Fault(restart, 15.0),
    "writes fail": Fault(lambda stage: break_disk(stage, Disk.WRITE_FAILS), BROKEN_S + 8.0),
    "the disk is full": Fault(lambda stage: break_disk(stage, Disk.FULL), BROKEN_S + 8.0),
    "writes are short": Fault(lambda stage: break_disk(stage, Disk.SHORT_WRITES), BROKEN_S + 8.0),
    "syncs fail": Fault(lambda stage: break_disk(stage, Disk.SYNC_FAILS), BROKEN_S + 8.0),
    "writes are short at a kill": Fault(break_disk_at_a_kill, 15.0),
    "the disk is full at a start": Fault(fill_and_kill, 40.0),
    "the clock jumps ahead": Fault(lambda stage: jump(stage, HOUR_S), 8.0),
    "the clock jumps back": Fault(lambda stage: jump(stage, -HOUR_S), 8.0),
    "the file is locked": Fault(lock, BROKEN_S + 5.0),
    "the file is away": Fault(take_file_away, BROKEN_S + 8.0),
    "bus sockets vanish": Fault(lose_bus_sockets, 15.0),
    "sockets are cut": Fault(cut_sockets, 8.0),
}
