"""The bus with real sockets, threads on one side and a gevent process on the other."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.bus.changes import ChangesPublisher
from pylon.bus.child import ChildEnv
from pylon.bus.messages import RolesReport, RoleState
from pylon.bus.runtime import Runtime, make_runtime_dir
from pylon.bus.signals import PlainSignalSender, SignalProxy, tag_of
from pylon.bus.status import StatusReceiver
from pylon.bus.writer_port import LocalWriter, Peer, WriterPort
from pylon.config import load
from pylon.errors import NotFound, StartRefused, WriterUnavailable
from pylon.errors.wire import WireError
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.ops import (
    DeleteRow,
    WriteReply,
    WriteRequest,
)
from pylon.storage.public_rows import PublicRows
from tests.support.wait import WAIT_S, wait_until

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """The gevent process; its answers arrive on a queue."""

    def __init__(self, runtime: Runtime) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "support" / "bus_worker.py"), str(runtime.dir)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.aside: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.expect("ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))

    def send(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def expect(self, key: str) -> dict[str, Any]:
        """The next answer that has `key`; others are kept."""
        for kept in self.aside:
            if key in kept:
                self.aside.remove(kept)
                return kept
        while True:
            answer = self.answers.get(timeout=WAIT_S)
            if key in answer:
                return answer
            self.aside.append(answer)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config)


@pytest.fixture
def start(processes: None, runtime: Runtime) -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def starter() -> Worker:
        workers.append(Worker(runtime))
        return workers[-1]

    yield starter
    for worker in workers:
        if worker.process.poll() is None:
            worker.kill()


def receive(port: WriterPort) -> list[tuple[Peer, list[WriteRequest]]]:
    got = port.receive(WAIT_S)
    assert got, "no message arrived"
    return got


def echo(request: WriteRequest) -> WriteReply:
    assert isinstance(request.op, DeleteRow)
    return WriteReply(request.id, row_id=request.op.row_id, count=1)


def test_writes_of_one_turn_travel_in_one_message(
    runtime: Runtime, start: Callable[[], Worker]
) -> None:
    port = WriterPort(runtime)
    worker = start()
    worker.send(cmd="writes", ids=[f"r{i}" for i in range(100)])
    [(peer, requests)] = receive(port)
    assert len(requests) == 100
    port.reply(peer, [echo(r) for r in reversed(requests)])  # order of replies does not matter
    assert worker.expect("rows")["rows"] == [f"r{i}" for i in range(100)]
    port.close()


def test_an_error_comes_back_as_itself_and_fails_alone(
    runtime: Runtime, start: Callable[[], Worker]
) -> None:
    port = WriterPort(runtime)
    worker = start()
    worker.send(cmd="writes", ids=["a", "b"])
    [(peer, (first, second))] = receive(port)
    refused = WriteReply(first.id, error=WireError.from_error(NotFound("Row not found")))
    port.reply(peer, [refused, echo(second)])
    assert worker.expect("rows")["rows"] == ["NOT_FOUND", "b"]
    worker.send(cmd="write_all", ids=["c", "d"])
    [(peer, (first, second))] = receive(port)
    port.reply(peer, [WriteReply(first.id, error=refused.error)])
    port.reply(peer, [echo(second)])
    assert [r["error"] for r in worker.expect("replies")["replies"]] == ["NOT_FOUND", None]
    port.close()


def test_writes_in_flight_are_bounded(runtime: Runtime, start: Callable[[], Worker]) -> None:
    port = WriterPort(runtime)
    worker = start()
    worker.send(cmd="write_all", ids=["x"] * limits.WRITES_IN_FLIGHT)
    [(peer, requests)] = receive(port)
    worker.send(cmd="writes", ids=["one too many"])
    assert worker.expect("rows")["rows"] == ["WRITE_QUEUE_FULL"]
    port.reply(peer, [echo(r) for r in requests])
    assert len(worker.expect("replies")["replies"]) == limits.WRITES_IN_FLIGHT
    port.close()


def test_a_lost_writer_fails_what_waits_and_a_new_one_is_found(
    runtime: Runtime, start: Callable[[], Worker]
) -> None:
    port = WriterPort(runtime)
    worker = start()
    worker.send(cmd="writes", ids=["a", "b"])
    receive(port)
    port.close()
    assert worker.expect("rows")["rows"] == ["WRITER_UNAVAILABLE"] * 2
    port = WriterPort(runtime)
    worker.send(cmd="writes", ids=["c"])
    [(peer, requests)] = receive(port)
    port.reply(peer, [echo(r) for r in requests])
    assert worker.expect("rows")["rows"] == ["c"]
    port.close()


def test_no_greenlet_spins_when_the_other_end_dies(
    runtime: Runtime, start: Callable[[], Worker]
) -> None:
    worker = start()  # all of its peers are in a process that we kill
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(runtime.dir)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"bound\n"
    worker.send(cmd="writes", ids=["a"])
    assert server.stdout.readline() == b"received\n"
    server.kill()
    server.wait()
    server.stdout.close()
    assert worker.expect("rows")["rows"] == ["WRITER_UNAVAILABLE"]
    worker.send(cmd="cpu", wall_s=1.5)
    assert worker.expect("cpu_s")["cpu_s"] < 0.4


SERVER = """
import sys, time
from pathlib import Path
from pylon.bus.runtime import Runtime
from pylon.bus.writer_port import WriterPort
from pylon.bus.changes import ChangesPublisher
from pylon.storage.public_rows import PublicRows
from pylon.bus.signals import SignalProxy
from pylon.bus.status import StatusReceiver
runtime = Runtime(Path(sys.argv[1]))
port, publisher = WriterPort(runtime), ChangesPublisher(runtime, PublicRows(()))
proxy, status = SignalProxy(runtime), StatusReceiver(runtime)
proxy.start()
print("bound", flush=True)
while not port.receive(30):
    pass
print("received", flush=True)
time.sleep(60)
"""


def test_a_killed_worker_harms_nobody(runtime: Runtime, start: Callable[[], Worker]) -> None:
    port = WriterPort(runtime)
    doomed, survivor = start(), start()
    doomed.send(cmd="writes", ids=["a"])
    [(dead_peer, requests)] = receive(port)
    doomed.kill()
    port.reply(dead_peer, [echo(r) for r in requests])
    survivor.send(cmd="writes", ids=["b"])
    [(peer, requests)] = receive(port)
    assert peer != dead_peer
    port.reply(peer, [echo(r) for r in requests])
    assert survivor.expect("rows")["rows"] == ["b"]
    port.close()


def test_an_unreadable_message_is_passed_over(runtime: Runtime) -> None:
    port, local = WriterPort(runtime), LocalWriter(runtime)
    local._stream.send(b"\xc1 not msgpack")
    local.wake()
    local._stream.send(b"\xc1 not msgpack")
    got: list[tuple[Peer, list[WriteRequest]]] = []
    while not got:
        got = port.receive(WAIT_S)
    assert [requests for _, requests in got] == [[]]
    local.close()
    port.close()


def test_messages_beyond_the_bytes_of_a_batch_wait_for_the_next(runtime: Runtime) -> None:
    port, local = WriterPort(runtime, batch_bytes=3_000), LocalWriter(runtime)
    for size in (1_000, 2_500, 5_000, 10):
        local._send([WriteRequest(size, DeleteRow("Todo", "a" * size, ADMIN))])
    got: list[list[int]] = []
    while sum(map(len, got)) < 4:
        received = port.receive(WAIT_S)
        got.append([request.id for _, requests in received for request in requests])
    assert [batch for batch in got if batch] == [[1_000, 2_500], [5_000], [10]]
    local.close()
    port.close()


def test_under_load_a_batch_has_what_other_processes_send_before_it_is_taken(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, first, second = WriterPort(runtime), LocalWriter(runtime), LocalWriter(runtime)

    def send(local: LocalWriter, count: int) -> None:
        local._send([
            WriteRequest(n, DeleteRow("Todo", "a", ADMIN), n < count) for n in range(1, count + 1)
        ])

    def sizes() -> list[int]:
        got = port.receive(WAIT_S)
        while not got:
            got = port.receive(WAIT_S)
        return [len(requests) for _, requests in got]

    monkeypatch.setattr("os.sched_yield", lambda: send(second, 2))
    send(first, 4)
    assert sizes() == [4]
    send(first, 1)
    assert sizes() == [1, 2]
    send(first, 1)
    assert sizes() == [1, 2]
    monkeypatch.setattr("os.sched_yield", lambda: None)
    send(first, 1)
    assert sizes() == [1]
    monkeypatch.setattr("os.sched_yield", lambda: pytest.fail("a lone write waited"))
    send(first, 20)
    assert sizes() == [20]
    send(first, 20)
    assert sizes() == [20]
    send(first, 1)
    assert sizes() == [1]
    first.close()
    second.close()
    port.close()


def test_the_local_writer_waits_for_its_own_answer(runtime: Runtime) -> None:
    port, local = WriterPort(runtime), LocalWriter(runtime)
    with pytest.raises(WriterUnavailable):
        local.submit(DeleteRow("Todo", "early", ADMIN), timeout_s=0.01)
    answered: list[WriteReply] = []
    thread = threading.Thread(target=lambda: answered.append(
        local.submit(DeleteRow("Todo", "late", ADMIN), WAIT_S)))
    thread.start()
    seen = 0
    while seen < 2:  # the request that timed out is answered too, and must not be taken for it
        for peer, requests in receive(port):
            for request in requests:
                late = isinstance(request.op, DeleteRow)
                port.reply(peer, [WriteReply(request.id, row_id="late" if late else "early")])
                seen += 1
    thread.join(WAIT_S)
    assert [reply.row_id for reply in answered] == ["late"]
    local.close()
    port.close()


def test_changes_reach_a_subscriber(runtime: Runtime, start: Callable[[], Worker]) -> None:
    publisher = ChangesPublisher(runtime, PublicRows(()))
    worker = start()
    seq = 0
    while True:  # a subscription takes a moment; a slow joiner misses batches, by design
        seq += 1
        event = ChangeEvent(seq, "Todo", "r", "insert", b"{}", None, 1)
        publisher.publish(ChangeBatch(seq - 1, [event]))
        try:
            answer = worker.answers.get(timeout=0.05)
            break
        except queue.Empty:
            assert seq < WAIT_S / 0.05
    assert answer["change"] == [answer["prev"] + 1]
    publisher.close()


def test_a_dead_subscriber_has_no_clients(runtime: Runtime) -> None:
    publisher = ChangesPublisher(runtime, PublicRows(()))
    with zmq.Context() as context:
        sockets = [context.socket(zmq.SUB) for _ in range(2)]
        for socket in sockets:
            socket.connect(runtime.changes)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        sockets[0].setsockopt(zmq.SUBSCRIBE, b"clients")
        wait_until("the first is known", publisher.has_clients)
        sockets[1].setsockopt(zmq.SUBSCRIBE, b"clients")
        sockets[0].close(linger=0)
        assert publisher.has_clients()
        sockets[1].close(linger=0)
        wait_until("the end of both is known", lambda: not publisher.has_clients())
    publisher.close()


def test_signals_pass_the_proxy_by_kind(runtime: Runtime, start: Callable[[], Worker]) -> None:
    proxy = SignalProxy(runtime)
    proxy.start()
    sender = PlainSignalSender(runtime)
    worker = start()
    report = RolesReport({"ws": RoleState(1, 1)}, draining=False)
    for _ in range(int(WAIT_S / 0.05)):
        sender.send(report)
        try:
            assert worker.answers.get(timeout=0.05) == {"signal": "RolesReport"}
            break
        except queue.Empty:
            continue
    else:
        pytest.fail("no signal arrived")
    worker.send(cmd="signal", key="s:1")  # DocumentsChanged is not subscribed to, SessionRevoked is
    while worker.expect("signal")["signal"] != "SessionRevoked":
        continue
    assert tag_of(RolesReport) == b"roles"
    sender.close()
    proxy.stop()


def test_heartbeats_carry_metrics(runtime: Runtime, start: Callable[[], Worker]) -> None:
    receiver = StatusReceiver(runtime)
    worker = start()
    worker.send(cmd="status")
    status = receiver.receive(WAIT_S)
    assert status is not None
    assert (status.role, status.worker, status.pid, status.ready) == ("ws", "1", 42, True)
    assert "pylon_writes_in_flight" in {family.name for family in status.metrics}
    assert receiver.receive(0) is None
    receiver.close()


def test_runtime_dir_is_private_short_and_removed(tmp_path: Path) -> None:
    config = load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config
    runtime = make_runtime_dir(config)
    assert runtime.dir.stat().st_mode & 0o777 == 0o700
    runtime.manifest.write_text("{}")
    assert make_runtime_dir(config) == runtime  # left behind by a killed supervisor
    assert not runtime.manifest.exists()
    runtime.remove()
    assert not runtime.dir.exists()
    private = make_runtime_dir(load({}).config)
    assert private.dir.stat().st_mode & 0o777 == 0o700
    private.remove()
    asked = make_runtime_dir(load({}).config, str(tmp_path / "systemd"))
    assert asked.dir == tmp_path / "systemd"


def test_the_longest_socket_fits_into_a_runtime_dir_that_is_not_refused() -> None:
    name = "passing-siblings-100"  # of workers.shards.server
    with tempfile.TemporaryDirectory(prefix="pylon-test-") as folder:
        for size_bytes in (107, 108):
            path = Path(folder) / ("x" * (size_bytes - len(folder) - len(name) - 2))
            config = load({"PYLON_RUNTIME_DIR": str(path)}).config
            if size_bytes > 107:
                with pytest.raises(StartRefused, match="shorter path"):
                    make_runtime_dir(config)
                continue
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(make_runtime_dir(config).dir / name))


def test_runtime_dir_refusals(tmp_path: Path) -> None:
    long = load({"PYLON_RUNTIME_DIR": str(tmp_path / ("x" * 100))}).config
    with pytest.raises(StartRefused, match="shorter path"):
        make_runtime_dir(long)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StartRefused, match="chmod 700"):
        make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "open")}).config)
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="PYLON_RUNTIME_DIR is"):
        make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "file")}).config)


def test_child_env_round_trip() -> None:
    env = ChildEnv("http", "1", Path("/run/pylon"), 7, 4711)
    assert ChildEnv.from_environ(env.to_environ()) == env
    with pytest.raises(StartRefused, match="pylonctl start"):
        ChildEnv.from_environ({})


@pytest.mark.usefixtures("processes")
def test_the_supervisor_side_stays_without_gevent() -> None:
    code = (
        "import sys, pylon.bus.writer_port, pylon.bus.changes, pylon.bus.signals, "
        "pylon.bus.status, pylon.metrics, pylon.control; "
        "sys.exit(any(m.split('.')[0] == 'gevent' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
