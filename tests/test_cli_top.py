"""pylonctl top: a frame for people within 80 x 24, and live frames on a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from threading import Event, Thread

from pylon.cli.metrics import MetricSample
from pylon.cli.top import Reading, make_frame
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

DURATION = "pylon_http_request_duration_seconds"
BOUNDS = ("0.001", "0.1", "+Inf")
STATUS = {
    "version": "1", "pid": 7, "ready": True, "uptime_s": 7_200.0, "restarts": 0,
    "db_bytes": 1 << 20, "wal_bytes": 0, "disk_free_bytes": 1 << 33,
    "roles": {"http": {"ready": 2, "wanted": 2, "connections": 5}},
}


def reading(at_s: float, calls: dict[str, tuple[int, float]]) -> Reading:
    """What a server says that has answered `calls`: by route their number, and the time of each."""
    samples = []
    for route, (count, each_s) in calls.items():
        labels = {"route": route, "role": "http"}
        samples += [
            MetricSample(f"{DURATION}_count", labels, count),
            MetricSample(f"{DURATION}_sum", labels, count * each_s),
            *(MetricSample(f"{DURATION}_bucket", {**labels, "le": bound},
                           count if each_s <= float(bound) else 0) for bound in BOUNDS),
            MetricSample("pylon_http_requests_total",
                         {**labels, "status": "500" if route == "/bad" else "200"}, count),
        ]
    return Reading(at_s, STATUS, samples)


def test_a_frame_shows_what_happened_between_two_readings() -> None:
    before = reading(10.0, {"/fast": (1_000, 0.0005), "/slow": (10, 0.05), "/idle": (9, 0.01)})
    now = reading(12.0, {"/fast": (1_200, 0.0005), "/slow": (20, 0.05), "/idle": (9, 0.01),
                         "/bad": (4, 0.002)})
    text = "\n".join(make_frame(before, now, 80, 24))
    assert "requests 107.0/s  5xx 2.0/s  p50 ≤1.0 ms  p99 ≤100.0 ms" in text
    routes = re.findall(r"(\S+ \S+) +\S+ \S+ +(\S+)  (/\S+)$", text, re.MULTILINE)
    assert routes == [("50.0 ms", "5.0", "/slow"), ("2.0 ms", "2.0", "/bad"),
                      ("500 µs", "100.0", "/fast")]
    assert "up 2.0 h" in text and re.search(r"http +2/2 +5 ", text)


def test_a_frame_never_exceeds_the_terminal() -> None:
    many = {f"/route/{'x' * 100}/{n}": (n + 1, 0.01) for n in range(100)}
    for columns, lines in ((80, 24), (40, 10), (20, 3)):
        frame = make_frame(reading(0.0, {}), reading(1.0, many), columns, lines)
        assert len(frame) == lines and max(map(len, frame)) <= columns
    frame = make_frame(reading(0.0, {}), reading(0.0, {}), 80, 24)
    assert "p50 -" in "\n".join(frame), "nothing happened"


def test_once_prints_plain_text_of_a_running_server(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server()
    assert server.ctl("top", "--once").returncode == 69
    server.start()
    ended = Event()

    def load() -> None:
        while not ended.is_set():
            server.request("GET", "/api/entities/Tick", token=ADMIN_TOKEN)

    thread = Thread(target=load)
    thread.start()
    try:
        done = server.ctl("top", "--once", "--interval", "4")
    finally:
        ended.set()
        thread.join()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "/api/entities/{entity}" in done.stdout
    for role in ("supervisor", "http", "ws", "sse", "shards", "identity"):
        assert any(line.startswith(role) for line in lines), role


def test_live_frames_replace_each_other_and_q_ends(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server().start()
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(follower)
    received = bytearray()

    def read() -> None:
        try:
            while piece := os.read(leader, 65_536):
                received.extend(piece)
        except OSError:
            return

    thread = Thread(target=read, daemon=True)
    thread.start()
    command = [sys.executable, "-m", "pylon.cli.main", "top", "--interval", "0.3"]
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, env=server.full_env(), cwd=server.folder
    ) as process:
        wait_until("three frames", lambda: received.count(b"\x1b[H") >= 3)
        os.write(leader, b"q")
        assert process.wait(WAIT_S) == 0
    assert termios.tcgetattr(follower) == before, "the terminal is as it was"
    wait_until("the screen is given back", lambda: received.endswith(b"\x1b[?25h\x1b[?1049l"))
    assert received.startswith(b"\x1b[?1049h\x1b[?25l")
    assert b"\x1b[2J" not in received, "no frame clears the screen, which would flicker"
    frame = bytes(received).split(b"\x1b[H")[2]
    assert frame.count(b"\r\n") < 24
    os.close(follower)
    os.close(leader)
