"""SQLite's plans for rules with ``exists(...)``: no statement of a caller reads a whole table.

A member's list begins with the member's rows; a read by key looks one row up. A caller whose list
is long gets pages in their order instead, and the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylon.auth_context import AuthContext
from pylon.changelog.related_rows import ChangedRows, PastRows, related_at
from pylon.clock import ManualClock
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy, Search
from pylon.policy.rules import compile_rules
from pylon.query.conditions import and_, equal, guarded
from pylon.query.predicate import TRUE, Predicate
from pylon.query.rows import Query, parse_filter
from pylon.storage.ops import InsertRow, WriteRequest
from pylon.storage.sql.compiler import CompiledCache, PredicateCompiler
from pylon.storage.sqlite import list_sizes
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from pylon.storage.sqlite.reads import EntityReads, selection
from pylon.values import EntityCodec
from tests.support import exists_app
from tests.support.examples import count_examples
from tests.support.exists_rules import ASKING_RULE, BODIES, CALLERS


def _texts(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, FieldType.STRING, True, False) for name in names)


ROOM = Entity("Room", _texts("teamId"), (Index("team", ("teamId",), False),))
MEMBER = Entity(
    "Member", _texts("roomId", "userId", "role"),
    (Index("user", ("userId", "roomId"), True),),
)
MESSAGE = Entity(
    "Message", _texts("roomId", "authorId", "sentAt", "body"),
    (
        Index("room", ("roomId", "sentAt"), False),
        Index("author", ("authorId",), False), Index("sent", ("sentAt",), False),
    ),
    search=Search(("body",), ("roomId",), ()),
)
ENTITIES = (ROOM, MEMBER, MESSAGE)
ANN = AuthContext(user_id="ann")
MINE = "exists(Member, roomId == data.roomId, userId == auth.userId)"
TEAM = (
    "exists(Room, id == data.roomId,"
    " exists(Member, roomId == Room.teamId, userId == auth.userId))"
)


def manifest(rule: str) -> Manifest:
    policies = [
        Policy("p", "Message", allow_read=rule),
        Policy("r", "Room", allow="true"), Policy("m", "Member", allow="true"),
    ]
    return Manifest("plans", "1", ENTITIES, policies=tuple(policies))


def allowed_by(rule: str) -> Predicate:
    return compile_rules(manifest(rule)).for_entity("Message").readable_by(ANN)


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> apsw.Connection:
    path: Path = tmp_path_factory.mktemp("plans") / "a.db"
    app = manifest("true")
    SqliteEngine.open(path, app, compile_rules(app), ManualClock(), "normal").close()
    return apsw.Connection(str(path))


def plan_of(connection: apsw.Connection, sql: str, params: tuple[Any, ...]) -> list[str]:
    """The lines of the plan that read a table."""
    found = [line for *_, line in connection.execute(f"EXPLAIN QUERY PLAN {sql}", params)]
    return [
        line for line in found
        if line.startswith(("SEARCH", "SCAN")) and line != "SCAN CONSTANT ROW"
    ]


def list_plan(connection: apsw.Connection, where: Predicate, **query: Any) -> list[str]:
    select = selection(EntityReads(MESSAGE, CompiledCache()), Query(where, 50, **query))
    return plan_of(connection, select.sql, select.params)


MESSAGES = "SEARCH Message USING INDEX Message_room (roomId=?)"
IDS_OF_MESSAGES = MESSAGES.replace("INDEX", "COVERING INDEX")
PAGE = "SEARCH Message USING PRIMARY KEY (id=?)"
MEMBERS = "SEARCH Member USING COVERING INDEX Member_user (userId=?)"


@pytest.mark.parametrize(("order", "ids"), [
    ((), IDS_OF_MESSAGES), ((("sentAt", True),), IDS_OF_MESSAGES), ((("body", False),), MESSAGES),
])
def test_list_and_count_begin_with_the_rooms_of_the_caller(
    connection: apsw.Connection, order: tuple[tuple[str, bool], ...], ids: str
) -> None:
    allowed = allowed_by(MINE)
    lines = list_plan(connection, allowed, order=order)
    assert lines == [PAGE, ids, MEMBERS], "only the rows of the page are read"
    clause = PredicateCompiler(SQLITE, MESSAGE, CompiledCache()).compile(allowed)
    text = f'SELECT count(*) FROM "Message" WHERE {clause.sql}'
    assert plan_of(connection, text, clause.params) == [IDS_OF_MESSAGES, MEMBERS]


def test_page_of_several_rooms_reads_only_its_rows(connection: apsw.Connection) -> None:
    query = parse_filter(
        MESSAGE, {"roomId": {"$in": ["r1", "r2"]}, "$order": {"sentAt": "desc"}}, 50, TRUE
    )
    select = selection(EntityReads(MESSAGE, CompiledCache()), query)
    assert plan_of(connection, select.sql, select.params)[:2] == [PAGE, IDS_OF_MESSAGES]


def test_page_behind_an_id_reads_only_its_rows(connection: apsw.Connection) -> None:
    lines = list_plan(connection, allowed_by(MINE), after_id="m1")
    assert lines == [PAGE, IDS_OF_MESSAGES, MEMBERS]


@pytest.mark.parametrize("rule", [f"{MINE} && data.body != 'x'", f"data.sentAt > '2026' && {MINE}"])
def test_further_conditions_keep_the_index(connection: apsw.Connection, rule: str) -> None:
    assert MEMBERS in list_plan(connection, allowed_by(rule))
    assert not any("SCAN" in line for line in list_plan(connection, allowed_by(rule)))


def test_filter_without_an_index_begins_with_the_rooms_of_the_caller(
    connection: apsw.Connection
) -> None:
    lines = list_plan(connection, guarded(allowed_by(MINE), equal("body", "x")))
    assert lines[:2] == [PAGE, MESSAGES] and "SCAN Message" not in lines


@pytest.mark.parametrize("field", ["roomId", "authorId"])
def test_filter_with_an_index_begins_with_it(connection: apsw.Connection, field: str) -> None:
    lines = list_plan(connection, guarded(allowed_by(MINE), equal(field, "x")))
    assert (PAGE in lines) is (field == "authorId"), "of one room, the index has the order"
    lines = [line for line in lines if line != PAGE]
    assert lines[0].startswith("SEARCH Message USING INDEX Message_")
    # A filter that names the room leaves one membership to look up.
    member = MEMBERS.replace("(userId=?)", "(userId=? AND roomId=?)")
    assert f"({field}=?)" in lines[0] and (member if field == "roomId" else MEMBERS) in lines


def test_own_rows_or_those_of_the_rooms_are_found_by_two_indexes(
    connection: apsw.Connection
) -> None:
    lines = list_plan(connection, allowed_by(f"data.authorId == auth.userId || {MINE}"))
    assert MESSAGES in lines and MEMBERS in lines
    assert "SEARCH Message USING INDEX Message_author (authorId=?)" in lines


def test_nested_checks_lead_from_the_caller_to_the_rows(connection: apsw.Connection) -> None:
    lines = list_plan(connection, allowed_by(TEAM))
    assert lines[:2] == [PAGE, IDS_OF_MESSAGES] and lines[-1] == MEMBERS
    assert any(line.startswith("SEARCH Room USING") and "teamId=?" in line for line in lines)


@pytest.mark.parametrize("rule", [MINE, f"!{MINE}", f"{MINE} || data.body == 'x'"])
def test_read_by_id_looks_one_membership_up(connection: apsw.Connection, rule: str) -> None:
    allowed = allowed_by(rule)
    reads = EntityReads(MESSAGE, CompiledCache())
    clause = reads.compile_rule(allowed)
    text = f"{reads.get_version} AND ({clause.sql})"
    by_id, member = plan_of(connection, text, ("m1", *clause.params))
    assert by_id == "SEARCH Message USING PRIMARY KEY (id=?)"
    assert member == "SEARCH Member USING COVERING INDEX Member_user (userId=? AND roomId=?)"
    for where in (and_(equal("id", "m1"), allowed), guarded(allowed, equal("id", "m1"))):
        lines = list_plan(connection, where)
        assert lines[0] == by_id and set(lines[1:]) == {member}


def test_check_of_one_row_is_one_search(connection: apsw.Connection) -> None:
    for rule, entity, values in ((MINE, MEMBER, ("r1", "ann")), (TEAM, ROOM, ("r1", "ann"))):
        (check,) = compile_rules(manifest(rule)).for_entity("Message").checks["read"]
        clause = PredicateCompiler(SQLITE, entity, CompiledCache()).compile(check.predicate(values))
        text = f'SELECT EXISTS (SELECT 1 FROM "{entity.name}" WHERE {clause.sql})'
        lines = plan_of(connection, text, clause.params)
        assert lines[0].startswith(f"SEARCH {entity.name} USING")
        assert lines[-1] == "SEARCH Member USING COVERING INDEX Member_user (userId=? AND roomId=?)"


# --- Long lists ---------------------------------------------------------------------------------


@pytest.fixture
def few_is_many(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(list_sizes, "_MANY", 2)
    yield


def open_reader(folder: Path, messages: int) -> tuple[SqliteReader, ManualClock]:
    """A reader of one room of Ann's with some messages."""
    app, clock = manifest(MINE), ManualClock()
    engine = SqliteEngine.open(folder / "a.db", app, compile_rules(app), clock, "normal")
    made = [("Member", {"roomId": "r1", "userId": "ann"})]
    made += [("Message", {"roomId": "r1", "body": f"{n % 3}"}) for n in range(messages)]
    made.append(("Message", {"roomId": "r2"}))
    ops = []
    for number, (name, body) in enumerate(made):
        row_id = f"{number:040x}"
        encoded = EntityCodec(app.by_name[name]).insert(body, row_id)
        ops.append(InsertRow(name, row_id, encoded.values, encoded.row_json))
    replies = engine.apply([WriteRequest(n, op) for n, op in enumerate(ops)]).replies
    assert not any(reply.error for reply in replies)
    engine.close()
    return SqliteReader(folder / "a.db", app, clock), clock


def statements_of(reader: SqliteReader) -> list[str]:
    """A list that grows by each statement of the reader."""
    seen: list[str] = []
    reader._conn.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.append(event["sql"]))
    return seen


@pytest.mark.usefixtures("few_is_many")
@pytest.mark.parametrize(("messages", "word"), [(2, " IN (SELECT"), (3, "EXISTS (SELECT")])
def test_page_of_a_long_list_looks_memberships_up(
    tmp_path: Path, messages: int, word: str
) -> None:
    reader, clock = open_reader(tmp_path, messages)
    allowed = allowed_by(MINE)
    seen = statements_of(reader)
    query = Query(guarded(allowed, equal("body", "1")), 50)
    assert len(reader.rows("Message", query)) == 1
    assert len(seen) == 2 and "count(*)" in seen[0] and word in seen[1]
    assert len(reader.rows("Message", Query(allowed, 50, after_id=""))) == messages
    assert len(seen) == 3 and word in seen[2], "the size of the list is known"
    assert reader.count("Message", allowed) == messages
    assert " IN (SELECT" in seen[3], "a count has no order"
    clock.advance(list_sizes._TTL_S + 1)
    assert len(reader.rows("Message", query)) == 1
    assert "count(*)" in seen[4] and word in seen[5]
    reader.close()


def test_size_of_a_list_is_not_asked_for_a_page_of_one_of_its_values(tmp_path: Path) -> None:
    reader, _ = open_reader(tmp_path, 3)
    seen = statements_of(reader)
    query = Query(guarded(allowed_by(MINE), equal("roomId", "r1")), 50)
    assert len(reader.rows("Message", query)) == 3
    assert seen and not any("count(*)" in text for text in seen)
    reader.close()


def test_rows_of_one_room_are_judged_by_one_look_up(tmp_path: Path) -> None:
    reader, _ = open_reader(tmp_path, 3)
    (check,) = compile_rules(manifest(MINE)).for_entity("Message").checks["read"]
    seen = statements_of(reader)
    for related in (related_at(reader), PastRows(reader, ChangedRows([]))):
        seen.clear()
        assert all(related.has_row(check, ("r1", "ann")) for _ in range(3))
        assert not any(related.has_row(check, ("r2", "ann")) for _ in range(3))
        assert len(seen) == 2
    reader.close()


def test_known_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylon.limits.READ_RULES_KEPT", 3)
    reader, _ = open_reader(tmp_path, 1)
    rules = compile_rules(manifest(MINE)).for_entity("Message")
    for number in range(10):
        allowed = rules.readable_by(AuthContext(user_id=f"u{number}"))
        assert reader.rows("Message", Query(allowed, 50)) == []
    assert len(reader._list_sizes._known) <= 3
    reader.close()


@settings(
    deadline=None, max_examples=count_examples(60), suppress_health_check=[HealthCheck.too_slow],
)
@given(
    rule=ASKING_RULE, caller=CALLERS,
    rows=st.fixed_dictionaries({
        name: st.lists(body, max_size=4) for name, body in BODIES.items()
    }),
)
def test_lists_and_look_ups_select_the_same_rows(
    rule: str, caller: AuthContext, rows: dict[str, list[dict[str, Any]]]
) -> None:
    app = exists_app.app_of(rule)
    rules = compile_rules(app)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        engine = SqliteEngine.open(path, app, rules, ManualClock(), "normal")
        ops = [
            exists_app.put(name, f"{name}{number}" if name != "Room" else f"r{number}", body)
            for name, bodies in rows.items() for number, body in enumerate(bodies, 1)
        ]
        replies = engine.apply([WriteRequest(n, op) for n, op in enumerate(ops)]).replies
        assert not any(reply.error for reply in replies)
        engine.close()
        connection = apsw.Connection(str(path))
        reads = EntityReads(exists_app.MESSAGE, CompiledCache())
        allowed = rules.for_entity("Message").readable_by(caller)
        found = []
        for where in (allowed, guarded(allowed, equal("level", 1))):
            for looks_up in (False, True):
                select = selection(reads, Query(where, 50), looks_up)
                found.append(connection.execute(select.sql, select.params).fetchall())
        assert found[0] == found[1] and found[2] == found[3]
        connection.close()


@pytest.mark.parametrize("looks_up", [False, True])
def test_page_at_a_position_of_one_room_is_a_range_of_its_index(
    connection: apsw.Connection, looks_up: bool
) -> None:
    place = {"sentAt": "2026", "id": "m1"}
    body = {"roomId": "r1", "$order": {"sentAt": "desc", "id": "desc"}, "$after": place}
    query = parse_filter(MESSAGE, body, 50, allowed_by(MINE))
    select = selection(EntityReads(MESSAGE, CompiledCache()), query, looks_up)
    first, member, *null_run = plan_of(connection, select.sql, select.params)
    assert first == "SEARCH Message USING INDEX Message_room (roomId=? AND (sentAt,id)<(?,?))"
    assert member.startswith("SEARCH Member USING COVERING INDEX Member_user (userId=?")
    assert "SEARCH Message USING INDEX Message_room (roomId=? AND sentAt=?)" in null_run
    assert "SCAN Message" not in null_run


def test_page_at_a_position_of_all_rooms_is_in_order_for_a_long_list(
    connection: apsw.Connection
) -> None:
    place = {"sentAt": "2026", "id": "m1"}
    body = {"$order": {"sentAt": "desc", "id": "desc"}, "$after": place}
    query = parse_filter(MESSAGE, body, 50, allowed_by(MINE))
    reads = EntityReads(MESSAGE, CompiledCache())
    listed, looked_up = (selection(reads, query, looks_up) for looks_up in (False, True))
    lines = plan_of(connection, listed.sql, listed.params)
    assert lines[0] == PAGE
    assert lines[1].startswith("SEARCH Message USING COVERING INDEX Message_room (roomId=?")
    assert plan_of(connection, looked_up.sql, looked_up.params)[0] == (
        "SEARCH Message USING INDEX Message_sent ((sentAt,id)<(?,?))"
    )
