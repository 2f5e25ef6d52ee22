"""Load over HTTP with wrk, against a server of its own on loopback.

    python bench/http_load.py [--seconds 5] [--repeats 3] [--connections 16 64] [--out FOLDER]

Prints requests/s, p50, p99 and errors of each kind of request, and RSS and CPU of each process;
writes them as JSON and Markdown, with what they were measured on. A line is the run with the
median rate of `repeats` runs; errors are those of all of them. What is asked, and in which order,
is the same each time (seeds are fixed). Bounded: about `seconds` for each run.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine
import server as srv
import yardstick
from compare import SUM

ROWS = 1_000
SEED = 7
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}

PRELUDE = """
local thread_number = 0
function setup(thread) thread:set("number", thread_number); thread_number = thread_number + 1 end
local headers = {["Authorization"] = "Bearer %s", ["Content-Type"] = "application/json"}
local made = 0
math.randomseed(%d)
local salt = "%s"
local ids = {%s}
local function unique() made = made + 1; return salt .. "-" .. number .. "-" .. made end
local function get(path) return wrk.format("GET", path, headers) end
local function post(path, body) return wrk.format("POST", path, headers, body) end
local function row_id() made = made + 1; return ids[made %% #ids + 1] end
local function insert()
  local u = unique()
  return post("/api/entities/Item", '{"sku":"' .. u .. '","title":"new","shelf":"s","count":1}')
end
local function update()
  return wrk.format("PATCH", "/api/entities/Item/" .. row_id(), headers, '{"count":' .. made .. '}')
end
function done(summary, latency, requests)
  io.write(string.format("  99.9%%%%  %%fus\\n", latency:percentile(99.9)))
end
"""

# The same questions come again and again, and until the next commit the server has the answers
# at hand; "each another" are the same reads with questions that do not come again while it has.
# Reads first, of exactly ROWS rows: the writes below let the table grow.
READS = {
    "health": 'return get("/health")',
    "get by id": 'return get("/api/entities/Item/" .. row_id())',
    "lookup": 'made = made + 1; '
              'return get(string.format("/api/lookup/Item/sku/sku-%08d", made % 1000))',
    "list 100": 'return get("/api/entities/Item?limit=100")',
    "equality, 1 row, no index": 'made = made + 1; return post("/api/query/Item", '
                                 "'{\"title\":\"item-' .. made % 1000 .. '\"}')",
    "equality, 10 rows": 'made = made + 1; return post("/api/query/Item", '
                         "'{\"shelf\":\"shelf-' .. made % 100 .. '\"}')",
    "$like, 111 rows": 'return post("/api/query/Item", \'{"title":{"$like":"-1"}}\')',
    "list 100, each another": 'made = made + 1; '
                              'return get("/api/entities/Item?limit=100&offset=" .. made % 900)',
    "1 row, each another": 'made = made + 1; return post("/api/query/Item", '
                           "'{\"title\":\"item-' .. made % 1000 .. "
                           "'\",\"$limit\":' .. made % 997 + 1 .. '}')",
    "10 rows, each another": 'made = made + 1; return post("/api/query/Item", '
                             "'{\"shelf\":\"shelf-' .. made % 100 .. "
                             "'\",\"$limit\":' .. made % 991 + 10 .. '}')",
    "$like, each another": 'made = made + 1; return post("/api/query/Item", '
                           "'{\"title\":{\"$like\":\"-1\"},\"$limit\":' "
                           ".. made % 889 + 112 .. '}')",
    "pull(100)": 'return get("/api/sync/pull?since=%d")',
}
WRITES = {
    "insert": "return insert()",
    "update": "return update()",
    "mixed 80/15/5": """
      local dice = math.random(100)
      if dice <= 80 then return get("/api/entities/Item/" .. row_id()) end
      if dice <= 95 then return insert() end
      return update()""",
}
PHASES: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
    ("", {**READS, **WRITES}, {}),
    (", durability full", {k: WRITES[k] for k in ("insert", "update")},
     {"PYLON_DURABILITY": "full"}),
)


def main() -> int:
    """Run every line; exit code 0."""
    args = _arguments()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("http_load: skipped: wrk is not installed (make test-tools, or: apt-get install wrk)")
        return 0
    lines = [_yardstick(wrk, connections, args) for connections in args.connections]
    usage: dict[str, dict[str, float]] = {}
    for suffix, requests, settings in PHASES:
        with srv.served(PYLON_HTTP_WORKERS=str(args.workers), **settings) as server:
            token = server.request("POST", "/api/auth/guest")["token"]
            ids = srv.fill(server, ROWS)
            processes = server.processes()
            idle = server.usage(processes)
            for name, body in requests.items():
                if name == "pull(100)":
                    body %= server.status()["head_seq"] - 100
                script = wrk_script(token, f"{name[:3]}{suffix[-4:]}", ids, body)
                for connections in args.connections:
                    line = _line(
                        wrk, f"http://127.0.0.1:{server.port}", name + suffix, script, connections,
                        args,
                    )
                    print(_text(line), flush=True)
                    lines.append(line)
            loaded = server.usage(processes)
        usage.update({
            name + suffix: {
                "rss_idle_mib": idle[name][0], "rss_loaded_mib": loaded[name][0],
                "cpu_s": round(loaded[name][1] - idle[name][1], 2),
            }
            for name in processes
        })
        usage[SUM + suffix] = {
            key: round(sum(usage[name + suffix][key] for name in processes), 2)
            for key in ("rss_idle_mib", "rss_loaded_mib", "cpu_s")
        }
    for name, figures in usage.items():
        print(f"{name:<12} " + "  ".join(f"{key} {value}" for key, value in figures.items()))
    _write(args.out, {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.fingerprint(),
        "workers": args.workers, "seconds": args.seconds, "repeats": args.repeats,
        "requests": lines, "processes": usage,
    })
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="for each run")
    parser.add_argument("--repeats", type=int, default=3, help="runs for each line")
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--workers", type=int, default=2, help="HTTP workers")
    parser.add_argument("--out", type=Path, default=Path("bench/results/local"))
    return parser.parse_args()


def _yardstick(wrk: str, connections: int, args: argparse.Namespace) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="pylon-yardstick-") as folder,
        yardstick.served(folder, port := srv.free_port()),
    ):
        line = _line(
            wrk, f"http://127.0.0.1:{port}/health", "stock falcon, 1 worker", None, connections,
            args,
        )
    print(_text(line), flush=True)
    return {**line, "yardstick": True}


def _line(
    wrk: str, url: str, name: str, script: str | None, connections: int, args: argparse.Namespace
) -> dict[str, Any]:
    runs = [
        # The number makes a run's unique values its own.
        run_wrk(wrk, url, script, connections, args.seconds, connections * 100 + repeat)
        for repeat in range(args.repeats)
    ]
    return {"name": name, "connections": connections, **median_run(runs)}


def median_run(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median rate (of an even number the slower one), with everybody's errors."""
    ordered = sorted(runs, key=lambda run: float(run["requests_per_s"]))
    return {**ordered[(len(runs) - 1) // 2], "errors": sum(run["errors"] for run in runs)}


def wrk_script(token: str, salt: str, ids: list[str], body: str) -> str:
    quoted = ",".join(f'"{row_id}"' for row_id in ids)
    salt = "".join(c for c in salt if c.isalnum())
    return PRELUDE % (token, SEED, salt, quoted) + f"\nfunction request()\n{body}\nend\n"


def run_wrk(
    wrk: str, url: str, script: str | None, connections: int, seconds: int, number: int
) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write((script or "").replace("local made = 0", f"local made = {number}000000"))
        file.flush()
        done = subprocess.run(
            [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency",
             *(["-s", file.name] if script is not None else []), url],
            capture_output=True, text=True, timeout=seconds + 60, check=False,
        )
    if done.returncode != 0:
        raise SystemExit(f"wrk failed: {done.stderr}")
    return parse_wrk(done.stdout)


def parse_wrk(text: str) -> dict[str, Any]:
    """What wrk prints with --latency: requests/s, percentiles in ms, errors."""
    def percentile(which: str) -> float:
        found = re.search(rf"^\s+{re.escape(which)}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
        return round(float(found[1]) * UNITS[found[2]], 3) if found else 0.0

    rps = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    refused = re.search(r"^\s+Non-2xx or 3xx responses: (\d+)", text, re.MULTILINE)
    broken = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    return {
        "requests_per_s": float(rps[1]) if rps else 0.0,
        "p50_ms": percentile("50"), "p99_ms": percentile("99"), "p999_ms": percentile("99.9"),
        "errors": (int(refused[1]) if refused else 0)
        + (sum(int(count) for count in broken.groups()) if broken else 0),
    }


def _text(line: dict[str, Any]) -> str:
    return (
        f"{line['name']:<26} {line['connections']:>4} conn  {line['requests_per_s']:>9,.0f}/s  "
        f"p50 {line['p50_ms']:>8.2f} ms  p99 {line['p99_ms']:>8.2f} ms  errors {line['errors']}"
    )


def _write(out: Path, report: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "http_load.json").write_text(json.dumps(report, indent=2) + "\n")
    rows = [
        f"HTTP load, {report['at']}, {report['workers']} HTTP workers, wrk on the same machine: "
        f"median of {report['repeats']} runs of {report['seconds']} s.", "",
        f"{machine.text(report['machine'])}.", "",
        "| request | connections | requests/s | p50 ms | p99 ms | errors |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {r['name']} | {r['connections']} | {r['requests_per_s']:,.0f} | {r['p50_ms']} | "
        f"{r['p99_ms']} | {r['errors']} |"
        for r in report["requests"]
    ]
    rows += ["", "| process | RSS idle MiB | RSS loaded MiB | CPU s |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {u['rss_idle_mib']} | {u['rss_loaded_mib']} | {u['cpu_s']} |"
        for name, u in report["processes"].items()
    ]
    (out / "http_load.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())
