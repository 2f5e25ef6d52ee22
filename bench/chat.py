"""Chat: the example chat with a million messages, read, pulled and listened to by its members.

    python bench/chat.py [--only PART …] [--messages 1000000] [--rooms 1000] [--people 4000]
                         [--seconds 5] [--cache FOLDER] [--out FOLDER]

Parts, each on a server of its own (`chat_data.py` describes the rows and the people):

- `scope`: a snapshot of 30 rooms by POST /api/sync/pull, plain, with gzip and with zstd, and the
  latency of get-by-id of another member meanwhile. `others_calm`: the same latency before.
- `whole`: the snapshot of somebody who may read a million messages, and the same.
- `windows`: windows of the newest 50 messages of the members' rooms, on one ws worker: its memory;
  then writes into the rooms of 1,000 of them, and the latency from the start of a write's request
  to the diff. `bench/windows.py` measures windows without policy.
- `pages`: 50 rows after and before positions, up to 900,000 rows deep.
- `members`: people with open sockets, of whom one after the other becomes a member of a room of
  1,000 messages and is removed again: the time until all rows have come and gone, and the latency
  of messages to the others meanwhile. Then a room with more rows than one membership may open.
- `reads`: lists, counts and gets by members of 3 rooms, and the same rows by the administrator,
  with 4 connections. `cpu_us`: CPU time of the HTTP workers for a request.

`anon_…`: memory of a process without the pages of files, of which SQLite maps 256 MiB.

The first run builds the database (some minutes) and keeps it in the cache; further runs copy it.
Exit code 1 when an answer is wrong: a row is missing, foreign, or in the wrong place.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import chat_data as data
import chat_live
import chat_pulls
import chat_reads
import machine
import server as srv
from chat_load import WrongAnswer

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylon-bench"

Part = Callable[[srv.Server, data.Facts, argparse.Namespace], dict[str, Any]]

PARTS: Final[dict[str, Part]] = {
    "scope": lambda server, facts, _: chat_pulls.measure_scope(server, facts),
    "whole": lambda server, facts, _: chat_pulls.measure_whole(server, facts),
    "windows": lambda server, facts, args: chat_live.measure_windows(
        server, facts, args.windows, args.live, args.writes_per_s, 4 * args.seconds
    ),
    "pages": lambda server, facts, _: chat_reads.measure_pages(server, facts),
    "members": lambda server, facts, args: chat_live.measure_members(
        server, facts, args.listeners, args.changes, args.writes_per_s / 4
    ),
    "reads": lambda server, facts, args: chat_reads.measure_reads(
        server, facts, args.seconds, args.people
    ),
}
SETTINGS: Final[dict[str, dict[str, str]]] = {
    name: {"PYLON_HTTP_WORKERS": "1"} for name in ("scope", "whole", "pages")
}


def main() -> int:
    """Run the parts and report; exit code 1 when an answer is wrong."""
    args = _arguments()
    size = data.Size(args.messages, args.rooms, args.people)
    path, built_s = data.prepare(size, args.cache)
    report: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.text(machine.fingerprint()), "size": vars(size),
        "built_s": round(built_s, 1), "database_mib": round(path.stat().st_size / 2**20),
    }
    print(f"{path}: {report['database_mib']} MiB, built in {report['built_s']} s", flush=True)
    problems = {}
    for name in args.only or PARTS:
        try:
            report[name] = _run(name, path, args)
        except WrongAnswer as wrong:
            problems[name] = str(wrong)
            report[name] = {"wrong": str(wrong)}
        print(f"{name}: {json.dumps(report[name], indent=2)}", flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "chat.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if problems else 0


def _run(name: str, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pylon-chat-", dir=args.cache) as folder:
        copy = Path(folder) / "data" / path.name
        copy.parent.mkdir(mode=0o700)
        shutil.copy2(path, copy)
        settings = {
            "PYLON_DB_PATH": str(copy), "PYLON_WS_WORKERS": "1", "PYLON_SHARD_WORKERS": "1",
            **SETTINGS.get(name, {}),
        }
        with srv.served(data.read_manifest(), **settings) as server:
            facts = data.Facts(copy)
            try:
                found = PARTS[name](server, facts, args)
            finally:
                facts.close()
        return {**found, "load": round(os.getloadavg()[0], 1)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), metavar="PART")
    parser.add_argument("--messages", type=int, default=data.Size.messages)
    parser.add_argument("--rooms", type=int, default=data.Size.rooms)
    parser.add_argument("--people", type=int, default=data.Size.people)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each figure of `reads`")
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--live", type=int, default=1_000, help="windows that get writes")
    parser.add_argument("--writes-per-s", type=float, default=200.0)
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--changes", type=int, default=50, help="memberships that begin and end")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
