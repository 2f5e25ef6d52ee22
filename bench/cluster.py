"""Cluster port: what one hop between nodes costs, beside a client of the shard's own node.

    python bench/cluster.py [--seconds 5] [--clients 100] [--rate 20] [--out FILE.json]

Three processes on this machine: the *owner* (the sockets of a shards worker, with a cluster port),
the *entry* (the worker that accepted the clients, with a link to the owner), and the clients. The
owner sends each client a frame of `--bytes` bytes, `--rate` times a second, and echoes texts.

*echo*: one client sends a text and waits for the answer; microseconds. *own*: each client gets a
frame of its own. *shared*: all clients get the same one. For these, CPU time of each process for a
frame, user and system, all threads (ZeroMQ's encrypts), and the bytes that the loopback carried
between the nodes for a frame, headers included. On a busy machine the CPU is the figure to compare.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import multiprocessing
import os
import resource
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

FORK = multiprocessing.get_context("spawn")
KEY = base64.b64encode(bytes(16)).decode()
UPGRADE = (
    "GET /?shard=arena HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
).encode()
NODE_A = "a"
ADDRESS = "127.0.0.1"


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            return int(rest.split()[0])
    return 0


def answer_asks(pipe: Any, answers: dict[str, Any]) -> None:
    """Answer the questions of the main process in a greenlet."""
    from gevent.hub import get_hub

    hub = get_hub()
    readable = hub.loop.io(pipe.fileno(), 1)  # no timer: its CPU would count for frames
    while True:
        hub.wait(readable)
        name, *arguments = pipe.recv()
        pipe.send(answers[name](*arguments))


def run_owner(pipe: Any, keys: Any, public: str, cluster_port: int, port: int) -> None:
    """The node of the shard: it serves clients of its own at `port` too."""
    import gevent

    from pylon.auth.origin import Origins
    from pylon.auth.sessions import ANONYMOUS_CALLER
    from pylon.clock import SystemClock, SystemRandom
    from pylon.cluster.peers import Peers
    from pylon.cluster.port import ClusterPort
    from pylon.storage.nodes import NodeFacts
    from workers import template  # noqa: F401  gevent's patches first
    from workers.hub.acceptor import Acceptor
    from workers.hub.connection import Connection
    from workers.hub.hub import Hub
    from workers.shards.tunnel_exits import ShardExits
    from workers.ws import frames, protocol
    from workers.ws.transport import WebSocketTransport

    clock = SystemClock()
    transport = WebSocketTransport("shards", 1 << 20, counts_addresses=False)
    transport.charge = lambda *args, **options: None  # type: ignore[method-assign]
    hub = Hub({}, transport, clock)
    handshakes = protocol.Handshakes(0, Origins(frozenset()), "s", deflates=False)

    class Handler:
        def open(self, request: Any, raw: Any, early: bytes, *, on_main_port: bool) -> None:
            handshake = handshakes.read(request, on_main_port=on_main_port)
            connection = Connection(raw, transport, hub, ANONYMOUS_CALLER, request.peer)
            hub.add(connection)
            connection.send(handshake.answer)
            connection.start(early)

        def refusal(self, error: Any, request: Any) -> bytes:
            return protocol.refusal(error)

    transport.on_text = lambda connection, text: connection.send(
        frames.encode(frames.TEXT, text.encode())
    ) and None
    peers = Peers()
    peers.replace([NodeFacts(NODE_A, "1", ("shards",), "1", curve_key=public)])
    handler: Any = Handler()
    ClusterPort(
        f"tcp://{ADDRESS}:{cluster_port}", keys, peers, clock, SystemRandom(),
        answer=lambda command: command, exits=ShardExits(handler),
    )
    listener = socket.create_server((ADDRESS, port), backlog=1024)
    listener.setblocking(False)
    Acceptor(listener, handler, clock).start()

    def send(seconds: float, rate: float, size_bytes: int, shared: bool) -> dict[str, float]:
        connections = hub.connections
        began_s, cpu, sent = time.monotonic(), cpu_s(), 0
        due_s = began_s
        while due_s < began_s + seconds:
            frame = frames.encode(frames.BINARY, os.urandom(size_bytes))
            for connection in connections:
                connection.send(frame if shared else frame[:-1] + b"x")
                sent += 1
            due_s += 1 / rate
            gevent.sleep(max(0.0, due_s - time.monotonic()))
        return {"frames": sent, "cpu_s": cpu_s() - cpu, "closed": len(connections) - len(hub)}

    answer_asks(pipe, {"send": send, "cpu": cpu_s, "clients": lambda: len(hub)})


def run_entry(pipe: Any, keys: Any, public: str, cluster_port: int, port: int) -> None:
    """The node that accepts the clients."""
    from pylon.auth.sessions import ANONYMOUS_CALLER
    from pylon.clock import SystemClock, SystemRandom
    from pylon.cluster.links import Links
    from pylon.realtime.placement import ShardHome
    from workers import template  # noqa: F401
    from workers.hub.acceptor import Acceptor
    from workers.hub.connection import Connection
    from workers.hub.hub import Hub
    from workers.shards.tunnel_entries import EntryTransport, TunnelEntries
    from workers.ws import protocol

    clock = SystemClock()
    sockets = Hub({}, EntryTransport(is_stream=False), clock)
    streams = Hub({}, EntryTransport(is_stream=True), clock)

    class Admission:
        def serve(self, hub: Hub) -> None:
            pass

        def enter_tunnel(self, raw: Any, address: str, hub: Hub) -> Connection:
            connection = Connection(raw, hub.transport, hub, ANONYMOUS_CALLER, address)
            hub.add(connection)
            return connection

    admission: Any = Admission()
    entries = TunnelEntries(
        Links(keys, clock, SystemRandom()), admission, sockets, streams, 0,
        lambda error, request: protocol.refusal(error),
    )
    home = ShardHome("b", "1", is_here=False, cluster_url=f"tcp://{ADDRESS}:{cluster_port}",
                     curve_key=public)

    class Handler:
        def open(self, request: Any, raw: Any, early: bytes, *, on_main_port: bool) -> None:
            entries.enter(home, request, raw, early, on_main_port=False, answer=b"")

        def refusal(self, error: Any, request: Any) -> bytes:
            return protocol.refusal(error)

    listener = socket.create_server((ADDRESS, port), backlog=1024)
    listener.setblocking(False)
    Acceptor(listener, Handler(), clock).start()
    answer_asks(pipe, {"cpu": cpu_s, "clients": lambda: len(sockets)})


def connect(port: int) -> socket.socket:
    sock = socket.create_connection((ADDRESS, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(UPGRADE)
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += sock.recv(4096)
    return sock


def run_clients(pipe: Any, port: int, count: int) -> None:
    """Read everything, and count the bytes."""
    import selectors

    selector = selectors.DefaultSelector()
    for _ in range(count):
        sock = connect(port)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    pipe.send("ready")
    total = 0
    while not pipe.poll(0):
        for key, _ in selector.select(0.05):
            sock = key.fileobj  # type: ignore[assignment]
            with contextlib.suppress(BlockingIOError):
                total += len(sock.recv(1 << 20))
    pipe.send(total)


def measure_echo(port: int, rounds: int) -> dict[str, float]:
    sock = connect(port)
    text = b"\x81\x94" + bytes(4) + b"x" * 20
    took = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        sock.sendall(text)
        left = 22
        while left:
            left -= len(sock.recv(left))
        took.append((time.perf_counter() - began_s) * 1e6)
        time.sleep(0.002)
    sock.close()
    took.sort()
    return {"p50_us": round(statistics.median(took)), "p99_us": round(took[len(took) * 99 // 100])}


def ask(pipe: Any, *question: Any) -> Any:
    pipe.send(question)
    return pipe.recv()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((ADDRESS, 0))
        return int(sock.getsockname()[1])


def measure_frames(
    owner: Any, entry: Any, port: int, args: argparse.Namespace, *, shared: bool, hop: bool
) -> dict[str, float]:
    ours, theirs = FORK.Pipe()
    clients = FORK.Process(target=run_clients, args=(theirs, port, args.clients), daemon=True)
    clients.start()
    assert ours.recv() == "ready"
    before, entry_cpu = loopback_bytes(), ask(entry, "cpu")
    sent = ask(owner, "send", args.seconds, args.rate, args.bytes, shared)
    time.sleep(0.3)
    frames = sent["frames"]
    result = {
        "frames": frames,
        "owner_cpu_us": round(sent["cpu_s"] / frames * 1e6, 1),
        "entry_cpu_us": round((ask(entry, "cpu") - entry_cpu) / frames * 1e6, 1) if hop else 0.0,
        "loopback_bytes": round((loopback_bytes() - before) / frames),
    }
    ours.send("stop")
    assert ours.recv() >= frames * args.bytes and not sent["closed"], "a frame is missing"
    clients.join()
    while ask(owner, "clients"):
        time.sleep(0.05)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--bytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from pylon.cluster.keys import make_key_pair

    a, b = make_key_pair(), make_key_pair()
    cluster_port, own_port, entry_port = free_port(), free_port(), free_port()
    owner, owner_end = FORK.Pipe()
    entry, entry_end = FORK.Pipe()
    processes = [
        FORK.Process(target=run_owner, args=(owner_end, b, a.public, cluster_port, own_port)),
        FORK.Process(target=run_entry, args=(entry_end, a, b.public, cluster_port, entry_port)),
    ]
    for process in processes:
        process.daemon = True
        process.start()
    ask(owner, "cpu"), ask(entry, "cpu")
    results: dict[str, list[Any]] = {}
    for _ in range(args.rounds):  # interleaved
        for name, port in (("direct", own_port), ("hop", entry_port)):
            results.setdefault(f"echo {name}", []).append(measure_echo(port, 500))
            for shared in (False, True):
                kind = "shared" if shared else "own"
                results.setdefault(f"{kind} {name}", []).append(measure_frames(
                    owner, entry, port, args, shared=shared, hop=name == "hop",
                ))
    medians = {
        name: {
            # Other programs use the loopback too: the least of the rounds is the nearest.
            key: (min if key == "loopback_bytes" else statistics.median)(
                [each[key] for each in rounds]
            ) for key in rounds[0]
        }
        for name, rounds in results.items()
    }
    for name, row in medians.items():
        print(f"{name:14} " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    if args.out is not None:
        args.out.write_text(json.dumps({"arguments": vars(args) | {"out": None},
                                        "medians": medians, "rounds": results}, indent=1))
    for process in processes:
        process.kill()


if __name__ == "__main__":
    main()
