"""Realtime shards under load: ticks in time, inputs that arrive, snapshots that come.

    python bench/shards.py [SCENARIO …] [--seconds 10] [--out FOLDER]

*many* is 100 shards with 10 players each, who send 2 inputs a second; *crowd* is one shard with
500 players and a shared snapshot of 2 KB; *city* is one with 500 who see only what is near them
(`snapshot_for` with a `Grid`); *idle* is 1,000 shards without anybody; *soak* is *many* for
`--soak-seconds`, with RSS before and after. All on one shards worker.

Lateness is the server's own histogram: the figure is the bound of the bucket that the 99th
percentile lies in. A round trip is from an input to the first snapshot that acknowledges it, in
ticks of 50 ms. Inputs are counted from the first one on, those of the warm-up among them. The
players are one process with one epoll set, on the same cores as the server.
Exit code 1 when an input was lost, or applied twice.
"""

from __future__ import annotations

import argparse
import base64
import heapq
import json
import os
import re
import select
import socket
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
import server as srv

TICK_S = 0.05
SETTLE_S = 10.0
WARM_S = 2.0
INPUT = b'{"input":{"x":0.5,"y":-0.5},"client_seq":%d}'
ACK = re.compile(rb'"client_seq":(\d+)')
SCENARIOS = ("many", "crowd", "city", "idle", "soak")


@dataclass
class Player:
    """One connection."""

    sock: socket.socket
    seq: int = 0
    acked: int = 0
    sent_s: float = 0.0
    rest: bytes = b""
    frames: int = 0


@dataclass(frozen=True)
class Row:
    """What a scenario came to."""

    scenario: str
    shards: int
    players: int
    seconds: float
    ticks_per_s: float
    late_p99_below_ms: float | None
    late_over_10_ms: int
    frames_per_s: float
    inputs_sent: int
    inputs_applied: int
    round_trip_ticks_p50: float | None
    round_trip_ticks_p99: float | None
    cpu_percent: float  # of one core, of the shards worker
    rss_before_mib: float
    rss_after_mib: float


class Load:
    """All players."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.epoll = select.epoll()
        self.players: dict[int, Player] = {}
        self.round_trips_s: list[float] = []
        self.sent = 0

    def join(self, shard: str, sid: str) -> None:
        """Connect a player and wait for the handshake."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(
            f"GET /?shard={shard}&sid={sid}&ack=1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Authorization: Bearer {srv.ADMIN}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            part = sock.recv(4096)
            if not part:
                raise RuntimeError(f"not let in: {head!r}")
            head += part
        if b" 101 " not in head[:20]:
            raise RuntimeError(f"not let in: {head!r}")
        sock.setblocking(False)
        player = Player(sock, rest=head.partition(b"\r\n\r\n")[2])
        self.players[sock.fileno()] = player
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def play(self, seconds: float, inputs_per_s: float) -> None:
        """Send inputs, evenly over time and players, and take what comes."""
        now_s = time.monotonic()
        end_s = now_s + seconds
        period_s = 1.0 / inputs_per_s if inputs_per_s else None
        due: list[tuple[float, int]] = []
        if period_s is not None:
            for index, fd in enumerate(self.players):
                due.append((now_s + period_s * index / len(self.players), fd))
        heapq.heapify(due)
        while now_s < end_s:
            while due and due[0][0] <= now_s:
                at_s, fd = heapq.heappop(due)
                self._say(self.players[fd])
                heapq.heappush(due, (at_s + (period_s or 0.0), fd))
            wait_s = min(end_s, due[0][0] if due else end_s) - now_s
            self._take(max(0.0, wait_s))
            now_s = time.monotonic()

    def settle(self) -> None:
        """Wait until every input is acknowledged, or `SETTLE_S`."""
        end_s = time.monotonic() + SETTLE_S
        while time.monotonic() < end_s and any(p.acked < p.seq for p in self.players.values()):
            self._take(0.05)

    def _say(self, player: Player) -> None:
        player.seq += 1
        text = INPUT % player.seq
        mask = b"\x11\x22\x33\x44"
        body = bytes(byte ^ mask[index & 3] for index, byte in enumerate(text))
        player.sock.send(bytes((0x81, 0x80 | len(text))) + mask + body)
        player.sent_s = time.monotonic()
        self.sent += 1

    def _take(self, wait_s: float) -> None:
        for fd, _ in self.epoll.poll(wait_s, 1_024):
            player = self.players[fd]
            data = player.sock.recv(1 << 18)
            if not data:
                raise RuntimeError("the server closed a player's socket")
            self._read(player, player.rest + data)

    def _read(self, player: Player, data: bytes) -> None:
        at = 0
        while len(data) - at >= 2:
            size, head = data[at + 1], 2
            if size == 126:
                if len(data) - at < 4:
                    break
                size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            if len(data) - at < head + size:
                break
            if data[at] == 0x82:
                player.frames += 1
                if player.acked < player.seq:
                    self._acknowledged(player, data[at + head : at + head + size])
            elif data[at] == 0x89:
                player.sock.send(b"\x8a\x80\0\0\0\0")
            elif data[at] == 0x88:
                raise RuntimeError(f"a player was sent away: {data[at:]!r}")
            at += head + size
        player.rest = data[at:]

    def _acknowledged(self, player: Player, frame: bytes) -> None:
        found = ACK.search(frame, max(0, len(frame) - 120))
        if found is not None and int(found[1]) > player.acked:
            player.acked = int(found[1])
            if player.acked == player.seq:
                self.round_trips_s.append(time.monotonic() - player.sent_s)

    def frames(self) -> int:
        """How many snapshots have come."""
        return sum(player.frames for player in self.players.values())


def metrics(port: int) -> dict[str, float]:
    """The server's samples of shards, by name and labels."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics",
        headers={"Authorization": f"Bearer {srv.ADMIN}", "Accept": "text/plain"},
    )
    out = {}
    with urllib.request.urlopen(request, timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("pylon_shard"):
                name, _, value = line.rpartition(" ")
                out[name] = float(value)
    return out


def _grown(name: str, before: dict[str, float], after: dict[str, float]) -> float:
    """By how much a counter has grown, whatever its labels."""
    return sum(
        value - before.get(key, 0.0) for key, value in after.items() if key.split("{")[0] == name
    )


def _settled(port: int, inputs: int) -> dict[str, float]:
    """The counts once they have all inputs, or do not grow any more: heartbeats bring them."""
    seen = -1.0
    while True:
        time.sleep(1.5)
        after = metrics(port)
        now = _grown("pylon_shard_inputs_total", {}, after)
        if now >= inputs or now == seen:
            return after
        seen = now


def late(before: dict[str, float], after: dict[str, float]) -> tuple[float | None, int]:
    """The bound in ms of the bucket that p99 lies in (None: the last), and ticks over 10 ms."""
    buckets = []
    for name, value in after.items():
        found = re.search(r'pylon_shard_tick_lateness_seconds_bucket\{.*\ble="([^"]+)"', name)
        if found and 'role="shards"' in name:
            buckets.append((float(found[1]), value - before.get(name, 0.0)))
    buckets.sort()
    if not buckets or not buckets[-1][1]:
        return None, 0
    total = buckets[-1][1]
    bound = next(le for le, count in buckets if count >= 0.99 * total)
    within = max(count for le, count in buckets if le <= 0.0101)
    return (None if bound == float("inf") else bound * 1e3), int(total - within)


def run(scenario: str, seconds: float) -> Row:
    """Start a server, load it, and look."""
    app = str(Path(__file__).parent / "shards_app.py")
    with srv.served(PYLON_APP=app, PYLON_SHARD_WORKERS="1") as server:
        load = Load(server.port + 3)
        shards = {"many": 100, "soak": 100, "crowd": 1, "city": 1, "idle": 1_000}[scenario]
        rate = 0.0 if scenario == "idle" else 2.0
        for number in range(shards):
            if scenario == "idle":
                server.request("POST", "/api/shards", {"id": f"small:{number}"})
            elif scenario in ("crowd", "city"):
                for player in range(500):
                    load.join(f"{scenario}:1", f"p{player}")
            else:
                for player in range(10):
                    load.join(f"small:{number}", f"p{player}")
        load.play(WARM_S, rate)
        load.settle()
        worker = {"shards": server.processes()["shards/1"]}
        before, frames = metrics(server.port), load.frames()
        load.round_trips_s.clear()
        rss_before, cpu_before = server.usage(worker)["shards"]
        began_s = time.monotonic()
        load.play(seconds, rate)
        load.settle()
        spent_s = time.monotonic() - began_s
        rss_after, cpu_after = server.usage(worker)["shards"]
        after = _settled(server.port, load.sent)
        ticks_s = time.monotonic() - began_s

        def counted(name: str) -> float:
            return _grown(name, before, after)

        bound_ms, over = late(before, after)
        trips = [trip / TICK_S for trip in load.round_trips_s]
        cuts = quantiles(trips, n=100) if len(trips) > 1 else None
        return Row(
            scenario, shards, len(load.players), round(spent_s, 1),
            round(counted("pylon_shard_ticks_total") / ticks_s, 1), bound_ms, over,
            round((load.frames() - frames) / spent_s, 1), load.sent,
            int(_grown("pylon_shard_inputs_total", {}, after)),
            round(cuts[49], 2) if cuts else None, round(cuts[98], 2) if cuts else None,
            round(100 * (cpu_after - cpu_before) / spent_s, 1), rss_before, rss_after,
        )


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| | shards | players | ticks/s | lateness p99 | ticks over 10 ms late | frames/s "
        "| inputs sent, applied | round trip p50, p99 in ticks | CPU of a core | RSS MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bound = "-" if row.late_p99_below_ms is None else f"below {row.late_p99_below_ms:g} ms"
        lines.append(
            f"| {row.scenario}, {row.seconds:g} s | {row.shards} | {row.players} "
            f"| {row.ticks_per_s:,} | {bound} | {row.late_over_10_ms} | {row.frames_per_s:,} "
            f"| {row.inputs_sent:,}, {row.inputs_applied:,} "
            f"| {row.round_trip_ticks_p50 or '-'}, {row.round_trip_ticks_p99 or '-'} "
            f"| {row.cpu_percent} % | {row.rss_before_mib} → {row.rss_after_mib} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the scenarios; exit code 1 when an input was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--soak-seconds", type=float, default=600.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    unknown = sorted(set(options.scenarios) - set(SCENARIOS))
    if unknown:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    rows = []
    for scenario in options.scenarios or SCENARIOS[:4]:
        rows.append(run(scenario, options.soak_seconds if scenario == "soak" else options.seconds))
        print(table(rows[-1:]), flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine.fingerprint(), "shards": [asdict(row) for row in rows],
        }
        (options.out / "shards.json").write_text(json.dumps(told, indent=1) + "\n")
        (options.out / "shards.md").write_text(table(rows) + "\n")
    lost = [row.scenario for row in rows if row.inputs_applied != row.inputs_sent]
    if lost:
        print(f"inputs sent and applied differ: {', '.join(lost)}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
