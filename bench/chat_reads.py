"""Reads of the chat: pages at any depth, and what a member of 3 rooms lists, counts and gets.

The same rows are read by the administrator, whom no policy concerns; the difference is what the
policy costs. All answers are compared with plain SQL.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
import chat_data as data
import server as srv
from chat_load import (
    Memory,
    check,
    percentiles,
    read_in_a_loop,
    read_once,
    request_bytes,
    sign_in,
)

DEPTHS: Final = (10, 1_000, 100_000, 900_000)
PAGE_ROWS: Final = 50
_REPEATS: Final = 50
_STEP: Final = 7  # rows between the positions of two repeats
_READERS: Final = 200  # people whose reads take turns
_CONNECTIONS: Final = 4
# Both orders end with the id, ascending.
_ORDERS: Final = {
    "sentAt desc": ({"sentAt": "desc"}, "sentAt DESC, id"),
    "id asc": ({"id": "asc"}, "id"),
}


def measure_pages(server: srv.Server, facts: data.Facts) -> dict[str, Any]:
    """Read 50 rows after and before positions at several depths."""
    report: dict[str, Any] = {}
    callers = {
        "admin": (srv.ADMIN, "", ()),
        "insider": (sign_in(server, data.INSIDER), "WHERE roomId != ?", (facts.large,)),
    }
    for caller, (token, where, values) in callers.items():
        for name, (order, sql) in _ORDERS.items():
            rows = facts.column(f"SELECT id FROM Message {where} ORDER BY {sql}", *values)
            # Unless the order is by id, a position has the time too.
            times = (
                facts.column(f"SELECT sentAt FROM Message {where} ORDER BY {sql}", *values)
                if "sentAt" in order else None
            )
            with Memory(server, "http/1") as worker:
                found = {
                    f"{side} {depth}": _read_pages(server, token, order, side, depth, rows, times)
                    for depth in DEPTHS if depth + _REPEATS * _STEP + PAGE_ROWS < len(rows)
                    for side in ("$after", "$before")
                }
            cpu_us = round(worker.cpu_s * 1e6 / (len(found) * _REPEATS))
            report[f"{caller}, {name}"] = {**found, "cpu_us_of_page": cpu_us}
    return report


def _read_pages(
    server: srv.Server, token: str, order: dict[str, str], side: str, depth: int, rows: list[str],
    times: list[str] | None,
) -> dict[str, float]:
    latencies = []
    for repeat in range(_REPEATS):
        place = depth + repeat * _STEP
        position = {"id": rows[place]}
        if times is not None:
            position["sentAt"] = times[place]
        body = {"$order": order, side: position, "$limit": PAGE_ROWS}
        request = request_bytes("POST", "/api/query/Message", token, body)
        begun_ns = time.monotonic_ns()
        answer = read_once(server, request)
        latencies.append((time.monotonic_ns() - begun_ns) / 1e6)
        wanted = (
            rows[place + 1 : place + 1 + PAGE_ROWS] if side == "$after"
            else rows[max(0, place - PAGE_ROWS) : place]
        )
        check([row["id"] for row in json.loads(answer)] == wanted, f"the page {body}")
    return percentiles("page", latencies)


def measure_reads(
    server: srv.Server, facts: data.Facts, seconds: float, people: int
) -> dict[str, Any]:
    """Let members of 3 rooms read, and the administrator the same rows; then compare."""
    names = [data.person(number) for number in range(min(_READERS, people))]
    tokens = {name: sign_in(server, name) for name in names}
    report: dict[str, Any] = {}
    for kind in ("get", "room_newest_50", "newest_50", "list_50", "count", "rooms", "members"):
        by_caller: dict[str, Any] = {}
        for caller in ("admin", "member"):
            requests = []
            for name in names:
                rooms = facts.rooms_of(name)
                method, path, body = _question(facts, kind, rooms, caller == "member")
                token = tokens[name] if caller == "member" else srv.ADMIN
                request = request_bytes(method, path, token, body)
                answer = read_once(server, request)
                _check_answer(facts, kind, rooms, json.loads(answer))
                requests.append((request, answer))
            by_caller[caller] = read_in_a_loop(server, requests, _CONNECTIONS, seconds)
        by_caller["cpu_ratio"] = round(
            by_caller["member"]["cpu_us"] / by_caller["admin"]["cpu_us"], 2
        )
        by_caller["p50_ratio"] = round(
            by_caller["member"]["read_p50_ms"] / by_caller["admin"]["read_p50_ms"], 2
        )
        report[kind] = by_caller
    report["median_cpu_ratio"] = statistics.median(
        found["cpu_ratio"] for found in report.values()
    )
    return report


def _question(
    facts: data.Facts, kind: str, rooms: list[str], is_member: bool
) -> tuple[str, str, Any]:
    """Return method, path and body. The administrator filters what the policy lets members see."""
    mine: dict[str, Any] = {} if is_member else {"roomId": {"$in": rooms}}
    newest = {"$order": {"sentAt": "desc"}, "$limit": PAGE_ROWS}
    if kind == "get":
        row_id = facts.column("SELECT id FROM Message WHERE roomId = ? LIMIT 1", rooms[0])[0]
        return "GET", f"/api/entities/Message/{row_id}", None
    if kind == "room_newest_50":
        return "POST", "/api/query/Message", {"roomId": rooms[0], **newest}
    if kind == "newest_50":
        return "POST", "/api/query/Message", {**mine, **newest}
    if kind == "list_50":
        if is_member:
            return "GET", f"/api/entities/Message?limit={PAGE_ROWS}", None
        return "POST", "/api/query/Message", {**mine, "$order": {"id": "asc"}, "$limit": PAGE_ROWS}
    if kind == "count":
        body = {"count": "*"} if is_member else {"count": "*", "where": mine}
        return "POST", "/api/aggregate/Message", body
    if kind == "rooms":
        return "POST", "/api/query/Room", {} if is_member else {"id": {"$in": rooms}}
    return "POST", "/api/query/Member", {"roomId": rooms[0]}


def _check_answer(facts: data.Facts, kind: str, rooms: list[str], answer: Any) -> None:
    marks = ",".join("?" * len(rooms))
    of_rooms = f"FROM Message WHERE roomId IN ({marks})"
    if kind == "count":
        wanted = facts.count(f"SELECT count(*) {of_rooms}", *rooms)
        check(answer == {"rows": [{"count": wanted}]}, f"{kind}: {answer} for {wanted}")
        return
    if kind == "get":
        check(answer["roomId"] == rooms[0], f"{kind}: {answer}")
        return
    sql, values, is_ordered = {
        "room_newest_50": (
            "SELECT id FROM Message WHERE roomId = ? ORDER BY sentAt DESC, id LIMIT 50",
            rooms[:1], True,
        ),
        "newest_50": (f"SELECT id {of_rooms} ORDER BY sentAt DESC, id LIMIT 50", rooms, True),
        "list_50": (f"SELECT id {of_rooms} ORDER BY id LIMIT 50", rooms, True),
        "rooms": (f"SELECT id FROM Room WHERE id IN ({marks})", rooms, False),
        "members": ("SELECT id FROM Member WHERE roomId = ?", rooms[:1], False),
    }[kind]
    wanted = facts.column(sql, *values)
    found = [row["id"] for row in (answer["data"] if isinstance(answer, dict) else answer)]
    if not is_ordered:
        found.sort()
        wanted.sort()
    check(found == wanted, f"{kind}: {len(found)} rows for {len(wanted)}")
