"""A fleet: nodes on one database, writers and clients on them, and the comparison afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.nodes.clients import NodeClient
from tests.nodes.history import Change, problems_of
from tests.nodes.load import Load
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

CATCH_UP_S: Final = 60.0
RETAINED: Final = "10000000"


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
        *, writers: int = 3, clients: int = 6, seed: int = 1,
    ) -> None:
        self.nodes = [
            Node(folder / f"node{number}", notes_app(), {
                "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "1", "PYLON_SSE_WORKERS": "1",
                "PYLON_SHARD_WORKERS": "1", "PYLON_CHANGE_LOG_RETAIN": RETAINED,
                "PYLON_LOG_LEVEL": "info", **env_of(number),
            })
            for number in range(nodes)
        ]
        self._writers, self._clients, self._seed = writers, clients, seed
        self.clients: list[NodeClient] = []
        self.load: Load
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
            self.load.start()
            stack.callback(self.load.stop)
            self.load.wait_for_progress()
            yield self

    def wait_ready(self, timeout_s: float = 2 * WAIT_S) -> float:
        """Wait until every node is ready; how long that took, in seconds."""
        begin_s = time.monotonic()
        for node in self.nodes:
            node.wait_ready(timeout_s)
        return time.monotonic() - begin_s

    def check(self) -> list[str]:
        """Let the writers rest, wait until all is delivered, and compare; what is wrong."""
        self.wait_ready()
        self.load.pause()
        try:
            return self._compare()
        finally:
            self.load.resume()

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
        streams = [client.finish() for client in self.clients]
        problems += problems_of(
            self.load.ops, self._log, streams, self.load.counter_id, self.voids
        )
        return problems + self._compare_rows()

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

    @staticmethod
    def _read_log(node: PylonServer, cursor: int) -> list[Change]:
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

    def kill_node(self, number: int) -> None:
        """kill -9 of the supervisor, which takes all of its workers with it, and a new start."""
        self.nodes[number].kill()
        self.nodes[number].restart()

    def kill_workers(self, number: int, role: str) -> None:
        """kill -9 of the workers of a role; the supervisor starts others."""
        for pid in self.nodes[number].pids(role):
            os.kill(pid, signal.SIGKILL)

    def freeze_writer(self, number: int, for_s: float) -> None:
        """SIGSTOP of the supervisor, the writer's process, and SIGCONT."""
        process = self.nodes[number].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        time.sleep(for_s)
        process.send_signal(signal.SIGCONT)

    def freeze_node(self, number: int, for_s: float) -> None:
        """SIGSTOP of all processes of a node, and SIGCONT."""
        node = self.nodes[number]
        node.signal_all(signal.SIGSTOP)
        time.sleep(for_s)
        node.signal_all(signal.SIGCONT)

    def restart_node(self, number: int) -> int:
        """SIGTERM, the exit code, and a new start."""
        code = self.nodes[number].terminate()
        self.nodes[number].restart()
        return code


def folder_env(_: Any) -> Mapping[str, str]:
    """No settings: a node on a SQLite file in its own folder."""
    return {}
