"""pylonctl logs and metrics: filters, rotation while it follows, units."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylon.cli.logs import LogFilter, since_s
from pylon.cli.metrics import quantile, read_samples, read_views
from pylon.data_dir_lock import log_file_of
from pylon.errors import InvalidData
from tests.support.cli import Ctl
from tests.support.server import PylonServer
from tests.support.wait import WAIT_S, wait_until

NOON = 1_700_000_000.0
RECORDS = (
    {"level": "info", "ts": NOON, "event": "ready", "role": "supervisor"},
    {"level": "warning", "ts": NOON + 60, "event": "child.died", "role": "supervisor"},
    {"level": "info", "ts": NOON + 120, "event": "request", "role": "http", "request_id": "r-1"},
    {"level": "error", "ts": NOON + 180, "event": "child.silent", "role": "supervisor",
     "trace": "line 1\nline 2"},
)


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    path = tmp_path / "server.log"
    path.write_text("a line of another program\n"
                    + "".join(f"{json.dumps(record)}\n" for record in RECORDS))
    return path


@pytest.mark.parametrize(
    ("args", "events"),
    [
        ((), ["ready", "child.died", "request", "child.silent"]),
        (("--level", "warning"), ["child.died", "child.silent"]),
        (("--role", "http"), ["request"]),
        (("--event", "child.*"), ["child.died", "child.silent"]),
        (("--event", "child.died"), ["child.died"]),
        (("--request-id", "r-1"), ["request"]),
        (("--since", "2023-11-14T22:15:00+00:00"), ["request", "child.silent"]),
        (("-n", "1"), ["child.silent"]),
    ],
    ids=lambda value: " ".join(value) or "all",
)
def test_filters(ctl: Ctl, log_path: Path, args: tuple[str, ...], events: list[str]) -> None:
    done = ctl("logs", "--json", "--file", str(log_path), *args)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert [json.loads(line)["event"] for line in lines] == events
    assert ("another program" in done.stdout) is (not args)


def test_lines_for_people_have_no_colours_in_a_pipe(ctl: Ctl, log_path: Path) -> None:
    text = ctl("logs", "--file", str(log_path)).stdout
    assert "\x1b" not in text
    assert "http       request request_id=r-1" in text and "\nline 2\n" in text


def test_colours_on_a_terminal(ctl: Ctl, log_path: Path) -> None:
    command = [sys.executable, "-m", "pylon.cli.main", "logs", "--file", str(log_path)]
    leader, follower = os.openpty()
    with subprocess.Popen(command, stdout=follower, stdin=subprocess.DEVNULL) as process:
        process.wait(WAIT_S)
        os.close(follower)
        assert b"\x1b[33mwarning" in os.read(leader, 65_536)
    os.close(leader)


def test_bad_since_is_refused_with_examples(ctl: Ctl, log_path: Path) -> None:
    done = ctl("logs", "--file", str(log_path), "--since", "yesterday")
    assert done.returncode == 1 and "10m, 2h, 1d" in done.stderr
    assert since_s("2h", 10_000.0) == 2_800.0
    with pytest.raises(InvalidData):
        since_s("10 weeks", 0.0)


def test_request_ids_are_found_under_each_of_their_names() -> None:
    wanted = LogFilter(request_id="r")
    found = [key for key in ("request_id", "request", "x") if wanted.takes({key: "r"})]
    assert found == ["request_id", "request"]


@pytest.fixture
def following(ctl: Ctl, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A log file, and the output of a `pylonctl logs --follow` of it."""
    log, out = log_file_of(tmp_path / "app.db"), tmp_path / "out"
    log.write_text(json.dumps(RECORDS[0]) + "\n")
    env = {**os.environ, "PYLON_DB_PATH": str(tmp_path / "app.db")}
    command = [sys.executable, "-m", "pylon.cli.main", "logs", "-f", "--json"]
    with out.open("wb") as file, subprocess.Popen(command, stdout=file, env=env) as process:
        try:
            wait_until("it has begun", lambda: "ready" in out.read_text())
            yield log, out
        finally:
            process.kill()


def test_following_goes_on_in_the_new_file(following: tuple[Path, Path]) -> None:
    log, out = following
    with log.open("a") as before:
        before.write(json.dumps(RECORDS[1]) + "\n")
        before.flush()
        wait_until("a line", lambda: "child.died" in out.read_text())
        log.rename(f"{log}.1")
        before.write(json.dumps(RECORDS[2]) + "\n")
    log.write_text(json.dumps(RECORDS[3]) + "\n")
    wait_until("the new file", lambda: "child.silent" in out.read_text())
    found = [json.loads(line)["event"] for line in out.read_text().splitlines()]
    assert found == [record["event"] for record in RECORDS]


PAGE = """\
# HELP pylon_wal_size_bytes Size of the WAL.
# TYPE pylon_wal_size_bytes gauge
pylon_wal_size_bytes 2097152.0
# HELP pylon_commit_duration_seconds Time of a commit.
# TYPE pylon_commit_duration_seconds histogram
pylon_commit_duration_seconds_bucket{le="0.001"} 50.0
pylon_commit_duration_seconds_bucket{le="0.01"} 99.0
pylon_commit_duration_seconds_bucket{le="+Inf"} 100.0
pylon_commit_duration_seconds_count 100.0
pylon_commit_duration_seconds_sum 0.2
# HELP pylon_bus_dropped_total Lost.
# TYPE pylon_bus_dropped_total counter
pylon_bus_dropped_total{channel="status"} 0.0
"""


def test_metrics_have_units_and_histograms_their_quantiles() -> None:
    shown = {view.name: view.lines for view in read_views(PAGE)}
    assert shown == {
        "pylon_wal_size_bytes": (("", "2.0 MiB"),),
        "pylon_commit_duration_seconds": (
            ("", "100 times, mean 2.0 ms, p50 up to 1.0 ms, p99 up to 10.0 ms"),),
    }
    assert "pylon_bus_dropped" in {view.name for view in read_views(PAGE, shows_zero=True)}
    assert len(read_samples(PAGE)) == 7
    assert quantile([], 0.5) == 0.0


def test_metrics_of_a_running_server(make_server: Callable[..., PylonServer]) -> None:
    server = make_server()
    assert server.ctl("metrics").returncode == 69
    server.start()
    text = server.ctl("metrics", "--grep", "workers").stdout
    assert "== workers" in text and "role=ws: 1" in text and "pylon_db" not in text
    body = json.loads(server.ctl("metrics", "--json", "--grep", "pylon_db_size").stdout)
    assert [metric["name"] for metric in body["metrics"]] == ["pylon_db_size_bytes"]
    assert server.ctl("metrics", "--grep", "no such thing").stdout.startswith("no such metric")
