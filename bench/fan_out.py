"""Fan-out: many subscribers, writers, and what it costs the server to bring the two together.

    python bench/fan_out.py [SCENARIO …] [--transport ws sse] [--seconds 10] [--out FOLDER]

Scenarios (`--list` names them): *paced* writes one row at a time, so that nothing gathers;
*full* writes batches as fast as the subscribers follow; *latency* is 50 writes a second; *stuck*
is latency with 10 clients that never read; *idle* is what silent sockets cost, and how long a
broadcast to all takes; *crash* kills the worker and waits until all clients are served again,
while 100 clients of the other transport are watched.

The subscribers (`subscribers.py`) and the writer are processes of their own, on the same cores as
the server. Every delivery is checked: exit code 1 when one is missing. Times of delivery are
from just before the write's request is sent to just after the subscriber's read. CPU per
delivery is the socket worker's alone, user and system; on a busy machine it is the figure to
compare. Sockets of one process are bounded by `ulimit -n`: larger scenarios use several workers
and say so.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
import server as srv
import subscribers

OFFSET = {"ws": 1, "sse": 2}
SPARE_DESCRIPTORS = 500
CONNECT_S = 120.0
SETTLE_S = 20.0
IDLE_S = 10.0
WATCHERS = 100
IN_FLIGHT = 1_500  # changes that full speed is ahead of the subscribers, at the most
BARE_SOCKETS = 200
BARE_ROUNDS = 25
BARE_FRAME = b"x" * 250
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Scenario:
    """One line of the table."""

    name: str
    subscribers: int
    rate: float = 0.0  # writes a second; 0: as fast as the subscribers follow
    batch: int = 1  # rows of one request
    stuck: int = 0
    guests: int = 0  # distinct sessions; 0: all are admins
    kind: str = "load"  # load, idle, crash


SCENARIOS = {
    each.name: each
    for each in (
        Scenario("latency", 1_000, rate=50),
        Scenario("stuck", 1_000, rate=50, stuck=10),
        Scenario("paced-1000", 1_000, rate=160),
        Scenario("paced-5000", 5_000, rate=26),
        Scenario("full-1000", 1_000, batch=100),
        Scenario("full-5000", 5_000, batch=100),
        Scenario("guests-1000", 1_000, batch=100, guests=200),
        Scenario("idle-10000", 10_000, kind="idle"),
        Scenario("idle-40000", 40_000, kind="idle"),
        Scenario("crash-10000", 10_000, rate=5, kind="crash"),
    )
}


class Group:
    """Subscribers of one port, in as many processes as their descriptors need."""

    def __init__(self, server: srv.Server, transport: str, count: int) -> None:
        self.progress: list[Any] = []
        self.pipes = []
        self.processes = []
        self.counts = []
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_DESCRIPTORS
        parts = math.ceil(count / room)
        for part in range(parts):
            ours, theirs = FORK.Pipe()
            progress = FORK.Value("q", 0, lock=False)
            process = FORK.Process(
                target=subscribers.run,
                args=(theirs, progress, server.port + OFFSET[transport], transport,
                      f"127.0.0.{2 + part}"),
                daemon=True,
            )
            process.start()
            self.pipes.append(ours)
            self.progress.append(progress)
            self.processes.append(process)
            self.counts.append(count // parts + (part < count % parts))

    def call(self, command: str, *args: Any) -> list[Any]:
        """Ask every process; their answers."""
        for pipe in self.pipes:
            pipe.send((command, *args))
        return [pipe.recv() for pipe in self.pipes]

    def connect(self, tokens: list[str], *, stuck: int = 0) -> float:
        """Connect all, and `stuck` more; the connections per second."""
        if stuck:
            self.pipes[0].send(("connect", stuck, tokens, True))
            self.pipes[0].recv()
            self.wait_live(stuck)
        before = sum(self.call("live"))
        started_s = time.monotonic()
        for pipe, count in zip(self.pipes, self.counts, strict=True):
            pipe.send(("connect", count, tokens, False))
            pipe.recv()
        self.wait_live(before + sum(self.counts))
        return sum(self.counts) / (time.monotonic() - started_s)

    def wait_live(self, count: int) -> None:
        """Wait until so many are connected."""
        deadline_s = time.monotonic() + CONNECT_S
        while sum(self.call("live")) < count:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"fan_out: {sum(self.call('live'))} of {count} are connected")
            time.sleep(0.05)

    def delivered(self) -> int:
        """Up to now, since `reset`."""
        return sum(each.value for each in self.progress)

    def stats(self) -> dict[str, Any]:
        """The processes' counts, added up."""
        parts = self.call("stats")
        out: dict[str, Any] = {
            key: sum(part[key] for part in parts)
            for key in ("delivered", "repeated", "missing", "reads", "closed", "cpu_s")
        }
        out["histogram"] = {}
        out["close_codes"] = {}
        for part in parts:
            for name in ("histogram", "close_codes"):
                for key, count in part[name].items():
                    out[name][key] = out[name].get(key, 0) + count
        out["span_s"] = (
            max(p["last_ns"] for p in parts) - min(p["first_ns"] for p in parts)
        ) / 1e9
        out["last_ns"] = max(p["last_ns"] for p in parts)
        out["back_ns"] = sorted(at for p in parts for at in p["back_ns"])
        out["handshakes_ns"] = sorted(at for p in parts for at in p["handshakes_ns"])
        return out

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(("quit",))
            pipe.recv()
            process.join()


class Writer:
    """A process that writes rows over one keep-alive connection."""

    def __init__(
        self, server: srv.Server, scenario: Scenario, seconds: float, group: Group
    ) -> None:
        self.written = FORK.Value("q", 0, lock=False)
        self._process = FORK.Process(
            target=self._run, args=(server.port, scenario, seconds, group.progress), daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._process.start()

    def join(self) -> int:
        """Wait for the end; how many rows were written."""
        self._process.join()
        if self._process.exitcode:
            raise SystemExit("fan_out: the writer failed")
        return int(self.written.value)

    def _run(
        self, port: int, scenario: Scenario, seconds: float, progress: list[Any]
    ) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started_s = time.monotonic()
        requests = 0
        while time.monotonic() - started_s < seconds:
            written = self.written.value
            if scenario.rate:
                wait_s = started_s + requests * scenario.batch / scenario.rate - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
            else:
                behind = written - sum(p.value for p in progress) / scenario.subscribers
                if behind > IN_FLIGHT:
                    time.sleep(0.001)
                    continue
            self._insert(sock, written, scenario.batch)
            self.written.value = written + scenario.batch
            requests += 1

    def _insert(self, sock: socket.socket, first: int, count: int) -> None:
        rows = [
            {"sku": f"f-{os.getpid()}-{number}", "shelf": "s", "count": number,
             "title": f"t-{time.monotonic_ns()}"}
            for number in range(first, first + count)
        ]
        body: Any = rows[0]
        path = "/api/entities/Item"
        if count > 1:
            path = "/api/sync/push"
            body = {"changes": [
                {"entity": "Item", "row_id": "x", "kind": "insert", "data": row} for row in rows
            ]}
        raw = json.dumps(body).encode()
        sock.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {srv.ADMIN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(65_536)
        head, _, rest = answer.partition(b"\r\n\r\n")
        size_bytes = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(rest) < size_bytes:
            rest += sock.recv(65_536)
        if head.split(b" ", 2)[1] not in (b"200", b"201") or b'"errors":["' in rest:
            raise SystemExit(f"fan_out: {head[:100]!r} {rest[:300]!r}")


def main() -> int:
    """Run scenarios and report; exit code 1 when a delivery is missing."""
    args = _arguments()
    if args.list:
        print("\n".join(SCENARIOS))
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    reports: list[dict[str, Any]] = []
    for name in args.scenarios:
        for transport in args.transport:
            report = _run(SCENARIOS[name], transport, args.seconds)
            report["bare_write_cpu_us"] = bare_write_us()
            reports.append(report)
            print(json.dumps({k: v for k, v in report.items() if k != "processes"}), flush=True)
            _save(args.out, reports)
    return 0 if all(report["missing"] == 0 for report in reports) else 1


def bare_write_us() -> float:
    """CPU of one `write` of a small frame to a loopback socket, and of nothing else, in µs: what
    a delivery cannot be cheaper than here and now."""
    with socket.create_server(("127.0.0.1", 0), backlog=BARE_SOCKETS) as listener:
        theirs = [socket.create_connection(listener.getsockname()) for _ in range(BARE_SOCKETS)]
        ours = [listener.accept()[0] for _ in theirs]
    times_us = []
    for _ in range(BARE_ROUNDS):
        began_s = time.process_time()
        for sock in ours:
            os.write(sock.fileno(), BARE_FRAME)
        times_us.append((time.process_time() - began_s) * 1e6 / BARE_SOCKETS)
    for sock in ours + theirs:
        sock.close()
    return round(statistics.median(times_us), 2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", default=["latency", "paced-1000", "full-1000"])
    parser.add_argument("--transport", nargs="+", choices=tuple(OFFSET), default=["ws", "sse"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/local"))
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    args = parser.parse_args()
    for name in args.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name}; there are: {', '.join(SCENARIOS)}")
    return args


def _run(scenario: Scenario, transport: str, seconds: float) -> dict[str, Any]:
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_DESCRIPTORS
    workers = math.ceil(scenario.subscribers / room)
    settings = {f"PYLON_{transport.upper()}_WORKERS": str(workers)}
    with srv.served(**settings) as server, _group(server, transport, scenario) as group:
        processes = server.processes()
        cold = server.usage(processes)
        tokens = [srv.ADMIN]
        if scenario.guests:
            tokens = [server.request("POST", "/api/auth/guest")["token"]
                      for _ in range(scenario.guests)]
        server.request("POST", "/api/entities/Item", srv.item(0))  # seq 1: all begin there
        rate = group.connect(tokens, stuck=scenario.stuck)
        idle = server.usage(processes)
        report: dict[str, Any] = {
            "scenario": scenario.name, "transport": transport, "workers": workers,
            "subscribers": scenario.subscribers, "connections_per_s": round(rate),
        }
        run = {"load": _load, "idle": _idle, "crash": _crash}[scenario.kind]
        report |= run(scenario, transport, seconds, server, group)
        report["processes"] = _processes(server, cold, idle)
        sockets = [name for name in processes if name.startswith(f"{transport}/")]
        report["rss_per_socket_bytes"] = round(
            sum(idle[n][0] - cold[n][0] for n in sockets) * 1024**2 / scenario.subscribers
        )
    return report


@contextmanager
def _group(server: srv.Server, transport: str, scenario: Scenario) -> Iterator[Group]:
    group = Group(server, transport, scenario.subscribers)
    try:
        yield group
    finally:
        group.close()


def _load(
    scenario: Scenario, transport: str, seconds: float, server: srv.Server, group: Group
) -> dict[str, Any]:
    group.call("reset")
    processes = server.processes()
    before = server.usage(processes)
    writer = Writer(server, scenario, seconds, group)
    writer.start()
    written = writer.join()
    wanted = written * scenario.subscribers
    _wait_delivered(group, wanted)
    after = server.usage(processes)
    stats = group.stats()
    cpu_s = sum(after[n][1] - before[n][1] for n in processes if n.startswith(f"{transport}/"))
    return {
        "writes_per_s": round(written / seconds, 1), "seconds": seconds,
        "deliveries": stats["delivered"],
        "deliveries_per_s": round(stats["delivered"] / stats["span_s"]),
        "missing": wanted - stats["delivered"], "closed": stats["closed"],
        "events_per_read": round(stats["delivered"] / max(1, stats["reads"]), 1),
        **_percentiles(stats["histogram"]),
        "worker_cpu_us_per_delivery": round(cpu_s * 1e6 / stats["delivered"], 2),
        "worker_cpu_share": round(cpu_s / stats["span_s"], 2),
        "load_tool_cpu_share": round(stats["cpu_s"] / stats["span_s"], 2),
    }


def _idle(
    scenario: Scenario, transport: str, seconds: float, server: srv.Server, group: Group
) -> dict[str, Any]:
    processes = server.processes()
    time.sleep(1.0)
    before = server.usage(processes)
    time.sleep(IDLE_S)
    after = server.usage(processes)
    group.call("reset")
    started_ns = time.monotonic_ns()
    server.request("POST", "/api/entities/Item",
                   srv.item(1) | {"title": f"t-{time.monotonic_ns()}"})
    _wait_delivered(group, scenario.subscribers)
    stats = group.stats()
    sockets = [name for name in processes if name.startswith(f"{transport}/")]
    return {
        "idle_cpu_share": round(sum(after[n][1] - before[n][1] for n in sockets) / IDLE_S, 4),
        "broadcast_ms": round((stats["last_ns"] - started_ns) / 1e6, 1),
        "deliveries": stats["delivered"], "missing": scenario.subscribers - stats["delivered"],
        "worker_rss_mib": [after[name][0] for name in sockets],
    }


def _crash(
    scenario: Scenario, transport: str, seconds: float, server: srv.Server, group: Group
) -> dict[str, Any]:
    """The worker is killed while rows are written; its clients come back. Others are watched."""
    other = "sse" if transport == "ws" else "ws"
    watchers = Group(server, other, WATCHERS)
    watchers.connect([srv.ADMIN])
    group.call("come_back", True)
    group.call("reset")
    watchers.call("reset")
    writer = Writer(server, scenario, seconds, group)
    writer.start()
    time.sleep(seconds / 3)
    calm = watchers.stats()["histogram"]
    watchers.call("forget_times")
    victim = server.processes()[f"{transport}/1"]
    killed_ns = time.monotonic_ns()
    os.kill(victim, signal.SIGKILL)
    written = writer.join()
    wanted = written * scenario.subscribers
    _wait_delivered(group, wanted)
    _wait_delivered(watchers, written * WATCHERS)
    stats, watched = group.stats(), watchers.stats()
    watchers.close()
    back_ns = [at for at in stats["back_ns"] if at > killed_ns]
    return {
        "writes_per_s": round(written / seconds, 1), "seconds": seconds,
        "clients_cut_off": stats["closed"], "clients_back": len(back_ns),
        "half_back_s": round((back_ns[len(back_ns) // 2] - killed_ns) / 1e9, 2),
        "all_back_s": round((back_ns[-1] - killed_ns) / 1e9, 2),
        "deliveries": stats["delivered"], "missing": wanted - stats["delivered"],
        "repeated": stats["repeated"], "others_missing": watched["missing"],
        "others_before": _percentiles(calm), "others_after": _percentiles(watched["histogram"]),
    }


def _wait_delivered(group: Group, wanted: int) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    while group.delivered() < wanted and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _percentiles(histogram: dict[int, int]) -> dict[str, float | None]:
    total = sum(histogram.values())
    out: dict[str, float | None] = {}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0)):
        seen = 0
        out[name] = None
        for bucket in sorted(histogram):
            seen += histogram[bucket]
            if seen >= share * total:
                out[name] = round((bucket + 1) * subscribers.STEP_NS / 1e6, 1)
                break
    return out


def _processes(server: srv.Server, cold: Any, idle: Any) -> dict[str, Any]:
    loaded = server.usage(server.processes())
    return {
        name: {
            "rss_cold_mib": cold.get(name, (None,))[0], "rss_idle_mib": idle.get(name, (None,))[0],
            "rss_loaded_mib": loaded[name][0], "cpu_s": round(loaded[name][1], 2),
        }
        for name in loaded
    }


def _save(folder: Path, reports: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = machine.fingerprint()
    whole = {"machine": fingerprint, "runs": reports}
    (folder / "fan_out.json").write_text(json.dumps(whole, indent=2) + "\n")
    head = f"Fan-out, server and load tool on the same machine: {machine.text(fingerprint)}."
    parts = [head, *(_markdown(report) for report in reports)]
    (folder / "fan_out.md").write_text("\n\n".join(parts) + "\n")


def _markdown(report: dict[str, Any]) -> str:
    lines = [f"### {report['scenario']}, {report['transport']}", "", "| figure | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in report.items() if key != "processes"]
    lines += ["", "| process | RSS cold MiB | RSS idle MiB | RSS loaded MiB | CPU s |",
              "|---|---|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join(str(value) for value in figures.values()) + " |"
        for name, figures in report["processes"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
