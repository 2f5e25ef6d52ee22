"""Rounds of killed processes under published clients, and the events that each client missed.

The server has its sockets from a parent, as from systemd, so connections wait in the listener's
backlog while no server runs. In each round some clients are cut off, and processes end within
half a second: two roles, the whole server by `kill -9`, or the whole server in order. Then
every client must have every event of the log, once and in order. Used by
`tests/test_e2e_promise_kills.py` and `bench/kills.py`.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.manifests import notes_app
from tests.support.seq_recorder import SeqRecorder, seqs_of_the_log
from tests.support.server import ADMIN_TOKEN, ROLES, PylonServer
from tests.support.wait import WAIT_S, wait_until

KINDS: Final = ("http+ws", "http+sse", "ws+sse", "http+http", "kill server", "restart server")
PAIR_S: Final = 0.5  # the longest time between two deaths of a round
CUT_S: Final = 0.3  # before a server's end, clients are cut off within this
EVENTS_PER_S: Final = 200
BATCH: Final = 10
BURST_EVENTS: Final = 2_000  # of a round, as fast as they go, from its first death on
BURST_BATCH: Final = 100
CATCH_UP_S: Final = 60.0

_FROM_PARENT: Final = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
import fcntl
apart = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
for number, fd in enumerate(apart):
    os.dup2(fd, 3 + number)
os.closerange(3 + len(fds), 256)
os.environ.update(
    LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2]
)
os.execv(sys.executable, [sys.executable, "-m", "pylon.cli.main", "start"])
"""


class SocketUnitServer(PylonServer):
    """A server whose listening sockets this process holds, over any number of its runs."""

    def __init__(
        self, folder: Path, manifest: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, manifest, env)
        self._listeners = [
            socket.create_server(("127.0.0.1", self.port + number), backlog=4_096)
            for number in range(len(ROLES) - 1)
        ]

    def start(self, ready: bool = True) -> PylonServer:
        fds = [listener.fileno() for listener in self._listeners]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _FROM_PARENT, ",".join(map(str, fds)), ":".join(ROLES[:3])],
                env=self.full_env(), cwd=self.folder, stdout=log, stderr=log, pass_fds=fds,
            )
        if ready:
            self.wait_ready()
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_S)

    def close(self) -> None:
        super().close()
        for listener in self._listeners:
            listener.close()


@dataclass
class Report:
    """What a round did."""

    kind: str
    took_s: float
    events: int = 0
    missed: dict[str, int] = field(default_factory=dict)  # by client, if any
    reconnects: int = 0


class Trial:
    """One server under load, its clients, and rounds."""

    def __init__(self, folder: Path, clients: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = SocketUnitServer(folder, notes_app(), {
            "PYLON_HTTP_WORKERS": "2", "PYLON_WS_WORKERS": "1", "PYLON_SSE_WORKERS": "1",
            "PYLON_SHARD_WORKERS": "1", "PYLON_CHANGE_LOG_RETAIN": "10000000",
            "PYLON_LOG_LEVEL": "warning",
        })
        self._wanted = clients
        self.clients: list[SeqRecorder] = []
        self._begin = 0
        self._checked = 0  # seqs up to here have been compared
        self._done = threading.Event()
        self._burst_events = 0  # to be written yet
        self._pairs = 0
        self._writer = threading.Thread(target=self._write, daemon=True)

    @contextmanager
    def running(self) -> Iterator[Trial]:
        """Start the server, the clients and the writer."""
        with ExitStack() as stack:
            stack.callback(self.server.close)
            self.server.start()
            _, _, headers = self.server.request(
                "POST", "/api/entities/Tick", {"n": -1, "sender": "w"}, token=ADMIN_TOKEN
            )
            self._begin = self._checked = int(headers["x-pylon-change-seq"])
            # Two tabs, one ws and one sse, share each session; four clients are anonymous.
            tokens = [self.server.guest()[0] for _ in range((self._wanted + 1) // 2)]
            for number in range(self._wanted):
                token = None if number < min(4, self._wanted // 4) else tokens[number // 2]
                client = SeqRecorder(self.server, ("ws", "sse")[number % 2], token)
                self.clients.append(stack.enter_context(client))
            self._writer.start()
            stack.callback(self._writer.join, 40)
            stack.callback(self._done.set)
            yield self

    def _write(self) -> None:
        changes = [
            {"entity": "Tick", "row_id": "_pending", "kind": "insert",
             "data": {"n": number, "sender": "w"}}
            for number in range(BURST_BATCH)
        ]
        while not self._done.wait(0.005 if self._burst_events > 0 else BATCH / EVENTS_PER_S):
            count = BURST_BATCH if self._burst_events > 0 else BATCH
            try:
                self.server.request(
                    "POST", "/api/sync/push", {"changes": changes[:count]}, token=ADMIN_TOKEN,
                    timeout_s=10,
                )
            except (OSError, http.client.HTTPException):
                continue  # its server has died; the log says what came of it
            self._burst_events -= count

    def round(self, kind: str) -> Report:
        """One round: deaths, and then the comparison."""
        started_s = time.monotonic()
        connects = sum(client.connects for client in self.clients)
        if kind == "kill server":
            self._cut_some()
            self._burst_events = BURST_EVENTS
            self.server.kill()
            self.server.start()
        elif kind == "restart server":
            self._cut_some()
            self._burst_events = BURST_EVENTS
            assert self.server.terminate() == 0, self.server.log()
            self.server.start()
        else:
            self._kill_pair(kind)
        wait_until("the burst is written", lambda: self._burst_events <= 0, 60)
        self.server.wait_ready(60)
        missed, events = self._compare()
        return Report(
            kind, round(time.monotonic() - started_s, 2), events, missed,
            sum(client.connects for client in self.clients) - connects,
        )

    def _kill_pair(self, kind: str) -> None:
        """All workers of one role, then those of the other; the hub's come first every second
        time, so that its clients have pulled when the other dies."""
        first, second = kind.split("+")
        roles = self.server.status()["roles"]
        victims = [roles[second]["pids"], roles[first]["pids"]]
        if kind == "http+http":
            victims = [roles["http"]["pids"][:1], roles["http"]["pids"][1:]]
        self._pairs += 1
        if self._pairs % len(KINDS) >= len(KINDS) // 2:
            victims.reverse()
        self._cut_some(wait=False)
        self._burst_events = BURST_EVENTS
        for number, pids in enumerate(victims):
            if number:
                time.sleep(self.random.uniform(PAIR_S / 4, PAIR_S))
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _cut_some(self, *, wait: bool = True) -> None:
        """Cut half of the clients off, one after the other, at random times."""
        cut = self.random.sample(self.clients, len(self.clients) // 2)

        def cut_them() -> None:
            for client in cut:
                time.sleep(self.random.uniform(0, 2 * CUT_S / len(cut)))
                client.drop()

        thread = threading.Thread(target=cut_them, daemon=True)
        thread.start()
        if wait:
            time.sleep(self.random.uniform(0, 2 * CUT_S))

    def _compare(self) -> tuple[dict[str, int], int]:
        """What each client lacks of the log since the last comparison; how many events it has."""
        log = seqs_of_the_log(self.server, self._checked)
        assert log, "nothing was written"
        missed: dict[str, int] = {}
        for number, client in enumerate(self.clients):
            wait_until(
                f"{client.transport} client {number} is at {log[-1]}, and not at {client.cursor}",
                lambda c=client: c.cursor >= log[-1], CATCH_UP_S,
            )
            assert client.problems == []
            assert client.resyncs == 0
            seqs = list(client.seqs)
            assert seqs == sorted(set(seqs)), "an event came twice, or out of order"
            lacking = set(log) - set(seqs)
            if lacking:
                missed[f"{client.transport}/{number}"] = len(lacking)
            client.seqs = [seq for seq in client.seqs if seq > log[-1]]
        self._checked = log[-1]
        return missed, len(log)
