"""Pages at a position: the time of one page at several depths of a large table.

    .venv/bin/python bench/paging.py [ROWS]

It fills a database with messages in 100 rooms, a tenth of them without a time, and reads pages of
50 rows behind and before positions, with and without a room. The figures are milliseconds of CPU
time of this process for one page, the median and the slowest of 20; CPU time hardly depends on
other processes. Pages by offset are there for comparison.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import apsw
import orjson

from pylon.auth_context import AuthContext
from pylon.clock import SystemClock
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.query.predicate import TRUE
from pylon.query.rows import parse_filter
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader

MANIFEST: dict[str, Any] = {
    "name": "paging",
    "entities": [{"name": "Message", "crdt": False, "fields": [
        {"name": "roomId", "type": "string"},
        {"name": "sentAt", "type": "int", "optional": True},
        {"name": "ownerId", "type": "string"},
        {"name": "text", "type": "string"},
    ], "indexes": [
        {"name": "by_room", "fields": ["roomId", "sentAt"]},
        {"name": "by_sent", "fields": ["sentAt"]},
    ]}],
    "policies": [{
        "name": "own", "entity": "Message",
        "allowRead": "data.ownerId == 'all' || data.ownerId == auth.userId",
    }],
}
ORDERS: list[dict[str, str]] = [
    {"sentAt": "asc"}, {"sentAt": "desc"}, {"sentAt": "desc", "id": "desc"},
]
DEPTHS = (0.01, 0.25, 0.5, 0.75, 0.99)
_FILL = """
INSERT INTO Message (id, roomId, sentAt, ownerId, text, _json, _seq)
WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n LIMIT ?)
SELECT i, r, s, 'all', t, json_object(
    'id', i, 'ownerId', 'all', 'roomId', r, 'sentAt', s, 'text', t), 1
FROM (SELECT printf('%040x', v) AS i, 'r' || (v % 100) AS r,
             CASE WHEN v % 10 = 0 THEN NULL ELSE v / 3 END AS s,
             printf('message %d of a room, of a usual length', v) AS t FROM n)
"""


def fill(path: Path, rows: int) -> None:
    """Make the database."""
    app = parse_manifest(orjson.dumps(MANIFEST).decode(), "manifest.json")
    SqliteEngine.open(path, app, compile_rules(app), SystemClock(), "normal").close()
    connection = apsw.Connection(str(path))
    with connection:
        connection.execute(_FILL, (rows,))
    connection.close()


def main() -> None:
    """Print a table of figures."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    app = parse_manifest(orjson.dumps(MANIFEST).decode(), "manifest.json")
    entity = app.by_name["Message"]
    own = compile_rules(app).for_entity("Message").readable_by(AuthContext(user_id="u1"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        fill(path, rows)
        reader = SqliteReader(path, app)
        print(f"{rows} rows; ms of CPU time for a page of 50 rows: median (slowest)")
        for room in ({"roomId": "r7"}, {}):
            for order in ORDERS:
                for key in ("$after", "$before"):
                    for policy, allowed in (("", TRUE), ("policy", own)):
                        cells = []
                        for depth in DEPTHS:
                            number = int(rows * depth)
                            for sent_at in (number // 3, None):
                                place = {"sentAt": sent_at, "id": f"{number:040x}"}
                                body = {**room, "$order": order, key: place, "$limit": 50}
                                query = parse_filter(entity, body, 1_000, allowed)
                                cells.append(_measure(reader, query))
                        label = f"{'room' if room else 'table':6}{key:8}{policy:7}{order}"
                        print(f"{label:60}" + "  ".join(cells))
        body = {"$order": {"sentAt": "asc"}, "$limit": 50, "$offset": int(rows * 0.9)}
        print(f"{'by offset, 90 % deep':60}" + _measure(
            reader, parse_filter(entity, body, 1_000), times=3
        ))
        reader.close()


def _measure(reader: SqliteReader, query: Any, times: int = 20) -> str:
    took = []
    for _ in range(times):
        began = time.process_time()
        reader.page("Message", query)
        took.append((time.process_time() - began) * 1_000)
    return f"{statistics.median(took):.2f} ({max(took):.2f})"


if __name__ == "__main__":
    main()
