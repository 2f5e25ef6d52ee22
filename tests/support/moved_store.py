"""A store with data of every kind, and the move of it to another store.

Run as a module, it starts moves in processes that kill themselves in the middle of the second
transaction that they begin, one after the other until one completes the move, or `TIMES` of them:
`python -m tests.support.moved_store DIRECTION PATH URL TIMES`. It prints how many were killed,
and ends with exit code 1 if one ended in another way. Used by the tests of `pylon.migrate`.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

from pylon.clock import ManualClock, SystemClock
from pylon.manifest.model import Manifest
from pylon.migrate import move as moves
from pylon.migrate.compare import TableReport
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from pylon.storage.auth_tables import TABLES
from pylon.storage.ops import MoveShard, OpenDocument, PutSession, PutShard
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.transfer.manager import SqliteTransfer
from pylon.storage.transfer import Row, TransferManager, list_tables
from tests.support.document_store import client_of, ok, push
from tests.support.storage import (
    MANIFEST,
    apply,
    delete,
    insert,
    open_engine,
    open_reader,
    row_id,
    task,
    update,
)

NOTES = 5
TEXT = "Grüße, 世界 🌍 \\ \t \n 'quoted' \"twice\" $1 %s"


def fill(path: Path, tasks: int = 40) -> int:
    """Make a SQLite database with rows, events, op_ids, sessions, documents, shards, epochs, and
    return its head."""
    clock = ManualClock()
    with closing(open_engine(path, clock, boot_id="one")) as engine:
        _write(engine, path, tasks)
    # The machine lost power: an epoch.
    with closing(open_engine(path, clock, boot_id="two")) as engine:
        ok(*apply(engine, task(900, title="after the epoch", op="op-900")))
        ok(*apply(engine, update("Task", 2, {"weight": None}, op="op-901")))
        engine.maintenance.end_run()
        return engine.head


def _write(engine: SqliteEngine, path: Path, tasks: int) -> None:
    for number in range(tasks):
        ok(*apply(engine, task(
            number, title=f"{TEXT} {number}", done=number % 2 == 0,
            rank=number if number % 3 else number - 2**62,
            weight=number / 7 if number % 5 else None,
            dueAt=f"2026-01-{number % 28 + 1:02d}T00:00:00Z", slug=f"Slug-{number}",
            op=f"op-{number}",
        )))
    ok(*apply(engine, *(insert("User", n, {"email": f"{n}@x.org"}) for n in range(3))))
    ok(*apply(engine, update("Task", 1, {"title": "changed", "done": True}), delete("Task", 3)))
    for number in range(NOTES):
        ok(*apply(engine, insert("Note", number, {"text": f"note {number}"})))
        ok(*apply(engine, OpenDocument("Note", row_id(number))))
    reader = open_reader(path)
    for number in range(NOTES - 1):
        for word in ("one ", "two "):
            client = client_of(reader, "Note", number)
            client.text("text").insert(0, word)
            ok(*apply(engine, push(client.update(), "Note", number)))
    ok(*apply(engine, delete("Note", 0)))
    reader.close()
    # A field of the read rule changes while there is a document: a view of it is stored.
    ok(*apply(engine, OpenDocument("Task", row_id(4)), update("Task", 4, {"ownerId": "bob"})))
    for number in range(4):
        ok(*apply(engine, PutSession(
            f"{number:064x}", f"user-{number}", number % 2 == 0, 1_700_000_000, number * 10**9,
            "a browser", None if number else "tenant",
        )))
    texts = {"text": "wörd\n", "int": 2**62, "bytes": b"\0\xff", "bool": 1}
    for number in range(2):  # the second record of each table has nulls
        ok(*apply(engine, *(
            PutRecord(table.name, {
                column.name: f"{number}" if column.name in table.key else texts[column.kind]
                for column in table.columns if not (number and column.optional)
            })
            for table in TABLES if not (table.has_own_writes or (number and table.unique))
        )))
    ok(*apply(engine, SetRecords(
        "sessions", [Condition("session_id", "=", f"{1:064x}")],
        {"family": "f", "auth_time": 5, "methods": "password"},
    )))
    ok(*apply(engine, PutShard("arena", 12, b"\0\x01\xff state"), MoveShard("hall", "2")))


def all_rows(
    manager: TransferManager, manifest: Manifest = MANIFEST
) -> dict[str, list[Row]]:
    """Return all moved rows of a store, by table."""
    with closing(manager.open_source(manifest)) as source:
        found = {table.name: list(source.read_rows(table)) for table in list_tables(manifest)}
        found["facts"] = sorted(source.read_facts().items())
    return found


def move(
    source: TransferManager, target: TransferManager, *, restart: bool = False,
    manifest: Manifest = MANIFEST, progress: list[moves.Progress] | None = None,
) -> list[TableReport]:
    """Move all data, as `pylonctl migrate` does without `--online`."""
    with source.hold_source(), closing(source.open_source(manifest)) as opened, \
            closing(target.open_target(manifest)) as filled:
        made = moves.Move(
            filled, manifest, SystemClock(),
            progress.append if progress is not None else lambda _: None,
        )
        reports = made.copy(opened, made.find_note(restart=restart), is_online=False)
        made.finish(opened)
        return reports


def managers(direction: str, path: Path, url: str) -> tuple[TransferManager, TransferManager]:
    """Return source and target of a direction, `out` to PostgreSQL or `back` to SQLite."""
    # The driver is imported where a test has a server.
    postgres: Any = import_module("pylon.storage.postgres.transfer.manager")
    ends = SqliteTransfer(path), postgres.PostgresTransfer(url)
    return ends if direction == "out" else ends[::-1]


def _kill_in_second_transaction(target: Any) -> None:
    """Have the process kill itself after the statements of a transaction, before its COMMIT."""
    write_note = target._write_note
    steps = 0

    def killing(note: str) -> None:
        nonlocal steps
        write_note(note)
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    target._write_note = killing


def _be_killed(direction: str, path: Path, url: str) -> None:
    """Move, and be killed on the way unless little is left to do."""
    ends = managers(direction, path, url)
    opening = ends[1].open_target

    def open_killing(*args: Any) -> Any:
        target = opening(*args)
        _kill_in_second_transaction(target)
        return target

    ends[1].open_target = open_killing  # type: ignore[method-assign]
    move(*ends)


def _move_again_and_again(direction: str, path: Path, url: str, times: int) -> int:
    """See the module; the exit code. Each process is a fork, so only the first one imports."""
    managers(direction, path, url)
    kills = 0
    while kills < times:
        pid = os.fork()
        if not pid:
            _be_killed(direction, path, url)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            print(kills)
            return os.waitstatus_to_exitcode(status)
        kills += 1
    print(kills)
    return 0


if __name__ == "__main__":
    moves._CHUNK_ROWS = 7  # type: ignore[misc]
    sys.exit(_move_again_and_again(
        sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    ))
