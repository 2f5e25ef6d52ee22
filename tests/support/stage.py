"""A stage for worker processes: the test's process is their supervisor.

`Stage` has a real database, the real bus and real workers of any role; the test commits batches
and decides which of them the bus carries, so that it can lose one. All other parts are the
product's own. Used by the tests of the ws, sse and shards workers; `document_stage` adds the
writer's port, `rooms` the rooms.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pylon import config as settings
from pylon.app import App, build_app
from pylon.auth.issue import SessionIssuer
from pylon.auth.session_life import SessionLife
from pylon.bus.changes import ChangesPublisher
from pylon.bus.child import ChildEnv
from pylon.bus.messages import NodeState, Signal
from pylon.bus.runtime import make_runtime_dir
from pylon.bus.signals import PlainSignalSender, SignalProxy
from pylon.bus.status import StatusReceiver
from pylon.changelog.hint_journal import HintWriter
from pylon.changelog.hints import hint_key
from pylon.changelog.marks import HeadMarks, marks_path
from pylon.clock import SystemClock, SystemRandom
from pylon.manifest_loader import load_manifest
from pylon.storage.events import ChangeBatch
from pylon.storage.nodes import NodeFacts
from pylon.storage.ops import (
    DropSession,
    InsertRow,
)
from pylon.storage.public_rows import PublicRows
from tests.support import stores
from tests.support.database import Database
from tests.support.wait import WAIT_S, wait_until
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames

ROOT = Path(__file__).parents[2]
ISSUER = SessionIssuer(SessionLife(0, 0, is_sliding=False), SystemClock(), SystemRandom())
ADMIN_TOKEN = "an-admin-token-of-more-than-32-characters"

FIELDS = [
    {"name": "text", "type": "string", "optional": False, "unique": False},
    {"name": "ownerId", "type": "string", "optional": True, "unique": False},
    {"name": "shared", "type": "bool", "optional": True, "unique": False},
]
READ_RULES = {
    "Public": "true",  # everyone
    "Mine": "auth.userId == data.ownerId",  # keyed
    "Note": "data.shared || auth.userId == data.ownerId",  # general
    "Member": "auth.userId != null",  # by context
    "Secret": "auth.isAdmin",
}
MANIFEST: dict[str, Any] = {
    "manifest_version": 1,
    "name": "hub",
    "version": "0.1.0",
    "entities": [
        {"name": name, "fields": FIELDS, "indexes": [], "crdt": False} for name in READ_RULES
    ],
    "routes": [],
    "policies": [
        {"name": name, "entity": name, "allowRead": rule, "allowWrite": "true"}
        for name, rule in READ_RULES.items()
    ],
}


class Worker:
    """A worker process."""

    def __init__(self, process: subprocess.Popen[bytes], role: str, port: int) -> None:
        self.process = process
        self.role = role
        self.port = port

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(WAIT_S)


def node_report(
    *others: NodeFacts, lease: str = "stage.1", until_s: float = math.inf
) -> NodeState:
    """The report of the supervisor of the node "stage"."""
    roles = ("http", "ws", "sse", "shards")
    own = NodeFacts("stage", "s", roles, "1", workers=dict.fromkeys(roles, 1))
    return NodeState(False, "stage", (own, *others), lease, until_s)


class Stage:
    """A database, a bus and the workers that a test starts."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None, **env: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.env = {
            "PYLON_DEV_MODE": "false",
            "PYLON_ADMIN_TOKEN": ADMIN_TOKEN,
            "PYLON_CORS_ORIGIN": "https://app.example.com",
            "PYLON_RATE_LIMIT_MAX": "0", "PYLON_RATE_LIMIT_MAX_AUTHED": "0",
            **stores.settings_at(folder / "hub.db"),
            "PYLON_LOG_LEVEL": "debug",
            **env,
        }
        self.config = settings.load(self.env).config
        self.runtime = make_runtime_dir(self.config)
        self.runtime.manifest.write_text(json.dumps(manifest or MANIFEST))
        self.app: App = build_app(self.config, load_manifest(self.runtime.manifest))
        self.database = Database(self.config.db_path, self.app, SystemClock())
        self.engine, self.pool = self.database.engine, self.database.pool
        self.update, self.delete = self.database.update, self.database.delete
        self.publisher = ChangesPublisher(self.runtime, PublicRows(self.app.manifest.entities))
        self._last_seq = 0  # of the last event
        self.proxy = SignalProxy(self.runtime)
        self.proxy.start()
        self.signals = PlainSignalSender(self.runtime)
        self.status = StatusReceiver(self.runtime)
        self.workers: list[Worker] = []
        self.metrics: dict[tuple[int, str], float] = {}  # by pid and "name{labels}"
        self._hints: HintWriter | None = None

    def start(self, role: str, worker: str = "1", **env: str) -> Worker:
        """Start a worker and wait until it is ready."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        child = ChildEnv(role, worker, self.runtime.dir, listener.fileno(), os.getpid())
        process = subprocess.Popen(
            [sys.executable, "-m", "workers", role],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **self.env, **child.to_environ(), **env},
            pass_fds=[listener.fileno()],
        )
        listener.close()
        started = Worker(process, role, port)
        self.workers.append(started)
        wait_until(
            "worker ready",
            lambda: process.poll() is not None or self.heartbeat(process.pid),
        )
        assert process.poll() is None, "the worker died"
        if self.config.database_url is not None:  # as the supervisor of a node that is alone
            self.tell(node_report())
        return started

    def heartbeat(self, pid: int) -> bool:
        """Take the heartbeats that are there; whether one says that `pid` is ready."""
        ready = False
        while (status := self.status.receive(0.0)) is not None:
            self.metrics.update({
                (status.pid, sample.name + json.dumps(sample.labels, sort_keys=True)): sample.value
                for family in status.metrics for sample in family.samples
            })
            if status.pid == pid:
                ready = status.ready
        return ready

    def metric(self, worker: Worker, name: str, **labels: str) -> float:
        """The newest value that the worker has sent of a metric; 0 if it has sent none."""
        pid = worker.process.pid
        self.heartbeat(pid)
        return self.metrics.get((pid, name + json.dumps(labels, sort_keys=True)), 0.0)

    def write(self, *ops: Any, publish: bool = True) -> ChangeBatch:
        """Commit `ops` as one batch; `publish=False` is a batch that the bus loses."""
        result = self.database.commit(*ops)
        if result.batch is None:
            return ChangeBatch(self.engine.head, [])
        events = result.batch.events
        # As the relay does: seqs of sessions, which no event has, are no gap between two batches.
        batch = ChangeBatch(min(result.batch.prev_seq, self._last_seq), events)
        self._last_seq = events[-1].seq
        if publish:
            self.publisher.publish(batch)
        return batch

    def insert(self, entity: str, **body: Any) -> InsertRow:
        """An insert with a fresh row id."""
        return self.database.insert(entity, self.app.ids.new(), **{"text": "", **body})

    def login(self, user_id: str) -> tuple[str, str]:
        """A new session: its token and its id."""
        made = ISSUER.issue(user_id, device="test")
        self.write(made.put)
        return made.token, made.put.session_id

    def logout(self, session_id: str) -> None:
        self.write(DropSession(session_id))

    def add_hint(self, session_id: str | None, cursor: int) -> None:
        """What an HTTP worker does before it answers a pull."""
        if self._hints is None:
            self._hints = HintWriter(self.runtime.hints, SystemClock())
        self._hints.put(hint_key(session_id, "127.0.0.1"), cursor)

    def mark(self, head: int) -> None:
        """What the supervisor does at its start: `head` is older than any window."""
        HeadMarks(marks_path(Path(self.config.db_path)), "", SystemClock()).begin(head, head)

    def tell(self, signal_: Signal) -> None:
        self.signals.send(signal_)

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait(WAIT_S)
        if self._hints is not None:
            self._hints.close()
        self.signals.close()
        self.status.close()
        self.publisher.close()
        self.proxy.stop()
        self.database.close()
        self.runtime.remove()


def drain(worker: Worker) -> int:
    """SIGTERM, and the exit code."""
    worker.signal(signal.SIGTERM)
    return worker.exit_code()


def connect_at_head(stage: Stage, worker: Worker, **options: Any) -> WebSocketClient:
    """A client that has nothing to catch up with, and that receives what comes from now on.

    The first ping may travel with the handshake and be answered before the client has joined;
    the second is read by the loop, which means that the handshake is done.
    """
    client = WebSocketClient(worker.port, path=f"/?since={stage.engine.head}", **options)
    for payload in (b"there?", b"joined?"):
        client.send_frame(frames.PING, payload)
        assert client.read_control() == (frames.PONG, payload)
    return client
