"""A fleet: nodes on one database, writers and clients on them, and the comparison afterwards.

Beside the load and the clients (`load`, `clients`, judged by `history`) it has users in a room
(`attendees`), devices that edit a document (`editors`), sessions that end (`sessions`), and on
PostgreSQL shards (`shards`).
`Fleet.trial` lets a fault happen, and returns every promise that it broke.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.nodes.attendees import Attendance
from tests.nodes.clients import NodeClient
from tests.nodes.editors import Editing
from tests.nodes.history import Change, Stream, longest_wait, problems_of
from tests.nodes.load import Load
from tests.nodes.sessions import REVOKED_S, Revocation, revocation_problems
from tests.nodes.shards import Playing
from tests.support.manifests import field, notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

CATCH_UP_S: Final = 60.0
RETAINED: Final = "10000000"
SHARD_APP: Final = str(Path(__file__).parent / "shard_app.py")
END_SESSION_S: Final = 0.3  # after the begin of a fault


def trial_app() -> dict[str, Any]:
    """The app of a fleet: notes with a text that several devices edit, and ticks."""
    manifest = notes_app()
    manifest["entities"][0]["fields"].append(field("body", "richtext", optional=True))
    return manifest


class Node(PylonServer):
    """One whole node: a supervisor with all roles, on a port range and a folder of its own."""

    def all_pids(self) -> list[int]:
        """Return the supervisor's pid and those of all of its descendants."""
        assert self.process is not None
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the node, the supervisor first."""
        for pid in self.all_pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def restart(self) -> None:
        """Start it again after `kill`, without waiting until it is ready."""
        self.start(ready=False)


class Fleet:
    """See the module."""

    def __init__(
        self, folder: Path, nodes: int, env_of: Callable[[int], Mapping[str, str]],
        *, writers: int = 3, clients: int = 6, seed: int = 1, shards_at: str | None = None,
    ) -> None:
        """
        Args:
            env_of: returns the settings of the node with a number.
            shards_at: the URL of its PostgreSQL database, to run shards and record their states.
        """
        app = {} if shards_at is None else {"PYLON_APP": SHARD_APP}
        self._shards_at = shards_at
        self.playing: Playing | None = None
        self.nodes = [
            Node(folder / f"node{number}", trial_app(), {
                "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "1", "PYLON_SSE_WORKERS": "1",
                "PYLON_SHARD_WORKERS": "1", "PYLON_CHANGE_LOG_RETAIN": RETAINED,
                "PYLON_LOG_LEVEL": "info", **app, **env_of(number),
            })
            for number in range(nodes)
        ]
        self._writers, self._clients, self._seed = writers, clients, seed
        self.clients: list[NodeClient] = []
        self.load: Load
        self.attendance: Attendance
        self.editing: Editing
        self._trials = 0
        self.voids: list[tuple[int, int]] = []  # seqs that a failover has lost
        self._log: list[Change] = []

    @contextmanager
    def running(self) -> Iterator[Fleet]:
        """Start all nodes, the clients and the writers."""
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)
                node.start(ready=False)
            self.wait_ready()
            self.load = Load(self.nodes, self._writers, self._seed)
            for number in range(self._clients):
                if number < self._clients // 2:  # the writers' own devices
                    writer = self.load.writers[number % len(self.load.writers)]
                    token, user_id = writer.token, writer.user_id
                else:
                    token, user_id = self.nodes[number % len(self.nodes)].guest()
                client = NodeClient(self.nodes, number, ("ws", "sse")[number % 2], token, user_id)
                self.clients.append(stack.enter_context(client))
            self.attendance = Attendance(self.nodes)
            self.editing = Editing(self.nodes)
            parties = [self.load, self.attendance, self.editing]
            if self._shards_at is not None:
                self.playing = Playing(self.nodes, self._shards_at)
                parties.append(self.playing)
            for party in parties:
                party.start()
                stack.callback(party.stop)
            self.load.wait_for_progress()
            yield self

    def wait_ready(self, timeout_s: float = 2 * WAIT_S) -> float:
        """Wait until every node is ready; how long that took, in seconds."""
        begin_s = time.monotonic()
        for node in self.nodes:
            node.wait_ready(timeout_s)
        return time.monotonic() - begin_s

    def trial(
        self, name: str, fault: Callable[[], int | None], longest_wait_s: float,
        others_wait_s: float | None = None, revoked_s: float = REVOKED_S,
    ) -> list[str]:
        """Let a fault happen under load; return what is wrong afterwards.

        Args:
            fault: returns the number of the node that it happened to, or None.
            longest_wait_s: for the acknowledgement of a write, with its repetitions elsewhere.
            others_wait_s: the same, of writes that were sent to other nodes only.
            revoked_s: for the close of the sockets of a session that ended during the fault, after
                all nodes are ready.
        """
        self._trials += 1
        begin_s = time.monotonic()
        self.load.spread()
        self.attendance.admit_visitors()
        ending = Revocation(self.nodes)
        ending.end_soon(END_SESSION_S)
        victim = fault()
        self.attendance.cut_visitors()
        ready_s = self.wait_ready()
        problems = ending.problems(within_s=revoked_s)
        resumed_s = self.load.wait_for_progress()
        problems += self.check()
        waits = [(longest_wait(self.load.ops, begin_s), longest_wait_s)]
        if victim is not None and others_wait_s is not None:
            waits.append((longest_wait(self.load.ops, begin_s, but=victim), others_wait_s))
        for op, bound_s in waits:
            if op is not None and op.wait_s > bound_s:
                problems.append(f"wait: {op} waited {op.wait_s:.1f} s, allowed: {bound_s:g} s")
        waited = ", ".join("none" if op is None else f"{op.wait_s:.2f} s" for op, _ in waits)
        print(f"{name}: ready after {ready_s:.1f} s, all writers write after {resumed_s:.1f} s; the"
              f" longest wait for an acknowledgement (anywhere, on other nodes): {waited}; the"
              f" trial took {time.monotonic() - begin_s:.1f} s", *problems, sep="\n  ")
        return problems

    def check(self) -> list[str]:
        """Let everybody rest, wait until all is delivered, and compare; what is wrong."""
        self.wait_ready()
        problems = revocation_problems(self.nodes, self._trials)
        problems += self.attendance.problems()
        if self.playing is not None:
            problems += self.playing.problems()
        problems += self.editing.hold()
        self.load.pause()
        try:
            problems += self.editing.problems()
            return problems + self._compare()
        finally:
            self.load.resume()
            self.editing.release()

    def _compare(self) -> list[str]:
        problems = self.load.failures()
        self.load.write_last()
        known = self._log[-1].seq if self._log else self.load.begin_seq
        self._log += self._read_log(self.nodes[0], known)
        head = self._log[-1].seq
        for node in self.nodes[1:]:
            if self._read_log(node, self.load.begin_seq) != self._log:
                problems.append(f"the log of {node.folder.name} is another one")
        for client in self.clients:
            try:
                wait_until("caught up", lambda c=client: c.cursor >= head, CATCH_UP_S)
            except AssertionError:
                problems.append(
                    f"{client.stream.name} stays at {client.cursor}, the head is {head};"
                    f" closed with {client.close_codes[-5:]}"
                )
        streams = [self.comparable(client.finish()) for client in self.clients]
        problems += problems_of(
            self.load.ops, self._log, streams, self.load.counter_id, self.voids,
            frozenset({self.editing.row_id}),
            self.find_echoes(self._log),
        )
        return problems + self._compare_rows()

    def find_echoes(self, log: list[Change]) -> set[int]:
        """Return the seqs of events of the log that nobody has sent."""
        return set()

    def comparable(self, stream: Stream) -> Stream:
        """Return a stream as it is compared with the log."""
        return stream

    def _compare_rows(self) -> list[str]:
        """Every client's replica equals what each node gives its user."""
        problems = []
        for number, client in enumerate(self.clients):
            node = self.nodes[number % len(self.nodes)]
            expected = {name: node.rows(name, client.token or "") for name in ("Note", "Tick")}
            try:
                client.wait_rows(expected, 10)
            except AssertionError as ex:
                problems.append(str(ex))
        return problems

    def _read_log(self, node: PylonServer, cursor: int) -> list[Change]:
        """Return all changes after `cursor`."""
        found: list[Change] = []
        while True:
            status, body, _ = node.request(
                "GET", f"/api/sync/pull?since={cursor}", token=ADMIN_TOKEN
            )
            assert status == 200, body
            for change in body["changes"]:
                data = change.get("data")
                found.append(Change(
                    change["seq"], change["entity"], change["row_id"], change["kind"],
                    None if data is None else {**data, "id": change["row_id"]},
                ))
            cursor = body["cursor"]["last_seq"]
            if not body["has_more"]:
                return found

    # --- what happens to nodes; each leaves them running

    def kill_node(self, number: int) -> int:
        """kill -9 of the supervisor, which takes all of its workers with it, and a new start."""
        self.nodes[number].kill()
        self.nodes[number].restart()
        return number

    def kill_workers(self, number: int, role: str) -> int:
        """kill -9 of the workers of a role; the supervisor starts others."""
        for pid in self.nodes[number].pids(role):
            os.kill(pid, signal.SIGKILL)
        return number

    def freeze_writer(self, number: int, for_s: float) -> int:
        """SIGSTOP of the supervisor, the writer's process, and SIGCONT."""
        process = self.nodes[number].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        time.sleep(for_s)
        process.send_signal(signal.SIGCONT)
        return number

    def freeze_node(self, number: int, for_s: float) -> int:
        """SIGSTOP of all processes of a node, and SIGCONT."""
        node = self.nodes[number]
        node.signal_all(signal.SIGSTOP)
        time.sleep(for_s)
        node.signal_all(signal.SIGCONT)
        return number

    def restart_node(self, number: int) -> int:
        """SIGTERM, exit code 0, and a new start."""
        assert self.nodes[number].terminate() == 0, self.nodes[number].log()
        self.nodes[number].restart()
        return number
