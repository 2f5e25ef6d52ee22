"""The load tools in bench/ run, and what they report is what happened."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"

WRK = """Running 1s test @ http://127.0.0.1:1
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.00ms    2.00ms   3.00ms   90.00%
  Latency Distribution
     50%  850.00us
     75%    1.00ms
     90%    2.00ms
     99%    1.25s
  100 requests in 1.00s, 1.00MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:   1234.50
"""


def test_wrk_output_is_understood() -> None:
    spec = importlib.util.spec_from_file_location("http_load", BENCH / "http_load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.parse_wrk(WRK) == {
        "requests_per_s": 1234.5, "p50_ms": 0.85, "p99_ms": 1250.0, "errors": 15,
    }


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


@pytest.mark.processes
@pytest.mark.parametrize("transport", ["ws", "sse"])
def test_fan_out_delivers_everything(transport: str, tmp_path: Path) -> None:
    report = run(
        "fan_out.py", tmp_path, "--transport", transport, "--subscribers", "20",
        "--rate", "10", "--seconds", "1",
    )
    assert (report["deliveries"], report["missing"]) == (200, 0)


@pytest.mark.processes
@pytest.mark.slow
def test_http_load_has_no_errors(program: Callable[[str, str], str], tmp_path: Path) -> None:
    program("wrk", "wrk")
    report = run("http_load.py", tmp_path, "--seconds", "1", "--connections", "4")
    lines = report["requests"]
    assert isinstance(lines, list) and len(lines) == 14
    assert [line["name"] for line in lines if line["errors"] or not line["requests_per_s"]] == []
