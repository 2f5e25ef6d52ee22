"""Filters, graph queries and aggregates answer what a plain evaluation over the rows that the
caller may read answers: for random rows and requests, and for callers of every kind. So no row
that policy refuses shows at any level or in any number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pylon import config as configuration
from pylon import limits
from pylon.api.data.aggregate import match_tenant
from pylon.api.data.graph import parse_request
from pylon.app import App, build_app
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.errors import LimitExceeded, PylonError
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy, Relation
from pylon.query.aggregate import parse_aggregate
from pylon.query.conditions import and_
from pylon.query.rows import Query, parse_filter
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.reader import SqliteReader
from pylon.values import EntityCodec
from tests.support import query_model
from tests.support.api import ENVIRON
from tests.support.examples import count_examples
from tests.support.moments import MOMENTS
from tests.support.storage import open_engine

PERSON = Entity(
    "Person",
    (
        Field("name", FieldType.STRING, optional=False, unique=False),
        Field("orgId", FieldType.STRING, optional=True, unique=False),
        Field("bossId", FieldType.ID, optional=True, unique=False, target="Person"),
        Field("j", FieldType.INT, optional=True, unique=False),
    ),
    relations=(
        Relation("boss", "Person", "bossId"),
        Relation("team", "Person", "bossId", many=True),
        Relation("tasks", "Task", "ownerId", many=True),
        Relation("name", "Person", "bossId"),  # takes the place of the field of that name
    ),
)
TASK = Entity(
    "Task",
    (
        Field("title", FieldType.STRING, optional=False, unique=False),
        Field("done", FieldType.BOOL, optional=True, unique=False),
        Field("rank", FieldType.INT, optional=True, unique=False),
        Field("weight", FieldType.FLOAT, optional=True, unique=False),
        Field("dueAt", FieldType.DATETIME, optional=True, unique=False),
        Field("ownerId", FieldType.ID, optional=True, unique=False, target="Person"),
        Field("orgId", FieldType.STRING, optional=True, unique=False),
    ),
    (Index("by_rank", ("rank",), unique=False),),
    relations=(
        Relation("owner", "Person", "ownerId"), Relation("kin", "Task", "ownerId", many=True),
    ),
)
MANIFEST = Manifest(
    "model", "1", (PERSON, TASK),
    policies=(
        Policy("people", "Person", allow_read="data.orgId == null || data.orgId == auth.tenantId"),
        Policy("tasks", "Task", allow_read="auth.userId == data.ownerId || data.rank > 1"),
    ),
)
CODECS = {entity.name: EntityCodec(entity) for entity in MANIFEST.entities}
IDS = [f"{n:040x}" for n in range(5)]
CALLERS = st.sampled_from([
    ADMIN, ANONYMOUS, AuthContext(user_id=IDS[0]), AuthContext(user_id=IDS[1], tenant_id="o1"),
    AuthContext(user_id=IDS[2], is_guest=True), AuthContext(is_admin=True, tenant_id="o2"),
])
LIST_LIMIT = 1_000


class Store:
    """An app, its rows, and a reader. Rows are written without the engine, for speed."""

    def __init__(self, path: Path) -> None:
        open_engine(path, manifest=MANIFEST).close()
        self.app: App = build_app(configuration.load(ENVIRON).config, MANIFEST)
        self.reader = SqliteReader(path, MANIFEST)
        self._conn = apsw.Connection(str(path))

    def fill(self, rows: query_model.Rows) -> None:
        with self._conn:
            for name, some in rows.items():
                entity = MANIFEST.by_name[name]
                self._conn.execute(f"DELETE FROM {quote(name)}")
                columns = ", ".join(quote(c) for c in (*entity.columns, "_json"))
                marks = ", ".join("?" * (len(entity.columns) + 1))
                for row in some:
                    encoded = CODECS[name].insert(
                        {k: v for k, v in row.items() if k != "id"}, row["id"]
                    )
                    self._conn.execute(
                        f"INSERT INTO {quote(name)} ({columns}) VALUES ({marks})",
                        (row["id"], *encoded.values, encoded.row_json.decode()),
                    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("model") / "a.db")


# --- Rows and requests ---------------------------------------------------------------------------

NAMES = st.sampled_from(["ada", "Bob", "bo_b", "100%", "a\"b\\", "é\x1f\x1d\x1e}", ""])
ORGS = st.sampled_from([None, "o1", "o2"])
INTS = st.sampled_from([None, -1, 0, 1, 2, 3, 2**53 + 1, 2**63 - 1, -(2**63)])
FLOATS = st.sampled_from([None, 0.0, -1.5, 0.1, 2.0, 1e17, 3.0000000000000004])
VALUES = {
    "id": st.sampled_from(IDS), "name": NAMES, "title": NAMES, "orgId": ORGS, "j": INTS,
    "bossId": st.sampled_from([*IDS, None]), "ownerId": st.sampled_from([*IDS, None]),
    "done": st.sampled_from([True, False, None]), "rank": INTS, "weight": FLOATS,
    "dueAt": MOMENTS | st.none(),
}
TEXTS = frozenset({"id", "name", "title", "orgId", "bossId", "ownerId", "dueAt"})


def rows_of(entity: Entity, ids: list[str]) -> st.SearchStrategy[list[query_model.Row]]:
    row = st.fixed_dictionaries({name: VALUES[name] for name in entity.columns})
    return st.lists(row, min_size=2, max_size=len(ids)).map(
        lambda some: [{**row, "id": ids[n]} for n, row in enumerate(some)]
    )


ROWS = st.fixed_dictionaries({
    "Person": rows_of(PERSON, IDS), "Task": rows_of(TASK, [f"{n:040x}" for n in range(7, 14)]),
})


@st.composite
def conditions(draw: st.DrawFn, entity: Entity) -> dict[str, Any]:
    name = draw(st.sampled_from(entity.columns))
    value = VALUES[name].filter(lambda v: v is not None)
    choices: dict[str, st.SearchStrategy[Any]] = {
        "": VALUES[name], "$ne": VALUES[name], "$not": value, "$exists": st.booleans(),
        "$in": st.lists(VALUES[name], max_size=3), "$nin": st.lists(VALUES[name], max_size=3),
        "$gt": value, "$gte": value, "$lt": value, "$lte": value,
    }
    if name in TEXTS:
        choices["$like"] = st.sampled_from(["a", "B", "_", "%", "o_b", "31", "Z", ""])
        choices["$startsWith"] = st.sampled_from(["", "b", "2026", "o", "0"])
    known = st.sampled_from(sorted(choices))
    operators = draw(st.lists(known, min_size=1, max_size=2, unique=True))
    if "" in operators:
        return {name: draw(choices[""])}
    return {name: {operator: draw(choices[operator]) for operator in operators}}


def filters(entity: Entity) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.just({}),
        st.recursive(
            conditions(entity),
            lambda inner: st.builds(
                lambda key, parts, beside: {**beside, key: parts},
                st.sampled_from(["$or", "$and"]), st.lists(inner, max_size=3), inner,
            ),
            max_leaves=5,
        ),
    )


def orders(entity: Entity) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(
        st.sampled_from(entity.columns), st.sampled_from(["asc", "desc"]), max_size=2
    )


def nodes(entity: Entity, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    members: dict[str, st.SearchStrategy[Any]] = {
        "where": filters(entity), "order": orders(entity),
        "limit": st.none() | st.integers(0, 3), "offset": st.integers(0, 1),
    }
    always: dict[str, st.SearchStrategy[Any]] = {}
    if depth < limits.GRAPH_DEPTH:
        relations = {
            relation.name: st.deferred(
                lambda target=relation.target: nodes(MANIFEST.by_name[target], depth + 1)
            )
            for relation in entity.relations
        }
        (members if depth else always)["include"] = st.fixed_dictionaries({}, optional=relations)
    return st.fixed_dictionaries(always, optional=members)


GRAPHS = st.fixed_dictionaries({"Person": nodes(PERSON)}, optional={"Task": nodes(TASK)})
BUCKETS = st.sampled_from(["hour", "day", "week", "month", "year"])
AGGREGATES = st.fixed_dictionaries(
    {"count": st.just("*") | st.sampled_from(TASK.columns)},
    optional={
        "where": filters(TASK),
        "sum": st.lists(st.sampled_from(["rank", "weight", "done"]), unique=True),
        "avg": st.lists(st.sampled_from(["rank", "weight"]), unique=True),
        "min": st.lists(st.sampled_from(TASK.columns), unique=True),
        "max": st.lists(st.sampled_from(TASK.columns), unique=True),
        "countDistinct": st.lists(st.sampled_from(TASK.columns), unique=True),
        "groupBy": st.lists(
            st.sampled_from([c for c in TASK.columns if c != "dueAt"])
            | st.builds(lambda b: {"field": "dueAt", "bucket": b}, BUCKETS),
            max_size=3, unique_by=str,
        ),
    },
)
MODEL = settings(
    max_examples=count_examples(250),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- What must be true --------------------------------------------------------------------------


@MODEL
@given(ROWS, filters(TASK), orders(TASK), st.none() | st.integers(0, 3), CALLERS)
def test_filters(
    store: Store, rows: query_model.Rows, where: dict[str, Any], order: dict[str, str],
    limit: int | None, auth: AuthContext,
) -> None:
    store.fill(rows)
    rows = query_model.as_stored(rows)
    allowed = store.app.rules.for_entity("Task").readable_by(auth)
    query = parse_filter(TASK, {**where, "$order": order, "$limit": limit}, LIST_LIMIT, allowed)
    seen = query_model.readable(store.app.rules, auth, rows)["Task"]
    wanted = query_model.selected({"where": where, "order": order, "limit": limit}, seen, None)
    event(f"rows: {len(wanted)}")
    assert [orjson.loads(r) for r in store.reader.rows("Task", query)] == wanted
    count, page = store.reader.page("Task", query)
    assert (count, orjson.loads(page)) == (len(wanted), wanted)
    total = query_model.selected({"where": where}, seen, None)
    assert store.reader.count("Task", query.where) == len(total)


@MODEL
@given(ROWS, GRAPHS, CALLERS)
def test_graphs(
    store: Store, rows: query_model.Rows, body: dict[str, Any], auth: AuthContext
) -> None:
    store.fill(rows)
    rows = query_model.as_stored(rows)
    asked = _without_limits_of_one(MANIFEST, body)
    seen = query_model.readable(store.app.rules, auth, rows)
    wanted = query_model.graph(MANIFEST, asked, seen, LIST_LIMIT)
    try:
        graph = parse_request(store.app, auth, asked)
    except PylonError as error:
        assert isinstance(error, LimitExceeded), error
        event("too large")
        return
    answer = store.reader.graph(graph)
    event(f"nested: {answer.count(b'{') - 1 > sum(map(len, wanted.values()))}")
    assert orjson.loads(answer) == wanted


def _without_limits_of_one(manifest: Manifest, body: dict[str, Any]) -> dict[str, Any]:
    """To-one includes with nothing but a filter and includes: there is one row at most."""

    def cleaned(entity: Entity, node: dict[str, Any]) -> dict[str, Any]:
        kept = dict(node)
        included = {}
        for relation in entity.relations:
            if relation.name not in node.get("include", {}):
                continue
            inner = cleaned(manifest.by_name[relation.target], node["include"][relation.name])
            if not relation.many:
                inner = {k: v for k, v in inner.items() if k in ("where", "include")}
            included[relation.name] = inner
        if included:
            kept["include"] = included
        return kept

    return {name: cleaned(manifest.by_name[name], node) for name, node in body.items()}


@MODEL
@given(ROWS, AGGREGATES, CALLERS)
def test_aggregates(
    store: Store, rows: query_model.Rows, body: dict[str, Any], auth: AuthContext
) -> None:
    store.fill(rows)
    rows = query_model.as_stored(rows)
    allowed = and_(store.app.rules.for_entity("Task").readable_by(auth), match_tenant(TASK, auth))
    found = store.reader.aggregate("Task", parse_aggregate(TASK, body, allowed))
    seen = [
        row for row in query_model.readable(store.app.rules, auth, rows)["Task"]
        if auth.tenant_id is None or row["orgId"] == auth.tenant_id
    ]
    wanted = query_model.aggregate(TASK, body, seen)
    event(f"groups: {len(wanted)}")
    assert len(found) == len(wanted)
    for row in wanted:
        keys = [key for key in row if not key.startswith(("sum_", "avg_"))]
        same = [other for other in found if all(_same(other[key], row[key]) for key in keys)]
        assert any(
            other.keys() == row.keys() and all(_close(other[key], row[key]) for key in row)
            for other in same
        ), (row, found)


def _same(found: Any, wanted: Any) -> bool:
    return type(found) is type(wanted) and bool(found == wanted)


def _close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(found, float):
        return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-6)
    return _same(found, wanted)


def test_the_rows_of_a_graph_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        {**dict.fromkeys(TASK.columns), "title": "t", "ownerId": IDS[0], "id": f"{n:040x}"}
        for n in range(20)
    ]
    store.fill({"Person": [{**dict.fromkeys(PERSON.columns), "name": "a", "id": IDS[0]}],
                "Task": tasks})
    body = {"Person": {"include": {"tasks": {}}}}
    monkeypatch.setattr(limits, "GRAPH_ROWS", 21)
    answer = orjson.loads(store.reader.graph(parse_request(store.app, ADMIN, body)))
    assert len(answer["Person"][0]["tasks"]) == 20
    monkeypatch.setattr(limits, "GRAPH_ROWS", 20)
    with pytest.raises(LimitExceeded, match="20 rows"):
        store.reader.graph(parse_request(store.app, ADMIN, body))
    with pytest.raises(LimitExceeded, match="20 rows"):
        store.reader.graph(parse_request(store.app, ADMIN, {"Task": {}, "Person": {}}))
    many = {"Task": {"include": {"owner": {"include": {r: {} for r in ("boss", "team", "tasks")}}}}}
    monkeypatch.setattr(limits, "GRAPH_NODES", 4)
    with pytest.raises(LimitExceeded, match="4 entities"):
        parse_request(store.app, ADMIN, many)


def test_the_groups_of_an_aggregate_are_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**dict.fromkeys(TASK.columns), "title": "t", "rank": n, "id": f"{n:040x}"}
            for n in range(5)]
    store.fill({"Person": [], "Task": rows})
    asked = parse_aggregate(TASK, {"groupBy": ["rank"]})
    monkeypatch.setattr(limits, "AGGREGATE_GROUPS", 5)
    assert store.reader.aggregate("Task", asked) == [{"rank": n} for n in range(5)]
    monkeypatch.setattr(limits, "AGGREGATE_GROUPS", 4)
    with pytest.raises(LimitExceeded, match="4 groups"):
        store.reader.aggregate("Task", asked)
    with pytest.raises(LimitExceeded, match="64"):
        parse_aggregate(TASK, {"sum": ["rank"] * 65})


def test_one_statement_for_each_to_many_relation(store: Store) -> None:
    person = {**dict.fromkeys(PERSON.columns), "name": "a", "bossId": IDS[0]}
    people = [{**person, "id": row_id} for row_id in IDS]
    store.fill({"Person": people, "Task": []})
    body = {"Person": {"include": {"boss": {"include": {"tasks": {}}}, "team": {
        "include": {"tasks": {}, "boss": {}}}}}}
    graph = parse_request(store.app, ADMIN, body)
    statements: list[str] = []
    store.reader._conn.exec_trace = lambda _, sql, __: statements.append(sql) or True
    try:
        store.reader.graph(graph)
    finally:
        store.reader._conn.exec_trace = None
    assert [sql for sql in statements if sql.startswith("SELECT")] == statements[1:-1]
    assert len(statements) == 2 + 4  # BEGIN, COMMIT; the people, tasks, team, tasks of the team


@pytest.mark.parametrize("limit", [0, 1])
def test_a_query_of_a_page(store: Store, limit: int) -> None:
    rows = [{**dict.fromkeys(TASK.columns), "title": "t", "id": f"{n:040x}"} for n in range(2)]
    store.fill({"Person": [], "Task": rows})
    everything = parse_filter(TASK, {}, LIST_LIMIT).where
    assert store.reader.page("Task", Query(everything, limit=limit))[0] == limit
