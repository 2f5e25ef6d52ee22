"""`pylonctl top`: the running server live in the terminal: roles, rates, latencies, slowest routes.

Every period the verb reads the metrics and the status over the control socket, and shows what has
changed since the reading before. On a terminal it writes each frame over the last one, line by
line, so nothing flickers; q ends it. With `--once`, or where the output is no terminal, it prints
one frame as plain text.

Invariant: a frame has at most as many columns and lines as the terminal; 80 x 24 show everything
but the last routes. `make_frame` needs no terminal and no server.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import click

from pylon.cli.metrics import MetricSample, quantile, read_samples, seconds_text
from pylon.cli.running import Running, require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.doctor.findings import size_text

_ANSWER_S: Final = 10.0
_PLAIN_SIZE: Final = (80, 24)
_BEGIN: Final = "\x1b[?1049h\x1b[?25l"  # the other screen, no cursor
_END: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST: Final = "\x1b[J"
_BOLD: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[0m"
_ERRORS_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """The answers of the server at one time."""

    at_s: float  # monotonic
    status: Mapping[str, Any]
    samples: list[MetricSample] = field(default_factory=list)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        return sum(
            s.value for s in self.samples
            if s.name == name and all(s.labels.get(k) == v for k, v in labels.items())
        )

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of a metric by the values of one label."""
        found: dict[str, float] = defaultdict(float)
        for s in self.samples:
            if s.name == name and label in s.labels:
                found[s.labels[label]] += s.value
        return found

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Return the cumulative counts of a histogram by upper bound."""
        found: dict[float, float] = defaultdict(float)
        for s in self.samples:
            if s.name == f"{name}_bucket" and all(s.labels.get(k) == v for k, v in labels.items()):
                found[float(s.labels["le"])] += s.value
        return found


@click.command()
@click.option("--interval", "interval_s", type=click.FloatRange(0.2, 60), default=2.0,
              show_default=True, help="Seconds between two frames.")
@click.option("--once", is_flag=True, help="Print one frame as plain text.")
@dev_flag
def top(interval_s: float, once: bool, dev: bool) -> None:
    """Watch the running server: roles, rates, latencies, sockets, slowest routes. q ends it."""
    running = require_running(read_settings(dev=dev).config)
    before = read_server(running)
    if once or not sys.stdout.isatty():
        time.sleep(interval_s)
        click.echo("\n".join(make_frame(before, read_server(running), *_PLAIN_SIZE)))
        return
    with _screen():
        while not _key_pressed(interval_s):
            now = read_server(running)
            size = shutil.get_terminal_size(_PLAIN_SIZE)
            lines = make_frame(before, now, size.columns, size.lines)
            shown = [f"{_BOLD}{line}{_PLAIN}" if line.isupper() else line for line in lines]
            # One write; each line replaces the old one, so nothing is blank in between.
            frame = f"{_REST_OF_LINE}\r\n".join(shown)
            os.write(sys.stdout.fileno(), f"{_HOME}{frame}{_REST_OF_LINE}{_REST}".encode())
            before = now


def read_server(running: Running) -> Reading:
    """Read status and metrics of the server."""
    control = running.control(_ANSWER_S)
    page = control.ask("metrics", format="text")["body"]
    return Reading(time.monotonic(), control.ask("status"), read_samples(page))


def make_frame(before: Reading, now: Reading, columns: int, lines: int) -> list[str]:
    """Return the lines of a frame: what has happened between two readings."""
    passed_s = max(now.at_s - before.at_s, 0.001)
    found = [*_head(before, now, passed_s), "", *_roles(before, now, passed_s), "",
             *_errors(before, now, passed_s), *_routes(before, now, passed_s)]
    return [line[:columns].rstrip() for line in found[:lines]]


def _rate(before: Reading, now: Reading, passed_s: float, name: str, **labels: str) -> float:
    return max(0.0, now.total(name, **labels) - before.total(name, **labels)) / passed_s


def _latency(before: Reading, now: Reading, name: str, share: float, **labels: str) -> str:
    """The quantile of what happened between the readings; a dash if nothing did."""
    old, new = before.buckets(name, **labels), now.buckets(name, **labels)
    passed = [(bound, count - old.get(bound, 0.0)) for bound, count in new.items()]
    if not passed or max(count for _, count in passed) <= 0:
        return "-"
    return "≤" + seconds_text(quantile(passed, share))


def _head(before: Reading, now: Reading, passed_s: float) -> Iterator[str]:
    status = now.status
    state = "draining" if status.get("draining") else "ready" if status.get("ready") else (
        "NOT READY")
    yield (f"pylon {status.get('version')}  pid {status.get('pid')}  {state}  "
           f"up {seconds_text(float(status.get('uptime_s', 0)))}  "
           f"restarts {status.get('restarts', 0)}")
    duration = "pylon_http_request_duration_seconds"
    failed = sum(
        max(0.0, now.total("pylon_http_requests_total", status=code)
            - before.total("pylon_http_requests_total", status=code))
        for code in now.by_label("pylon_http_requests_total", "status") if code.startswith("5")
    ) / passed_s
    yield (f"requests {_rate(before, now, passed_s, 'pylon_http_requests_total'):.1f}/s  "
           f"5xx {failed:.1f}/s  p50 {_latency(before, now, duration, 0.5)}  "
           f"p99 {_latency(before, now, duration, 0.99)}")
    commits = "pylon_commit_duration_seconds"
    yield (f"writes {_rate(before, now, passed_s, 'pylon_group_commit_size_sum'):.1f}/s  "
           f"refused {_rate(before, now, passed_s, 'pylon_writes_refused_total'):.1f}/s  "
           f"commit p99 {_latency(before, now, commits, 0.99)}  "
           f"queue {now.total('pylon_write_queue_length'):.0f}")
    low = "  DISK LOW" if now.total("pylon_disk_low") else ""
    yield (f"database {size_text(float(status.get('db_bytes', 0)))}  "
           f"WAL {size_text(float(status.get('wal_bytes', 0)))}  "
           f"disk free {size_text(float(status.get('disk_free_bytes', 0)))}{low}")


def _roles(before: Reading, now: Reading, passed_s: float) -> Iterator[str]:
    yield f"{'ROLE':<12}{'READY':>7}{'CONNS':>8}{'CPU %':>8}{'MEMORY':>12}{'STALL':>9}"
    roles: dict[str, Any] = {"supervisor": {}, **now.status.get("roles", {})}
    for role, state in roles.items():
        cpu = 100 * _rate(before, now, passed_s, "process_cpu_seconds_total", role=role)
        memory = now.total("process_resident_memory_bytes", role=role)
        ready = f"{state['ready']}/{state['wanted']}" if state else ""
        stall_s = max((s.value for s in now.samples if s.name == "pylon_event_loop_stall_seconds"
                       and s.labels.get("role") == role), default=0.0)
        yield (f"{role:<12}{ready:>7}{state.get('connections', ''):>8}{cpu:>8.1f}"
               f"{size_text(memory):>12}{seconds_text(stall_s) if state else '':>9}")


def _errors(before: Reading, now: Reading, passed_s: float) -> Iterator[str]:
    old, new = (reading.by_label("pylon_http_errors_total", "code") for reading in (before, now))
    rates = {code: (count - old.get(code, 0.0)) / passed_s for code, count in new.items()}
    busy = sorted(((rate, code) for code, rate in rates.items() if rate > 0), reverse=True)
    if busy:
        shown = "  ".join(f"{code} {rate:.1f}/s" for rate, code in busy[:_ERRORS_SHOWN])
        yield f"errors: {shown}"
        yield ""


def _routes(before: Reading, now: Reading, passed_s: float) -> Iterator[str]:
    """The routes that took most of the time, the slowest on average first."""
    name = "pylon_http_request_duration_seconds"
    found = []
    for route, count in now.by_label(f"{name}_count", "route").items():
        calls = count - before.total(f"{name}_count", route=route)
        if calls > 0:
            spent_s = now.total(f"{name}_sum", route=route) - before.total(
                f"{name}_sum", route=route)
            found.append((spent_s / calls, calls / passed_s, route))
    yield f"{'MEAN':>9}{'P99':>10}{'PER S':>9}  SLOWEST ROUTES"
    for mean_s, rate, route in sorted(found, reverse=True):
        p99 = _latency(before, now, name, 0.99, route=route)
        yield f"{seconds_text(mean_s):>9}{p99:>10}{rate:>9.1f}  {route}"


@contextmanager
def _screen() -> Iterator[None]:
    """Use the terminal's other screen, and read single keys; undo both at the end."""
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd) if sys.stdin.isatty() else None
    try:
        if saved is not None:
            tty.setcbreak(fd)
        os.write(sys.stdout.fileno(), _BEGIN.encode())
        yield
    except KeyboardInterrupt:
        pass
    finally:
        os.write(sys.stdout.fileno(), _END.encode())
        if saved is not None:
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _key_pressed(wait_s: float) -> bool:
    """Wait, and return whether q was pressed meanwhile."""
    if not sys.stdin.isatty():
        time.sleep(wait_s)
        return False
    until_s = time.monotonic() + wait_s
    while (left_s := until_s - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0]:
            key = os.read(sys.stdin.fileno(), 1)
            if key in (b"q", b"Q", b"\x04", b""):
                return True
    return False
