"""The database of the chat benchmark: `examples/chat` with a million messages, built once and kept.

All rooms are private. Each has 1,000 messages and 12 members; the last room, `LARGE`, has more
messages than one membership may open. Each of the 4,000 people is a member of 3 rooms. Three people
are not: the reader is in 40 rooms, the insider in all but `LARGE`, and the stranger in none.
Messages of all rooms are written by turns, so those of a room lie far apart in the table.

The rows go through the store's engine in large batches, as the server's writer applies them. The
folder of the cache is named after all that the rows depend on. Called by `chat.py` and its parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pylon import limits
from pylon.clock import SystemClock, SystemRandom
from pylon.ids import RowIds
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.storage.ops import InsertRow, WriteRequest
from pylon.storage.records import LogRetention
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.values import EntityCodec

EXAMPLE: Final = Path(__file__).resolve().parent.parent / "examples/chat/pylon.manifest.json"
OWNER: Final = "owner"
READER: Final = "reader"
INSIDER: Final = "insider"
STRANGER: Final = "stranger"
ROOMS_OF_PERSON: Final = 3
ROOMS_OF_READER: Final = 40
LARGE_MESSAGES: Final = limits.RELATED_ROWS + 1_000
_BEGIN_S: Final = 1_735_689_600  # 2025-01-01
_BATCH_ROWS: Final = 25_000  # each batch changes a page of each room's part of an index
_PRUNE_EVENTS: Final = 10_000
_SEED: Final = 11


@dataclass(frozen=True)
class Size:
    """How many rows there are."""

    messages: int = 1_000_000
    rooms: int = 1_000
    people: int = 4_000


def read_manifest() -> dict[str, Any]:
    """Return the manifest of the example, with one more index: of all messages by time.

    The deep pages need it. The example shows messages of one room only.
    """
    manifest: dict[str, Any] = json.loads(EXAMPLE.read_text())
    (message,) = (e for e in manifest["entities"] if e["name"] == "Message")
    message["indexes"].append({"name": "by_time", "fields": ["sentAt"]})
    return manifest


def person(number: int) -> str:
    """Return the user id of a person."""
    return f"person-{number:05d}"


def prepare(size: Size, cache: Path) -> tuple[Path, float]:
    """Return the cached database, and the seconds that it took to make it: 0 if it was there."""
    depends = json.dumps([read_manifest(), vars(size), Path(__file__).read_text()])
    folder = cache / f"chat-{hashlib.sha256(depends.encode()).hexdigest()[:16]}"
    path = folder / "chat.db"
    if path.exists():
        return path, 0.0
    started_s = time.monotonic()
    unfinished = cache / f"unfinished-{os.getpid()}"
    try:
        unfinished.mkdir(mode=0o700, parents=True)
        _build(unfinished / path.name, size)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path, time.monotonic() - started_s


def _build(path: Path, size: Size) -> None:
    manifest = parse_manifest(json.dumps(read_manifest()), "manifest.json")
    engine = SqliteEngine.open(path, manifest, compile_rules(manifest), SystemClock(), "normal")
    codecs = {entity.name: EntityCodec(entity) for entity in manifest.entities}
    requests: list[WriteRequest] = []

    def apply() -> None:
        for reply in engine.apply(requests).replies:
            if reply.error is not None:
                raise SystemExit(f"chat_data: {reply.error}")
        requests.clear()
        # The log would be as large as the tables. A server that has run for long has no more of it.
        everything = LogRetention(1, 0, _PRUNE_EVENTS, drop_to_seq=engine.head)
        while engine.maintenance.prune_log(everything):
            pass
        engine.maintenance.checkpoints.flush_all()

    for entity, row_id, row in _rows(size):
        encoded = codecs[entity].insert(row, row_id)
        requests.append(
            WriteRequest(len(requests), InsertRow(entity, row_id, encoded.values, encoded.row_json))
        )
        if len(requests) == _BATCH_ROWS:
            apply()
    apply()
    engine.maintenance.end_run()
    engine.close()


def _rows(size: Size) -> Iterator[tuple[str, str, dict[str, Any]]]:
    ids = RowIds(SystemClock(), SystemRandom())
    chance = random.Random(_SEED)
    rooms = [ids.new() for _ in range(size.rooms)]
    large = ids.new()
    members: dict[str, list[str]] = {room: [] for room in rooms}
    for number, room in enumerate([*rooms, large]):
        yield "Room", room, {
            "name": f"room {number}" if room != large else "LARGE", "private": True,
            "ownerId": OWNER, "createdAt": _instant(number),
        }
    yield "Member", ids.new(), {"roomId": large, "userId": OWNER, "addedAt": _instant(0)}
    for number in range(size.people):
        yield "Person", ids.new(), {"userId": person(number), "name": f"Person {number}"}
        for room in chance.sample(rooms, ROOMS_OF_PERSON):
            members[room].append(person(number))
    for room in rooms:
        members[room].append(INSIDER)
    for room in chance.sample(rooms, min(ROOMS_OF_READER, size.rooms)):
        members[room].append(READER)
    for room, people in members.items():
        for name in people:
            yield "Member", ids.new(), {"roomId": room, "userId": name, "addedAt": _instant(0)}
    rooms_by_turns = [rooms[number % size.rooms] for number in range(size.messages)]
    # The messages of LARGE lie among the others.
    step = max(1, size.messages // LARGE_MESSAGES)
    for number, room in enumerate(rooms_by_turns):
        yield "Message", ids.new(), _message(room, chance.choice(members[room]), number, chance)
        if number % step == 0 and number // step < LARGE_MESSAGES:
            yield "Message", ids.new(), _message(large, OWNER, number, chance)
    for number in range(-(-size.messages // step), LARGE_MESSAGES):
        yield "Message", ids.new(), _message(large, OWNER, number, chance)


def _message(room: str, author: str, number: int, chance: random.Random) -> dict[str, Any]:
    """Return a row of about 310 bytes as JSON; its texts compress as texts of a chat do."""
    words = " ".join(chance.choices(_WORDS, k=14))
    return {
        "roomId": room, "authorId": author, "text": f"{number}: {words}", "sentAt": _instant(number)
    }


def _instant(number: int) -> str:
    at_s = _BEGIN_S + number * 7
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s)) + ".000000Z"


_CHANCE = random.Random(_SEED)
_WORDS: Final = [
    "".join(_CHANCE.choices("abcdefghijklmnoprstuvw", k=_CHANCE.randint(2, 10)))
    for _ in range(3_000)
]


class Facts:
    """Answers of the database to plain SQL, which the server's answers are compared with."""

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        self.large = self.column("SELECT id FROM Room WHERE name = 'LARGE'")[0]
        self.rooms = self.column("SELECT id FROM Room WHERE id != ? ORDER BY id", self.large)

    def column(self, sql: str, *values: Any) -> list[Any]:
        """Return the first column of a statement."""
        return [row[0] for row in self._conn.execute(sql, values)]

    def count(self, sql: str, *values: Any) -> int:
        """Return the only value of a statement."""
        return int(self.column(sql, *values)[0])

    def rooms_of(self, user_id: str) -> list[str]:
        """Return the rooms of a member."""
        return self.column("SELECT roomId FROM Member WHERE userId = ? ORDER BY roomId", user_id)

    def messages_of(self, rooms: list[str]) -> list[str]:
        """Return the ids of all messages of rooms."""
        marks = ",".join("?" * len(rooms))
        return self.column(f"SELECT id FROM Message WHERE roomId IN ({marks})", *rooms)

    def close(self) -> None:
        """Close the file."""
        self._conn.close()
