"""sqlmap against a served app, over every filter, sort and search parameter; it must find nothing.

    python -m tests.support.sqlmap_run [--level 1..5]

sqlmap is no dependency of the tests: `pip install sqlmap`, or name the program with SQLMAP.
Without it the run says that it is skipped. A target's `*` is where sqlmap injects. Each target
must be *tested* to count: a request that the server refuses before SQL proves nothing, so each
is sent once as it is and has to answer 200 or 404; and the same call of sqlmap has to find the
hole of a small server that has one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wide_app import wide_app
from tests.support.wire import KeepAliveClient

SMALL: Final = {
    "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "0", "PYLON_SSE_WORKERS": "0",
    "PYLON_SHARD_WORKERS": "0",
}
ROWS: Final = 20
NOTHING: Final = "all tested parameters do not appear to be injectable"
FOUND: Final = "sqlmap identified the following injection point"

# (path, body): without a body it is a GET.
TARGETS: Final[tuple[tuple[str, str | None], ...]] = (
    ("/api/entities/Item?limit=5*&offset=0*&count=true*", None),
    ("/api/entities/Item/cursor?after=x*&limit=5*", None),
    ("/api/entities/Item/x*", None),
    ("/api/lookup/Item/title/t1*", None),
    ("/api/lookup/Item/count/1*", None),
    ("/api/lookup/Item/title*/t1", None),
    ("/api/sync/pull?since=1*", None),
    ("/api/query/Item", '{"title": "t1*", "code": {"$ne": "x*"}}'),
    ("/api/query/Item", '{"title": {"$like": "t*"}, "body": {"$startsWith": "b*"}}'),
    ("/api/query/Item", '{"title": {"$in": ["t1*", "t2"]}, "code": {"$nin": ["c*"]}}'),
    ("/api/query/Item", '{"title": {"$gt": "a*", "$lte": "z*"}}'),
    ("/api/query/Item", '{"$or": [{"title": "t1*"}, {"$and": [{"body": "b*"}]}]}'),
    ("/api/query/Item", '{"$search": "t1*"}'),
    ("/api/query/Item", '{"$order": {"title*": "asc*"}}'),
    ("/api/query/Item", '{"title*": "t1"}'),
    ("/api/query/Tag", '{"$search": "t1*"}'),
    ("/api/query", '{"Item": {"where": {"title": "t1*"}, "order": {"title*": "asc*"}}}'),
    ("/api/query", '{"Item": {"include": {"up*": {"where": {"title": "t1*"}}}}}'),
    ("/api/aggregate/Item", '{"count": "title*", "where": {"title": "t1*"}}'),
    ("/api/aggregate/Item", '{"sum": ["count*"], "groupBy": ["title*"]}'),
    ("/api/aggregate/Item", '{"count": "id", "groupBy": [{"field": "dueAt*", "bucket": "day*"}]}'),
    ("/api/search/Item", '{"query": "t1*"}'),
    ("/api/search/Item", '{"filters": {"count": "1*"}, "facets": ["count*"]}'),
    ("/api/search/Item", '{"sort": ["count*", "asc*"]}'),
)


class Hole(BaseHTTPRequestHandler):
    """What an injection looks like: shows that the scan finds one where there is one."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with closing(sqlite3.connect(":memory:")) as db:
            db.execute("CREATE TABLE item AS SELECT 't1' AS title, 1 AS id")
            try:
                title = json.loads(raw)["title"]
                rows = db.execute(f"SELECT id FROM item WHERE title = '{title}'").fetchall()
                status, body = 200, json.dumps(rows)
            except (sqlite3.Error, ValueError):
                status, body = 400, "{}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        """Nothing: sqlmap sends hundreds of requests."""


def finds_a_hole(program: str) -> bool:
    """Whether sqlmap, called as `scan` calls it, finds what there is to find."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hole) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        problem = scan(program, server.server_port, ("/api/query/Item", '{"title": "t1*"}'), 1)
        server.shutdown()
    return problem is not None and problem.startswith(FOUND)


def scan(program: str, port: int, target: tuple[str, str | None], level: int) -> str | None:
    """Run sqlmap on one target; gives what is wrong, if anything is."""
    path, body = target
    with tempfile.TemporaryDirectory() as folder:
        command = [
            program, "-u", f"http://127.0.0.1:{port}{path}", "--batch", "--flush-session",
            "--dbms=SQLite", "--technique=BEUT", f"--level={level}", "--risk=2",
            "--ignore-code=400,404,503", "--time-sec=2", "--disable-coloring", "--skip-waf",
            f"--output-dir={folder}", f"--headers=Authorization: Bearer {ADMIN_TOKEN}",
            "--answers=process=Y,custom=Y,JSON=Y,URI=Y",
        ]
        if body is not None:
            command.append(f"--data={body}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if FOUND in output:
        return output[output.index(FOUND):][:2_000]
    return None if NOTHING in output else f"sqlmap did not test this:\n{output[-2_000:]}"


def fill(client: KeepAliveClient) -> None:
    """Rows to be found, and the proof that each target is answered as it is."""
    admin = ("Authorization", f"Bearer {ADMIN_TOKEN}")
    for n in range(ROWS):
        row = (
            f'{{"title": "t{n}", "body": "b{n}", "count": {n % 3}, "done": true, '
            f'"dueAt": "2026-01-{n % 9 + 1:02}"}}'
        )
        assert client.request("POST", "/api/entities/Item", row.encode(), [admin]).status == 201
    for path, body in TARGETS:
        sent = None if body is None else body.replace("*", "").encode()
        method = "GET" if body is None else "POST"
        answer = client.request(method, path.replace("*", ""), sent, [admin])
        assert answer.status in (200, 404), (path, body, answer)


def main() -> int:
    parser = argparse.ArgumentParser(description="sqlmap over all filter, sort and search input")
    parser.add_argument("--level", type=int, default=1)
    level: int = parser.parse_args().level
    program = os.environ.get("SQLMAP") or shutil.which("sqlmap")
    if program is None:
        print("skipped: sqlmap is not installed (pip install sqlmap)")
        return 0
    if not finds_a_hole(program):
        print("FAILED: sqlmap finds nothing where there is a hole, so the scan proves nothing")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        server = PylonServer(Path(folder) / "server", wide_app(), SMALL)
        try:
            server.start()
            client = KeepAliveClient(server.port)
            fill(client)
            client.close()
            with ThreadPoolExecutor(2) as pool:
                found = list(pool.map(lambda t: scan(program, server.port, t, level), TARGETS))
            ready = server.request("GET", "/readyz")[0] == 200
            defects = server.log_path.read_text().count("request.defect")
        finally:
            server.close()
    for (path, body), problem in zip(TARGETS, found, strict=True):
        print(f"{'FAILED' if problem else 'clean '} {path} {body or ''}")
        if problem:
            print(problem)
    print(f"{len(TARGETS)} targets, ready: {ready}, defects in the log: {defects}")
    return 1 if any(found) or not ready or defects else 0


if __name__ == "__main__":
    sys.exit(main())
