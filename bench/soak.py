"""Soak: whether a server at a steady load stays as it is.

    python bench/soak.py [--seconds 1800] [--rate 1000] [--sockets 200] [--out FOLDER]

Keep-alive clients send `--rate` requests a second, one in ten of them an insert (`asking`), and
`--sockets` clients sync over WebSocket (`syncing`). After a tenth of the time, and then 40 times,
it notes for each process the anonymous memory and the descriptors, and for the server the size of
the WAL and of the log. It compares the medians of the second and the last quarter. Exit code 1 if
a request has failed, an event is lost, or a figure has grown beyond its bar (`BARS`). The change
log and so the database grow by design until PYLON_CHANGE_LOG_RETAIN; they are not judged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import machine
import restart
import server as srv
import syncing

_SAMPLES: Final = 40
_MIB: Final = 1024 * 1024
# The growth from the second to the last quarter that is allowed: a share, and an amount.
BARS: Final = {
    "memory_mib": (0.10, 4.0), "descriptors": (0.02, 3.0), "wal_mib": (0.10, 16.0),
    "log_kib": (0.0, 16.0),
}


def main() -> int:
    """Measure, print, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1_800)
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--sockets", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pylon-soak-") as name:
        log_path = Path(name) / "server.log"
        report = soak(args, log_path)
    grown = [text for figure, found in report["figures"].items() for text in judge(figure, found)]
    print(machine.text(machine.fingerprint()))
    for figure, found in report["figures"].items():
        print(f"{figure:<34} {found['second']:>9.1f} {found['last']:>9.1f}")
    print(json.dumps({key: report[key] for key in ("asked", "synced")}))
    print("\n".join(grown) or "flat")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        whole = {"machine": machine.fingerprint(), "seconds": args.seconds, "rate": args.rate,
                 "sockets": args.sockets, **report, "grown": grown}
        (args.out / "soak.json").write_text(json.dumps(whole, indent=2) + "\n")
    failed = report["asked"]["failed"] or report["synced"]["events_lost"]
    return 1 if grown or failed else 0


def soak(args: argparse.Namespace, log_path: Path) -> dict[str, Any]:
    """Run the load, and return the figures of the second and the last quarter."""
    samples: list[dict[str, float]] = []
    with srv.served(restart.app(), log_path=log_path, PYLON_LOG_LEVEL="info") as server:
        token = server.request("POST", "/api/auth/guest")["token"]
        server.request("POST", "/api/entities/Tick", {"n": 0, "sender": "first"})
        crowd = restart.Crowd(server.port, token, args.sockets)
        crowd.wait_live()
        crowd.tell("reset")
        load = restart.Requests(server.port, args.rate)
        started_s = time.monotonic()
        time.sleep(args.seconds / 10)
        processes = server.processes()
        while (spent_s := time.monotonic() - started_s) < args.seconds:
            samples.append(look(server, processes, log_path))
            time.sleep(min(args.seconds * 0.9 / _SAMPLES, args.seconds - spent_s))
        asked = load.stop()
        synced = restart.converge(server, crowd)
        crowd.close()
    quarter = len(samples) // 4
    return {
        "asked": asked, "synced": syncing.together(synced, started_s),
        "figures": {
            figure: {
                "second": statistics.median(s[figure] for s in samples[quarter: 2 * quarter]),
                "last": statistics.median(s[figure] for s in samples[-quarter:]),
            } for figure in samples[0]
        },
    }


def look(server: srv.Server, processes: dict[str, int], log_path: Path) -> dict[str, float]:
    """Return the figures of this moment. A process that has ended raises."""
    found: dict[str, float] = {}
    for name, pid in sorted(processes.items()):
        found[f"memory_mib {name}"] = _anonymous_mib(pid)
        found[f"descriptors {name}"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    wal = server.db_path.with_name(server.db_path.name + "-wal")
    found["wal_mib"] = wal.stat().st_size / _MIB if wal.exists() else 0.0
    found["log_kib"] = log_path.stat().st_size / 1024
    return found


def judge(figure: str, found: dict[str, float]) -> list[str]:
    """Return what is wrong with a figure."""
    bar = BARS.get(figure.split(" ")[0])
    if bar is None:
        return []
    allowed = found["second"] * (1 + bar[0]) + bar[1]
    if found["last"] <= allowed:
        return []
    return [f"{figure} has grown from {found['second']:.1f} to {found['last']:.1f}"]


def _anonymous_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
