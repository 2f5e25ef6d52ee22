"""A manifest with rules, engines and readers on it, and short write operations.

Used by the tests of `pylon.storage`, of schemas and of the change log.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import apsw
import orjson

from pylon import limits
from pylon.auth_context import ADMIN, AuthContext
from pylon.clock import Clock, ManualClock
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.policy.rules import compile_rules
from pylon.storage.interface import Reader, WriteEngine
from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    OpKey,
    UpdateRow,
    WriteReply,
    WriteRequest,
)
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from pylon.values import EntityCodec
from tests.support import stores

TASK = Entity(
    "Task",
    (
        Field("title", FieldType.STRING, optional=False, unique=False),
        Field("done", FieldType.BOOL, optional=False, unique=False),
        Field("rank", FieldType.INT, optional=True, unique=False),
        Field("weight", FieldType.FLOAT, optional=True, unique=False),
        Field("dueAt", FieldType.DATETIME, optional=True, unique=False),
        Field("ownerId", FieldType.ID, optional=True, unique=False, target="User"),
        Field("slug", FieldType.STRING, optional=True, unique=True),
    ),
    (Index("by_owner_rank", ("ownerId", "rank"), unique=True),
     Index("by_title", ("title",), unique=False)),
)
USER = Entity("User", (Field("email", FieldType.STRING, optional=False, unique=True),))
NOTE = Entity("Note", (Field("text", FieldType.RICHTEXT, optional=True, unique=False),))

MANIFEST = Manifest(
    "kit", "1.0", (TASK, USER, NOTE),
    policies=(
        Policy("owner", entity="Task", allow_read="auth.userId == data.ownerId",
               allow_insert="true", allow_update="auth.userId == data.ownerId && !data.done",
               allow_delete="auth.userId == data.ownerId && !data.done"),
        Policy("users", entity="User", allow="auth.isAdmin"),
        Policy("notes", entity="Note", allow="true"),
    ),
    references="none",  # owners without a row
)
RULES = compile_rules(MANIFEST)
CODECS = {e.name: EntityCodec(e) for e in MANIFEST.entities}
ADA = AuthContext(user_id="ada")
BOB = AuthContext(user_id="bob")
_ids = itertools.count(1)


def row_id(number: int) -> str:
    """A row id that sorts by `number`."""
    return f"{number:040x}"


def open_engine(
    path: Path, clock: Clock | None = None, manifest: Manifest = MANIFEST, **more: Any
) -> Any:
    """Open the database that `path` names, on the store of the test; `more` is SQLite's alone."""
    rules = RULES if manifest is MANIFEST else compile_rules(manifest)
    clock = clock or ManualClock()
    if more:
        durability = more.pop("durability", "normal")
        return SqliteEngine.open(path, manifest, rules, clock, durability, **more)
    backend = stores.backend_at(path, PYLON_ROW_MAX_BYTES=str(limits.BODY_BYTES))
    return backend.open_writer(manifest, rules, clock)


def open_reader(path: Path, **more: Any) -> Any:
    """A reader of the database that `path` names; `more` is SQLite's alone."""
    if more:
        return SqliteReader(path, MANIFEST, **more)
    return stores.backend_at(path).open_reader(MANIFEST)


def insert(
    entity: str, number: int, body: dict[str, Any], op: str | None = None,
    client_id: bool = False, identity: str = "",
) -> InsertRow:
    encoded = CODECS[entity].insert(body, row_id(number))
    key = OpKey(identity, op) if op else None
    return InsertRow(entity, row_id(number), encoded.values, encoded.row_json, client_id, key)


def task(number: int, **fields: Any) -> InsertRow:
    op = fields.pop("op", None)
    client_id = fields.pop("client_id", False)
    body = {"title": f"task {number}", "done": False, "ownerId": "ada", **fields}
    return insert("Task", number, body, op, client_id)


def update(
    entity: str, number: int, patch: dict[str, Any], auth: AuthContext = ADMIN,
    op: str | None = None,
) -> UpdateRow:
    key = OpKey(auth.identity, op) if op else None
    return UpdateRow(entity, row_id(number), patch, auth, key)


def delete(
    entity: str, number: int, auth: AuthContext = ADMIN, op: str | None = None
) -> DeleteRow:
    key = OpKey(auth.identity, op) if op else None
    return DeleteRow(entity, row_id(number), auth, key)


def apply(engine: WriteEngine, *ops: Any) -> list[WriteReply]:
    """Carry out `ops` as one batch."""
    return engine.apply([WriteRequest(next(_ids), op) for op in ops]).replies


def code(reply: WriteReply) -> str | None:
    return reply.error.code if reply.error else None


def rows_of(reader: Reader, entity: str) -> dict[str, dict[str, Any]]:
    """All rows of an entity, decoded, by id."""
    from pylon.query.predicate import TRUE
    from pylon.query.rows import Query

    found = [orjson.loads(r) for r in reader.rows(entity, Query(TRUE, limit=100_000))]
    return {r["id"]: r for r in found}


def versions(path: Path, entity: str) -> dict[str, int | None]:
    """Return the versions of an entity's rows in a SQLite file, by id."""
    return dict(apsw.Connection(str(path)).execute(f"SELECT id, _seq FROM {entity}").fetchall())
