"""The load tools in bench/ run, and what they report is what happened."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import PostgresServer

BENCH = Path(__file__).parent.parent / "bench"

WRK = """Running 1s test @ http://127.0.0.1:1
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.00ms    2.00ms   3.00ms   90.00%
  Latency Distribution
     50%  850.00us
     75%    1.00ms
     90%    2.00ms
     99%    1.25s
     99.9%    1.50s
  100 requests in 1.00s, 1.00MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:   1234.50
"""


def load(name: str) -> Any:
    """A tool as a module. They import each other by their short names."""
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCH))


def test_wrk_output_is_understood() -> None:
    assert load("http_load").parse_wrk(WRK) == {
        "requests_per_s": 1234.5, "p50_ms": 0.85, "p99_ms": 1250.0, "p999_ms": 1500.0,
        "errors": 15,
    }


def test_a_line_is_the_median_run_with_the_errors_of_all() -> None:
    runs = [{"requests_per_s": rate, "p99_ms": rate / 10, "errors": 1} for rate in (30, 10, 20)]
    median_run = load("http_load").median_run
    assert median_run(runs) == {"requests_per_s": 20, "p99_ms": 2.0, "errors": 3}
    assert median_run(runs[:2])["requests_per_s"] == 10


def result(folder: Path, at: str, *, cpu: str, yardstick: float, rate: float, rss: float) -> Path:
    """A run as the tools write it."""
    folder.mkdir()
    (folder / "http_load.json").write_text(json.dumps({
        "at": at,
        "machine": {"cpu": cpu, "cores": 2, "kernel": "6", "python": "3", "sqlite": "3"},
        "requests": [
            {"name": "stock", "connections": 64, "requests_per_s": yardstick, "yardstick": True},
            {"name": "insert", "connections": 64, "requests_per_s": rate},
        ],
        "processes": {
            "supervisor": {"rss_loaded_mib": 1}, "all processes": {"rss_loaded_mib": rss},
        },
    }))
    (folder / "data_plane.json").write_text(json.dumps({
        "machine": "a text", "operations": [
            {"operation": "update", "ops_per_s": 10 * rate}, {"operation": "x", "ops_per_s": None},
        ],
    }))
    return folder


def test_runs_are_compared_as_multiples_of_their_yardsticks(tmp_path: Path) -> None:
    earlier = [
        result(tmp_path / "old", "2026-01-01", cpu="A", yardstick=1.0, rate=1.0, rss=1.0),
        result(tmp_path / "new", "2026-01-02", cpu="A", yardstick=1_000, rate=5_000, rss=200.0),
        result(tmp_path / "far", "2026-01-03", cpu="B", yardstick=1.0, rate=1.0, rss=1.0),
    ]
    # The machine is half as fast today, and inserts are not.
    now = result(tmp_path / "now", "2026-02-01", cpu="A", yardstick=500, rate=5_000, rss=100.0)
    lines = load("compare").comparison(now, earlier).splitlines()
    assert "| insert, 64 connections, requests/s | 5,000 | 5,000 | 2.00 |" in lines
    assert "| update, ops/s | 50,000 | 50,000 | 2.00 |" in lines
    assert "| RSS, all processes, MiB | 200 | 100 | 2.00 |" in lines
    assert any("Before: 2026-01-02" in line for line in lines)


def test_without_a_result_of_this_machine_it_says_so(tmp_path: Path) -> None:
    far = result(tmp_path / "far", "2026-01-03", cpu="B", yardstick=1.0, rate=1.0, rss=1.0)
    now = result(tmp_path / "now", "2026-02-01", cpu="A", yardstick=500, rate=5_000, rss=100.0)
    report = load("compare").comparison(now, [far])
    assert "No committed result is of this machine (1 of other machines" in report
    assert "| insert, 64 connections, requests/s | - | 5,000 | - |" in report


def test_this_machine_has_a_fingerprint() -> None:
    machine = load("machine")
    found = machine.fingerprint()
    assert set(found) == {"cpu", "cores", "kernel", "python", "sqlite"}
    assert all(found.values())
    assert str(found["cpu"]) in machine.text(found)


def run(tool: str, out: Path, *args: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(BENCH / tool), "--out", str(out), *args],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.json")
    assert path.with_suffix(".md").read_text().count("| supervisor |") == 1
    report: dict[str, object] = json.loads(path.read_text())
    return report


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("transport", ["ws", "sse"])
def test_fan_out_delivers_everything(transport: str, tmp_path: Path) -> None:
    report = run("fan_out.py", tmp_path, "latency", "--transport", transport, "--seconds", "0.5")
    runs = report["runs"]
    assert isinstance(runs, list) and len(runs) == 1
    assert runs[0]["deliveries"] > 0 == runs[0]["missing"]


@pytest.mark.usefixtures("processes")
@pytest.mark.slow
def test_http_load_has_no_errors(program: Callable[[str, str], str], tmp_path: Path) -> None:
    program("wrk", "wrk")
    report = run(
        "http_load.py", tmp_path, "--seconds", "1", "--repeats", "1", "--connections", "4"
    )
    lines = report["requests"]
    wanted = sum(len(requests) for _, requests, _ in load("http_load").PHASES)
    assert isinstance(lines, list) and len(lines) == 1 + wanted
    assert [line["name"] for line in lines if line["errors"] or not line["requests_per_s"]] == []
    processes = report["processes"]
    assert isinstance(processes, dict)
    of_a_phase = {name: usage for name, usage in processes.items() if "," not in name}
    whole = of_a_phase.pop("all processes")["rss_loaded_mib"]
    # Those that the app has; more roles may come to be part of every server.
    assert of_a_phase.keys() >= {
        "supervisor", "http arbiter", "http/1", "http/2", "ws/1", "sse/1", "shards/1",
    }
    assert sum(usage["rss_loaded_mib"] for usage in of_a_phase.values()) == pytest.approx(
        whole, abs=0.01  # the sum is rounded
    )


def ran(tool: str, out: Path, *args: str) -> tuple[int, Any]:
    """Exit code and report of a tool that is above its bar on a busy machine."""
    done = subprocess.run(
        [sys.executable, str(BENCH / tool), "--out", str(out), *args],
        capture_output=True, text=True, timeout=240, check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    (path,) = out.glob("*.json")
    return done.returncode, json.loads(path.read_text())


@pytest.mark.usefixtures("processes")
@pytest.mark.slow
def test_abuse_shows_what_others_see_of_an_attack(tmp_path: Path) -> None:
    _, report = ran(
        "abuse.py", tmp_path, "--seconds", "1", "--items", "500", "--attacks", "6 guests"
    )
    assert [run["attack"] for run in report["runs"]] == ["none", "6 guests"]
    for found in report["runs"]:
        assert (found["others_failed"], found["undelivered"], found["restarts"]) == (0, 0, 0)
    assert report["runs"][1]["attacker_saw"]["429"] > 0


@pytest.mark.usefixtures("processes")
@pytest.mark.slow
def test_a_crowd_that_comes_back_is_sent_everything(tmp_path: Path) -> None:
    code, report = ran("crowd.py", tmp_path, "--clients", "20", "--events", "1500")
    assert (code, report["clients_without_the_end"]) == (0, 0)


@pytest.mark.usefixtures("processes")
@pytest.mark.slow
def test_a_reload_under_load_drops_nothing() -> None:
    """The measurement of restarts at a small scale; its exit code says whether anything is lost."""
    done = subprocess.run(
        [sys.executable, str(BENCH / "restart.py"), "--rate", "100", "--sockets", "10",
         "--seconds", "1.5", "--only", "reload"],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["requests"] > found["written"] > 0 < found["events"]
    assert (found["sockets"], found["reconnected"], found["close_codes"]) == (10, 10, {"1012": 10})


@pytest.mark.usefixtures("processes")
@pytest.mark.slow
def test_a_drain_answers_requests_and_closes_sockets() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "drain.py"), "--sockets", "20", "--requests", "4"],
        capture_output=True, text=True, timeout=100, check=False,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["exit"], found["answers"], found["close_codes"]) == (0, {"201": 4}, {"1001": 20})


@pytest.mark.usefixtures("processes")
@pytest.mark.slow
def test_windows_are_what_queries_answer_after_the_measurement(tmp_path: Path) -> None:
    code, report = ran(
        "windows.py", tmp_path, "--rows", "3000", "--windows", "30", "--live", "20",
        "--seconds", "2", "--writes-per-s", "40",
    )
    assert (code, report["differing"], report["missing"]) == (0, 0, 0)
    assert report["delivered"] > 20


@pytest.mark.usefixtures("processes")
@pytest.mark.slow
def test_every_answer_of_the_chat_is_right(tmp_path: Path) -> None:
    code, report = ran(
        "chat.py", tmp_path / "out", "--messages", "4000", "--rooms", "40", "--people", "60",
        "--seconds", "0.5", "--windows", "60", "--live", "30", "--writes-per-s", "200",
        "--listeners", "10", "--changes", "10", "--cache", str(tmp_path / "cache"),
    )
    parts = load("chat").PARTS
    assert [report[name].get("wrong") for name in parts] == [None] * len(parts)
    assert code == 0
    found = report["members"]
    assert found["stranger_events"] == 0 and found["rows_each"] > 100
    assert found["large"]["pull_from_cursor"] == 410


@pytest.mark.usefixtures("processes", "postgres_server")
@pytest.mark.slow
@pytest.mark.parametrize(("tool", "args", "said"), [
    ("node_writes.py", ["--nodes", "2", "--seconds", "0.2", "--repeats", "1"], "2 nodes to one"),
    ("store_writes.py", ["--batches", "4", "--rows", "20", "--repeats", "1"], "of sqlite full"),
    ("server_costs.py", ["--snapshot-s", "1", "--relay-s", "0.2"], "relay, batches of 500"),
], ids=["nodes", "stores", "server"])
def test_the_tools_of_postgresql_measure(
    tool: str, args: list[str], said: str, postgres_server: PostgresServer
) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / tool), "--url", postgres_server.url, *args],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
