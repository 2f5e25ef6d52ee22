"""B1: response times do not reveal a hidden row. A filter meets only rows that policy has passed:
counted where patterns look at texts, and measured by an attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import gevent
import orjson
import pytest

from pylon import limits
from pylon.api.data.aggregate import match_tenant
from pylon.api.data.graph import parse_request
from pylon.api.data.search import _find
from pylon.app import App, build_app
from pylon.auth_context import AuthContext
from pylon.clock import ManualClock
from pylon.config import load
from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.query.aggregate import parse_aggregate
from pylon.query.conditions import and_, guarded
from pylon.query.matcher import matcher_of
from pylon.query.parse import parse_where
from pylon.query.patterns import LikePattern
from pylon.query.rows import parse_filter
from pylon.query.search import parse_search
from pylon.storage.ops import InsertRow, WriteRequest
from pylon.storage.sql.compiler import compile_predicate
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from pylon.storage.sqlite.schema.ddl import create_table
from pylon.storage.sqlite.search import RELEVANCE, relevant
from tests.support.api import ADMIN_TOKEN, ENVIRON, ApiStage, serve_api
from tests.support.live import LiveClient, LiveStage
from tests.support.manifests import field
from tests.support.stage import MANIFEST as HUB_MANIFEST
from tests.support.storage import row_id

ADA, BOB = AuthContext(user_id="ada"), AuthContext(user_id="bob")
PIN = "4071"
HIDDEN = f"{PIN} {'secret ' * 200}"
VISIBLE = "what everybody knows"
ENTITIES = ("Open", "Mine", "Found", "Asked")  # how they are read: see below
Ask = Callable[[SqliteReader, App, str, dict[str, Any]], object]


def secrets_app() -> dict[str, Any]:
    """Four entities alike: rows are shared or their owner's; their owner's, by an index; shared or
    their owner's with a full-text index; and those that a grant names. `pin` and `parentId` have
    an index, `token` is unique."""
    rules = {
        "Open": "data.shared || data.ownerId == auth.userId",
        "Mine": "data.ownerId == auth.userId",
        "Found": "data.shared || data.ownerId == auth.userId",
        "Asked": "exists(Grant, ownerId == data.ownerId, userId == auth.userId)",
    }
    entities = []
    for name in ENTITIES:
        entity: dict[str, Any] = {
            "name": name, "crdt": False,
            "fields": [
                field("text", "string"), field("note", "string"), field("pin", "string"),
                field("ownerId", "string"), field("shared", "bool"),
                field("parentId", "string", optional=True),
                field("token", "string", optional=True, unique=True),
            ],
            "indexes": [
                {"name": f"{name}_by_{f}", "fields": [f], "unique": False}
                for f in ("pin", "ownerId", "parentId")
            ],
            "relations": [
                {"name": "parent", "target": name, "field": "parentId"},
                {"name": "children", "target": name, "field": "parentId", "many": True},
            ],
            "search": {"text": [], "facets": ["note", "shared"], "sortable": ["pin"]},
        }
        if name == "Found":
            entity["search"]["text"] = ["text"]
        entities.append(entity)
    entities.append({
        "name": "Grant", "crdt": False,
        "fields": [field("ownerId", "string"), field("userId", "string")],
        "indexes": [{"name": "by_user", "fields": ["userId", "ownerId"], "unique": True}],
    })
    return {
        "manifest_version": 1, "name": "secrets", "version": "1", "routes": [],
        "entities": entities,
        "policies": [
            {"name": name, "entity": name, "allowRead": rules[name], "allowWrite": "true"}
            for name in ENTITIES
        ],
    }


def secrets_manifest() -> Manifest:
    return parse_manifest(orjson.dumps(secrets_app()).decode(), "secrets.json")


class Watched:
    """A reader whose LIKE and instr() note what texts they see."""

    def __init__(self, path: Path, app: App) -> None:
        self.app = app
        self.reader = SqliteReader(path, app.manifest)
        self.seen: list[str] = []
        conn = self.reader._conn
        for name, count in (("like", 2), ("like", 3), ("instr", 2)):
            conn.create_scalar_function(name, self._note, count)
        for name in ("pylon_like", "pylon_contains"):
            conn.create_scalar_function(name, self._note_bytes, 2)

    def _note(self, *values: Any) -> int:
        # LIKE passes its pattern first.
        self.seen += [v for v in values if isinstance(v, str) and v in (HIDDEN, VISIBLE)]
        return 1

    def _note_bytes(self, *values: Any) -> int:
        return self._note(values[0].decode())


@pytest.fixture(params=[False, True], ids=["", "analysed"])
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    manifest = secrets_manifest()
    app = build_app(load(ENVIRON).config, manifest)
    path = tmp_path / "a.db"
    engine = SqliteEngine.open(path, manifest, app.rules, ManualClock(), "normal")
    ops: list[InsertRow] = []
    for name in ENTITIES:
        for number in range(1, 41):
            is_hidden = number % 4 != 0
            encoded = app.codecs[name].insert(
                {
                    "text": HIDDEN if is_hidden else VISIBLE, "note": "n", "shared": False,
                    "pin": PIN, "ownerId": "ada" if is_hidden else "bob",
                    "parentId": row_id(number % 9 + 1),
                },
                row_id(number),
            )
            ops.append(InsertRow(name, row_id(number), encoded.values, encoded.row_json))
    grant = app.codecs["Grant"].insert({"ownerId": "bob", "userId": "bob"}, row_id(1))
    ops.append(InsertRow("Grant", row_id(1), grant.values, grant.row_json))
    replies = engine.apply([WriteRequest(n, op) for n, op in enumerate(ops, 1)]).replies
    assert not any(reply.error for reply in replies)
    if request.param:
        engine._conn.execute("ANALYZE")
    engine.close()
    made = Watched(path, app)
    yield made
    made.reader.close()


def ask_query(reader: SqliteReader, app: App, entity: str, where: dict[str, Any]) -> object:
    named, allowed = app.manifest.by_name[entity], app.rules.for_entity(entity).readable_by(BOB)
    query = parse_filter(named, {**where, "$order": {"text": "desc"}}, 100, allowed)
    return reader.rows(entity, query), reader.count(entity, query.where)


def ask_aggregate(reader: SqliteReader, app: App, entity: str, where: dict[str, Any]) -> object:
    named, allowed = app.manifest.by_name[entity], app.rules.for_entity(entity).readable_by(BOB)
    allowed = and_(allowed, match_tenant(named, BOB))
    body = {"count": "*", "min": ["text"], "groupBy": ["pin"], "where": where}
    return reader.aggregate(entity, parse_aggregate(named, body, allowed))


def ask_graph(reader: SqliteReader, app: App, entity: str, where: dict[str, Any]) -> object:
    return reader.graph(parse_request(app, BOB, {entity: {"where": where}}))


def ask_one(reader: SqliteReader, app: App, entity: str, where: dict[str, Any]) -> object:
    body = {entity: {"include": {"parent": {"where": where}}}}
    return reader.graph(parse_request(app, BOB, body))


def ask_many(reader: SqliteReader, app: App, entity: str, where: dict[str, Any]) -> object:
    inner = {"children": {"where": where, "order": {"text": "asc"}, "limit": 2}}
    return reader.graph(parse_request(app, BOB, {entity: {"include": inner}}))


def ask_live(reader: SqliteReader, app: App, entity: str, where: dict[str, Any]) -> object:
    named, allowed = app.manifest.by_name[entity], app.rules.for_entity(entity).readable_by(BOB)
    return reader.count(entity, matcher_of(named, where, allowed).where)


WAYS: dict[str, Ask] = {
    "query": ask_query, "aggregate": ask_aggregate, "graph": ask_graph, "to-one": ask_one,
    "to-many": ask_many, "live": ask_live,
}
FILTERS: dict[str, dict[str, Any]] = {
    "exact": {"text": {"$like": "4071 "}},
    "like": {"text": {"$like": "secret"}},
    "hard": {"text": {"$like": "s" * 40}},
    "behind an index": {"pin": PIN, "text": {"$like": "secret"}},
    "behind a range": {"pin": {"$gt": "4"}, "text": {"$like": "secret"}},
    "behind ids": {"id": {"$in": [row_id(1), row_id(4)]}, "text": {"$like": "secret"}},
    "either": {"$or": [{"pin": PIN, "text": {"$like": "se"}}, {"text": {"$like": "what"}}]},
    "either match": {"$or": [{"$search": "nowhere"}, {"text": {"$like": "what"}}]},
    "both": {"$and": [{"pin": PIN}, {"$or": [{"text": {"$like": "w_at"}}, {"note": "x"}]}]},
}


@pytest.mark.parametrize(
    ("way", "asked"),  # a live query has no $search
    [(w, a) for w in WAYS for a in FILTERS if (w, a) != ("live", "either match")],
)
def test_no_pattern_meets_a_hidden_row(watched: Watched, way: str, asked: str) -> None:
    for entity in ENTITIES:
        watched.seen.clear()
        WAYS[way](watched.reader, watched.app, entity, FILTERS[asked])
        assert VISIBLE in watched.seen
        assert HIDDEN not in watched.seen


@pytest.mark.parametrize(
    "body",
    [
        {"query": "secret 4071"},
        {"query": "secret", "filters": {"note": "n"}, "facets": ["note", "shared"]},
        {"query": "secret", "sort": ["pin", "asc"], "facets": ["note"]},
    ],
)
def test_no_word_is_looked_for_in_a_hidden_row(watched: Watched, body: dict[str, Any]) -> None:
    """Where there is no full-text index. `$search` in a filter is the same."""
    for entity in ("Open", "Mine"):
        named = watched.app.manifest.by_name[entity]
        assert named.search is not None
        allowed = watched.app.rules.for_entity(entity).readable_by(BOB)
        watched.seen.clear()
        _find(watched.reader, named, parse_search(named, named.search, body), allowed)
        query = parse_filter(named, {"$search": "secret", "$order": {"text": "asc"}}, 9, allowed)
        watched.reader.rows(entity, query)
        assert VISIBLE in watched.seen
        assert HIDDEN not in watched.seen


def test_relevance_is_computed_for_rows_that_policy_has_passed(watched: Watched) -> None:
    named = watched.app.manifest.by_name["Found"]
    allowed = watched.app.rules.for_entity("Found").readable_by(BOB)
    both = guarded(allowed, parse_where(named, {"note": "n"}))
    where = compile_predicate(SQLITE, named, both, True)
    sql = f"SELECT _json FROM {relevant(named)} WHERE {where.sql} ORDER BY {RELEVANCE}, id"
    program = watched.reader._conn.execute(f"EXPLAIN {sql}", ("secret", *where.params))
    steps = [(row[1], str(row[5])) for row in program.fetchall()]
    ranked = next(n for n, (op, p4) in enumerate(steps) if op == "Function" and "bm25" in p4)
    judged = max(n for n, (op, _) in enumerate(steps[:ranked]) if op in ("IfNot", "If"))
    opened = next(n for n, (op, _) in enumerate(steps) if op == "VFilter")
    assert opened < judged < ranked


def test_an_index_serves_what_a_caller_compares(watched: Watched) -> None:
    """Policy first must not mean that each row of a table is looked at."""
    named = watched.app.manifest.by_name["Open"]
    allowed = watched.app.rules.for_entity("Open").readable_by(BOB)
    served: list[dict[str, Any]] = [
        {"pin": PIN}, {"pin": {"$gt": "1", "$lt": "2"}}, {"pin": {"$startsWith": "4"}},
        {"$or": [{"pin": "1"}, {"parentId": "x"}]}, {"$and": [{"pin": {"$in": ["1", "2"]}}]},
        {"id": row_id(4)}, {"ownerId": "bob"},
    ]
    tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_stat1'"
    if watched.reader._conn.execute(tables).get:
        return  # SQLite knows by now that its 40 rows are alike
    for body in served:
        where = compile_predicate(SQLITE, named, parse_filter(named, body, 10, allowed).where)
        plan = watched.reader._conn.execute(
            f'EXPLAIN QUERY PLAN SELECT _json FROM "Open" WHERE {where.sql}', where.params
        ).fetchall()
        assert all("SCAN Open" not in row[3] for row in plan), (body, plan)


def test_an_index_that_begins_with_what_policy_compares_serves_a_range_behind_it() -> None:
    document = secrets_app()
    document["entities"] = document["entities"][1:2]
    document["policies"] = document["policies"][1:2]
    document["entities"][0]["indexes"] = [
        {"name": "by_owner_pin", "fields": ["ownerId", "pin"], "unique": False}
    ]
    document["entities"][0]["search"] = {"text": [], "facets": [], "sortable": []}
    manifest = parse_manifest(orjson.dumps(document).decode(), "secrets.json")
    named = manifest.by_name["Mine"]
    allowed = compile_rules(manifest).for_entity("Mine").readable_by(BOB)
    wanted = parse_where(named, {"pin": {"$gt": "1"}, "note": "n"})
    where = compile_predicate(SQLITE, named, guarded(allowed, wanted))
    conn = apsw.Connection(":memory:")
    conn.execute(create_table(named))
    conn.execute('CREATE INDEX by_owner_pin ON "Mine" ("ownerId", pin)')
    plan = conn.execute(
        f'EXPLAIN QUERY PLAN SELECT id FROM "Mine" WHERE {where.sql}', where.params
    ).fetchall()
    assert "by_owner_pin (ownerId=? AND pin>?)" in plan[0][3]


def test_a_range_of_an_index_is_looked_through_once(watched: Watched) -> None:
    """Twice the ranges would be twice the time that one hidden row takes."""
    app = watched.app
    named, allowed = app.manifest.by_name["Open"], app.rules.for_entity("Open").readable_by(BOB)

    def path(body: dict[str, Any]) -> str:
        query = parse_filter(named, body, 10, allowed)
        return compile_predicate(SQLITE, named, query.where).sql.split("CASE WHEN")[0]

    assert path({"pin": PIN, "note": "n"}).count('"pin"') == 1
    assert '"note"' not in path({"pin": PIN, "note": "n", "text": {"$gt": "a"}})
    assert '"text"' not in path({"note": "n", "text": {"$gt": "a"}})
    assert '"token"' in path({"token": "a", "note": "n"})
    for beginning in ({"$startsWith": "a"}, {"$gt": "a", "$lt": "b"}):
        assert '"token"' not in path({"token": beginning, "note": "n"}), "it is there to be unique"
    overlapping = [{"pin": {"$gt": f"{n}"}} for n in range(20)]
    assert '"pin"' not in path({"$or": overlapping})
    assert path({"$or": [{"pin": PIN, "note": f"{n}"} for n in range(10)]}).count('"pin"') == 1
    for body in ({"parent": {"where": {"pin": PIN}}}, {"children": {"where": {"pin": PIN}}}):
        (node,) = parse_request(app, BOB, {"Open": {"include": body}})
        included = compile_predicate(SQLITE, named, node.includes[0].node.where, True).sql
        assert included.index("CASE WHEN") < included.index('"pin"'), "many rows lead to one"


def test_the_attack_that_read_a_pin_by_the_time_reads_nothing(watched: Watched) -> None:
    """One digit after the other: does the hidden row meet the pattern behind it?"""
    reader = SqliteReader(Path(watched.reader._conn.filename), watched.app.manifest)

    def time_of(auth: AuthContext, guess: str, entity: str) -> float:
        named, rules = watched.app.manifest.by_name[entity], watched.app.rules.for_entity(entity)
        # What an index could serve would be no secret: the text has none.
        body = {"text": {"$startsWith": guess, "$like": f"{'secret ' * 30}_{'s' * 40}"}}
        query = parse_filter(named, body, 10, rules.readable_by(auth))
        times = []
        for _ in range(25):
            started = time.thread_time_ns()
            reader.rows(entity, query)
            times.append(time.thread_time_ns() - started)
        return min(times)

    def attacked(auth: AuthContext, entity: str) -> str:
        known = ""
        while len(known) < len(PIN):
            known = max((known + d for d in "0123456789"), key=lambda g: time_of(auth, g, entity))
        return known

    assert attacked(ADA, "Open") == PIN, "the attack works where there is nothing to hide"
    for entity in ENTITIES:
        assert attacked(BOB, entity) != PIN
    reader.close()


# --- Live queries, and single rows ----------------------------------------------------------------


def test_no_live_query_looks_at_a_change_of_a_hidden_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    matches = LikePattern.matches

    def noted(self: LikePattern, text: str, *more: Any) -> bool:
        seen.append(text)
        return matches(self, text, *more)

    monkeypatch.setattr(LikePattern, "matches", noted)
    manifest = parse_manifest(orjson.dumps(HUB_MANIFEST).decode(), "manifest.json")
    world = LiveStage(tmp_path, manifest)
    try:
        client = LiveClient(world, BOB)
        for name in ("Note", "Mine"):
            client.subscribe(name, name, {"text": {"$like": "secret"}})
        for name in ("Note", "Mine"):
            world.write(world.insert(name, row_id(1), text=HIDDEN, ownerId="ada"))
            world.write(world.insert(name, row_id(2), text=VISIBLE, ownerId="bob"))
        world.publish()
    finally:
        world.close()
    assert VISIBLE in seen
    assert HIDDEN not in seen


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, secrets_app()) as made:
        yield made


def test_a_hidden_row_is_answered_no_later_than_none(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"text": "x" * 500_000, "note": "n", "pin": PIN, "ownerId": "ada", "shared": False}
    made = server.call("POST", "/api/entities/Open", body, ADMIN_TOKEN)
    waits: list[float] = []
    decoded: list[int] = []
    loads = orjson.loads
    monkeypatch.setattr(gevent, "sleep", waits.append)
    monkeypatch.setattr(orjson, "loads", lambda raw: decoded.append(len(raw)) or loads(raw))
    for path in (
        f"/api/entities/Open/{made.json['id']}", f"/api/entities/Open/{row_id(99)}",
        f"/api/lookup/Open/pin/{PIN}", "/api/lookup/Open/pin/1234",
    ):
        waits.clear()
        assert server.call("GET", path).status_code == 404
        assert len(waits) == 1
        assert 0 < waits[0] <= limits.ABSENCE_S
    assert max(decoded, default=0) < 500_000, "nobody decodes what nobody may see"
