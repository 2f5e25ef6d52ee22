"""Snapshots of the chat: a scope of 30 rooms, and all that somebody in every room may read.

One HTTP worker serves the snapshot and the probe, so that the probe sees all that the snapshot does
to others. The client writes what comes into a file and reads it after the measurement.
"""

from __future__ import annotations

import http.client
import json
import re
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import chat_data as data
import server as srv
from chat_load import Memory, check, percentiles, probed, sign_in

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SCOPE_ROOMS: Final = 30
_PIECE_BYTES: Final = 64 * 1024
_TIMEOUT_S: Final = 600.0
_CALM_S: Final = 3.0
_REPEATED_S: Final = 5.0  # pulls are repeated for this long: the probe needs samples
_ROW: Final = re.compile(
    rb'"entity":"(\w+)","row_id":"([^"]+)","kind":"insert","data":(\{.*?\}),"timestamp":""\}'
)
_END: Final = re.compile(
    rb'\],"cursor":\{"last_seq":[0-9]+\},"has_more":false,"snapshot_after":null\}'
)
_UNPACK: Final[dict[str, Any]] = {
    "identity": lambda raw: raw,
    "gzip": lambda raw: zlib.decompress(raw, wbits=31),
    "zstd": zstd.decompress,
}


def measure_scope(server: srv.Server, facts: data.Facts) -> dict[str, Any]:
    """Pull 30 of the reader's 40 rooms, with each encoding."""
    token = sign_in(server, data.READER)
    rooms = facts.rooms_of(data.READER)[:SCOPE_ROOMS]
    body = {
        "since": 0, "entities": ["Room", "Member", "Message"],
        "scope": {"Message": {"roomId": {"$in": rooms}}},
    }
    report: dict[str, Any] = {"messages": len(facts.messages_of(rooms))}
    wanted = {
        "Message": set(facts.messages_of(rooms)), "Room": set(facts.rooms_of(data.READER)),
        "Member": set(_members_of(facts, facts.rooms_of(data.READER))),
    }
    for encoding in ("identity", "gzip", "zstd"):
        report[encoding] = _measure(server, facts, token, body, encoding, wanted)
    return report


def measure_whole(server: srv.Server, facts: data.Facts) -> dict[str, Any]:
    """Pull all that the insider may read: a million messages."""
    token = sign_in(server, data.INSIDER)
    rooms = facts.rooms_of(data.INSIDER)
    wanted = {
        "Message": set(facts.messages_of(rooms)), "Room": set(rooms),
        "Member": set(_members_of(facts, rooms)),
        "Person": set(facts.column("SELECT id FROM Person")),
    }
    report: dict[str, Any] = {"rows": sum(map(len, wanted.values()))}
    for encoding in ("identity", "zstd"):
        report[encoding] = _measure(server, facts, token, None, encoding, wanted)
    return report


def _members_of(facts: data.Facts, rooms: list[str]) -> list[str]:
    marks = ",".join("?" * len(rooms))
    return facts.column(f"SELECT id FROM Member WHERE roomId IN ({marks})", *rooms)


def _measure(
    server: srv.Server, facts: data.Facts, token: str, body: Any, encoding: str,
    wanted: dict[str, set[str]],
) -> dict[str, Any]:
    other = data.person(1)
    paths = [f"/api/entities/Message/{i}" for i in facts.messages_of(facts.rooms_of(other))]
    others_token = sign_in(server, other)
    with probed(server, paths, others_token) as calm:
        time.sleep(_CALM_S)
    pulls = []
    with tempfile.TemporaryFile() as file:
        with Memory(server, "http/1") as memory, probed(server, paths, others_token) as latencies:
            until_s = time.monotonic() + _REPEATED_S
            while time.monotonic() < until_s:
                file.seek(0)
                file.truncate()
                pulls.append(_pull(server.port, token, body, encoding, file))
        file.seek(0)
        text = _UNPACK[encoding](file.read())
    _check_rows(text, wanted)
    return {
        "pulls": len(pulls), "took_s": round(statistics.median(p.took_s for p in pulls), 3),
        "first_byte_ms": round(statistics.median(p.first_s for p in pulls) * 1_000, 1),
        "wire_mib": round(pulls[-1].wire_bytes / 2**20, 2), "mib": round(len(text) / 2**20, 2),
        **memory.report(), "cpu_s_of_pull": round(memory.cpu_s / len(pulls), 3),
        **percentiles("others_calm", calm), **percentiles("others", latencies),
    }


class _Pull(NamedTuple):
    took_s: float
    first_s: float
    wire_bytes: int


def _pull(port: int, token: str, body: Any, encoding: str, file: BinaryIO) -> _Pull:
    """Pull into a file."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": encoding}
    started_s = time.monotonic()
    if body is None:
        conn.request("GET", "/api/sync/pull?since=0", headers=headers)
    else:
        headers["Content-Type"] = "application/json"
        conn.request("POST", "/api/sync/pull", json.dumps(body), headers)
    answer = conn.getresponse()
    check(answer.status == 200, f"pull: {answer.status}")
    check(
        answer.getheader("Content-Encoding", "identity") == encoding,
        f"the encoding is not {encoding}",
    )
    size_bytes = 0
    first_s = 0.0
    while piece := answer.read1(_PIECE_BYTES):
        first_s = first_s or time.monotonic() - started_s
        size_bytes += len(piece)
        file.write(piece)
    took_s = time.monotonic() - started_s
    conn.close()
    return _Pull(took_s, first_s, size_bytes)


def _check_rows(text: bytes, wanted: dict[str, set[str]]) -> None:
    """Compare the rows of a snapshot with those that its caller may read."""
    check(text.startswith(b'{"changes":[{"seq":'), f"the snapshot begins with {text[:80]!r}")
    check(_END.fullmatch(text[text.rindex(b'],"cursor"') :]) is not None, "the snapshot's end")
    rows = 0
    found: dict[str, set[str]] = {entity: set() for entity in wanted}
    for entity, row_id, row in _ROW.findall(text):
        rows += 1
        name = entity.decode()
        check(name in found, f"a row of {name}")
        check(json.loads(row)["id"].encode() == row_id, f"the row {row_id!r}")
        found[name].add(row_id.decode())
    check(rows == sum(map(len, wanted.values())), f"{rows} rows")
    for name, ids in wanted.items():
        check(found[name] == ids, f"the rows of {name}: {len(found[name])} for {len(ids)}")
