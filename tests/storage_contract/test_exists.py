"""Rules with ``exists(...)``: the store, the rule in Python and the writer ask the same rows.

The rows that a rule asks come, go and change; the writer sees those of its own transaction.
"""

from __future__ import annotations

import operator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.policy import expression as e
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import CheckValues, ExistsCheck
from pylon.policy.rules import compile_rules
from pylon.query.conditions import and_, equal, guarded
from pylon.storage.ops import DeleteRow, InsertRow, OpKey, RowOp, Transact, UpdateRow
from pylon.storage.related import StoredRelated
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage, open_backend
from tests.support.examples import count_examples
from tests.support.stores import TestStore

pytestmark = pytest.mark.stores


def _field(name: str, kind: FieldType = FieldType.STRING) -> Field:
    return Field(name, kind, optional=True, unique=False)


ROOM = Entity("Room", (
    _field("teamId"), _field("level", FieldType.INT), _field("isOpen", FieldType.BOOL),
), (
    Index("by_level", ("level",), False), Index("by_open", ("isOpen",), False),
    Index("by_team", ("teamId",), False),
))
MEMBER = Entity("Member", (
    _field("roomId"), _field("userId"), _field("role"), _field("level", FieldType.INT),
    _field("isMuted", FieldType.BOOL), _field("weight", FieldType.FLOAT),
), (
    Index("by_user", ("userId", "roomId"), False), Index("by_room", ("roomId", "weight"), False),
    Index("by_room_user", ("roomId", "userId", "role"), False),
    Index("by_user_room_role", ("userId", "roomId", "role"), False),
    Index("by_weight", ("weight",), False), Index("by_role", ("role", "userId"), False),
))
MESSAGE = Entity("Message", (
    _field("roomId"), _field("userId"), _field("level", FieldType.INT), _field("body"),
    _field("weight", FieldType.FLOAT),
), (Index("by_room", ("roomId",), False),))
TEAM_MEMBER = Entity(
    "TeamMember", (_field("teamId"), _field("userId"), _field("role")),
    (
        Index("by_user", ("userId", "teamId", "role"), False),
        Index("by_team", ("teamId", "userId"), False),
    ),
)
ENTITIES = (ROOM, MEMBER, MESSAGE, TEAM_MEMBER)
CODECS = {entity.name: EntityCodec(entity) for entity in ENTITIES}

ANN = AuthContext(user_id="ann", tenant_id="t1", roles=("owner", "staff"))
BOB = AuthContext(user_id="bob")
MINE = "exists(Member, roomId == data.roomId, userId == auth.userId)"


def row_id(number: int) -> str:
    return f"{number:040x}"


def insert(
    entity: str, number: int, auth: AuthContext | None = None, **body: Any
) -> InsertRow:
    encoded = CODECS[entity].insert(body, row_id(number))
    return InsertRow(
        entity, row_id(number), encoded.values, encoded.row_json, True, None, auth
    )


def app_of(rule: str, entity: str = "Message") -> Manifest:
    policies = [
        Policy(
            "p", entity, allow_read=rule, allow_update=rule, allow_delete=rule, allow_insert=rule
        ),
        *(Policy(e.name, e.name, allow="true") for e in ENTITIES if e.name != entity),
    ]
    return Manifest("chat", "1", ENTITIES, policies=tuple(policies))


def rules_of(rule: str) -> EntityRules:
    return compile_rules(app_of(rule)).for_entity("Message")


def related(stage: StoreStage) -> StoredRelated:
    return StoredRelated(lambda read: read(stage.reader))


@pytest.fixture(scope="module")
def open_stage(tested_store: TestStore) -> Any:
    """Return a function that opens an empty store in a folder."""
    return lambda folder, rule: StoreStage(open_backend(Path(folder)), app_of(rule))


# Rooms r1 (team a), r2 (team b), r3 (no team). Ann: owner in r1, muted guest in r2.
ROWS = (
    insert("Room", 1, teamId="a", level=1, isOpen=True),
    insert("Room", 2, teamId="b", level=2, isOpen=False),
    insert("Room", 3),
    insert("Member", 1, roomId="r1", userId="ann", role="owner", level=5, isMuted=False),
    insert("Member", 2, roomId="r2", userId="ann", role="guest", level=1, isMuted=True),
    insert("Member", 3, roomId="r2", userId="bob", role="owner", weight=0.5),
    insert("Member", 4, userId="ann"),
    insert("Message", 1, roomId="r1", level=3, userId="bob", weight=0.5),
    insert("Message", 2, roomId="r2", level=1, userId="ann"),
    insert("Message", 3, roomId="r3", level=0, userId="ann", body="x"),
    insert("Message", 4, body="no room"),
    insert("TeamMember", 1, teamId="a", userId="ann", role="lead"),
    insert("TeamMember", 2, teamId="b", userId="bob", role="lead"),
)
LEVELS = (
    "exists(Room, id == data.roomId, exists(TeamMember, teamId == Room.teamId,"
    " userId == auth.userId))"
)


@pytest.mark.parametrize(("rule", "auth", "passing"), [
    (MINE, ANN, {1, 2}),
    (MINE, BOB, {2}),
    (MINE, ANONYMOUS, set()),
    (f"!{MINE}", ANN, {3, 4}),
    (f"!{MINE}", ANONYMOUS, {1, 2, 3, 4}),
    (f"{MINE} || data.body == 'x'", ANN, {1, 2, 3}),
    (f"{MINE} && data.level > 1", ANN, {1}),
    (f"{MINE} && data.userId == auth.userId", ANN, {2}),
    (f"{MINE} && !exists(Member, roomId == data.roomId, userId == data.userId, role == 'owner')",
     ANN, {1, 2}),
    (f"{MINE[:-1]}, role == 'owner')", ANN, {1}),
    (f"{MINE[:-1]}, role != 'owner')", ANN, {2}),
    (f"{MINE[:-1]}, role in ['owner', 'guest'])", ANN, {1, 2}),
    (f"{MINE[:-1]}, role in ['owner', null])", BOB, {2}),
    (f"{MINE[:-1]}, role in auth.roles)", ANN, {1}),
    (f"{MINE[:-1]}, role in auth.roles)", BOB, set()),
    (f"{MINE[:-1]}, level > data.level)", ANN, {1}),
    (f"{MINE[:-1]}, level >= data.level)", ANN, {1, 2}),
    (f"{MINE[:-1]}, level <= 1)", ANN, {2}),
    (f"{MINE[:-1]}, level >= -1)", ANN, {1, 2}),
    (f"{MINE[:-1]}, level == null)", BOB, {2}),
    (f"{MINE[:-1]}, level != null)", BOB, set()),
    (f"{MINE[:-1]}, level != 7)", BOB, {2}),
    (f"{MINE[:-1]}, isMuted == true)", ANN, {2}),
    (f"{MINE[:-1]}, isMuted != true)", ANN, {1}),
    (f"{MINE[:-1]}, role != data.body)", ANN, {1, 2}),
    (f"{MINE[:-1]}, role == data.body)", ANN, set()),
    ("exists(Member, roomId == data.roomId, weight == data.level)", ANN, set()),
    ("exists(Member, weight == data.weight, roomId != data.roomId, userId == 'bob')", ANN, {1}),
    ("exists(Member, userId == data.userId, role == 'owner')", ANN, {1, 2, 3}),
    ("exists(Member, userId == auth.userId, role == 'owner')", ANN, {1, 2, 3, 4}),
    ("exists(Member, userId == auth.userId, role == 'nobody')", ANN, set()),
    (LEVELS.replace("data.roomId", "data.body"), ANN, set()),
    (LEVELS.replace("id == data.roomId", "level == data.level"), ANN, {2}),
    (LEVELS.replace("id == data.roomId", "level == data.level"), BOB, set()),
    (f"!{LEVELS.replace('id == data.roomId', 'level == data.level')}", BOB, {1, 2, 3, 4}),
    (LEVELS.replace("id == data.roomId", "level == data.level")[:-2] + ", role == data.body))",
     ANN, set()),
    (LEVELS.replace("id == data.roomId", "level == data.level")[:-2] + ", userId != data.userId))",
     ANN, set()),
    (LEVELS.replace("id == data.roomId", "level < data.level, isOpen == true"), ANN, {1}),
])
def test_store_python_and_writer_agree_on_a_rule(
    open_stage: Any, tmp_path: Path, rule: str, auth: AuthContext, passing: set[int]
) -> None:
    stage = open_stage(tmp_path, rule)
    assert not any(stage.codes(*ROWS))
    read = stage.rules.for_entity("Message")
    wanted = {row_id(number) for number in passing}
    allowed = read.readable_by(auth)
    stored = stage.rows("Message")
    assert {row["id"] for row in stage.rows("Message", allowed)} == wanted
    assert {row["id"] for row in stored if read.may_read(auth, row, related(stage))} == wanted
    assert stage.reader.count("Message", allowed) == len(wanted)
    for row in stored:
        is_allowed = row["id"] in wanted
        assert (stage.reader.get_version("Message", row["id"], allowed) is not None) == is_allowed
        assert stage.reader.count("Message", and_(equal("id", row["id"]), allowed)) == is_allowed
        (found,) = stage.codes(UpdateRow("Message", row["id"], {"body": row["body"]}, auth))
        assert found == (None if is_allowed else "NOT_FOUND")
        body = {name: value for name, value in row.items() if name != "id"}
        (found,) = stage.codes(insert("Message", 100 + int(row["id"], 16), auth, **body))
        assert found == (None if is_allowed else "POLICY_DENIED")
        (found,) = stage.codes(DeleteRow("Message", row["id"], auth))
        assert found == (None if is_allowed else "NOT_FOUND")
    stage.close()


GRANT = Entity("Grant", (
    _field("userId"), _field("until", FieldType.DATETIME), _field("day", FieldType.DATE),
    _field("price", FieldType.DECIMAL),
), (
    Index("by_user", ("userId",), False), Index("by_until", ("userId", "until"), False),
    Index("by_price", ("userId", "price"), False),
))
SALE = Entity("Sale", (
    _field("at", FieldType.DATETIME), _field("day", FieldType.DATE),
    _field("price", FieldType.DECIMAL),
))


@pytest.mark.parametrize(("rule", "passing"), [
    ("until == data.at", {1}),
    ("until > data.at", {2}),
    ("until >= '2026-03-29T02:30:00+02:00'", {1, 2, 3}),
    ("until > '2026-03-29T02:30:00+02:00'", set()),
    ("until in ['2026-03-29T00:30:00Z', null]", {1, 2, 3}),
    ("price == data.price", {1}),
    ("price > data.price", {2}),
    ("price == 1.5", {1, 2, 3}),
    ("price < 1.50", set()),
    ("day <= data.day", {1}),
    ("day != data.day", {2, 3}),
    ("day == '2026-03-29'", {1, 2, 3}),
])
def test_values_of_one_meaning_are_equal_whatever_their_notation(
    open_stage: Any, tmp_path: Path, rule: str, passing: set[int]
) -> None:
    empty = open_stage(tmp_path, "true")
    empty.close()
    asking = f"exists(Grant, userId == auth.userId, {rule})"
    policies = (Policy("s", "Sale", allow=asking), Policy("g", "Grant", allow="true"))
    stage = StoreStage(empty.backend, Manifest("sales", "1", (GRANT, SALE), policies=policies))

    def put(entity: Entity, number: int, auth: AuthContext | None = None, **body: Any) -> InsertRow:
        encoded = EntityCodec(entity).insert(body, row_id(number))
        return InsertRow(
            entity.name, row_id(number), encoded.values, encoded.row_json, True, None, auth
        )

    assert not any(stage.codes(
        put(GRANT, 1, userId="ann", until="2026-03-29T02:30:00+02:00", day="2026-03-29",
            price="1.50"),
        put(SALE, 1, at="2026-03-29T00:30:00Z", day="2026-03-29", price="1.5"),
        put(SALE, 2, at="2026-03-29T00:29:59.9Z", day="2026-03-28", price="1.4999999999999999999"),
        put(SALE, 3),
    ))
    rules = stage.rules.for_entity("Sale")
    wanted = {row_id(number) for number in passing}
    assert {row["id"] for row in stage.rows("Sale", rules.readable_by(ANN))} == wanted
    for row in stage.rows("Sale"):
        assert rules.may_read(ANN, row, related(stage)) is (row["id"] in wanted)
        body = {name: value for name, value in row.items() if name != "id"}
        (code,) = stage.codes(put(SALE, 100 + int(row["id"], 16), ANN, **body))
        assert code == (None if row["id"] in wanted else "POLICY_DENIED")
    stage.close()


def test_large_row_is_judged_by_its_columns(open_stage: Any, tmp_path: Path) -> None:
    """The writer judges a row above JUDGED_FIRST_BYTES before it reads the JSON."""
    stage = open_stage(tmp_path, MINE)
    body = "x" * (limits.JUDGED_FIRST_BYTES + 1)
    assert not any(stage.codes(*ROWS, insert("Message", 9, roomId="r1", body=body)))
    target = row_id(9)
    assert stage.codes(
        UpdateRow("Message", target, {"level": 1}, BOB),
        UpdateRow("Message", target, {"level": 1}, ANN),
        UpdateRow("Message", target, {"roomId": "r3"}, ANN),
        DeleteRow("Message", target, BOB),
        DeleteRow("Member", row_id(1), ADMIN),
        DeleteRow("Message", target, ANN),
    ) == ["NOT_FOUND", None, "POLICY_DENIED", "NOT_FOUND", None, "NOT_FOUND"]
    stage.close()


def test_repeated_insert_is_answered_though_the_membership_has_ended(
    open_stage: Any, tmp_path: Path
) -> None:
    """An op_id is the caller's: its first time was allowed, and the repetition writes nothing."""
    stage = open_stage(tmp_path, MINE)
    first = msgspec.structs.replace(
        insert("Message", 9, ANN, roomId="r1"), op=OpKey("ann", "op-1")
    )
    assert not any(stage.codes(*ROWS, first, DeleteRow("Member", row_id(1), ADMIN)))
    (reply,) = stage.apply(first)
    assert reply.error is None and reply.replayed
    other = msgspec.structs.replace(first, op=OpKey("ann", "op-2"), row_id=row_id(10))
    assert stage.codes(other) == ["POLICY_DENIED"]
    stage.close()


# --- Any rule, while the rows that it asks come, go and change ----------------------------------

ROOMS, USERS, ROLES = ("r1", "r2", "r3"), ("ann", "bob"), ("owner", "guest")
CALLERS = st.sampled_from([ANN, BOB, ANONYMOUS, AuthContext("ann", tenant_id="r1")])
LEVEL = st.none() | st.integers(0, 2)
BODIES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "Room": st.fixed_dictionaries({
        "teamId": st.none() | st.sampled_from(ROOMS), "level": LEVEL,
        "isOpen": st.none() | st.booleans(),
    }),
    "Member": st.fixed_dictionaries({
        "roomId": st.none() | st.sampled_from(ROOMS),
        "userId": st.none() | st.sampled_from(USERS),
        "role": st.none() | st.sampled_from(ROLES), "level": LEVEL,
        "isMuted": st.none() | st.booleans(), "weight": st.none() | st.sampled_from([0.5, 1.0]),
    }),
    "TeamMember": st.fixed_dictionaries({
        "teamId": st.none() | st.sampled_from(ROOMS),
        "userId": st.none() | st.sampled_from(USERS),
        "role": st.none() | st.sampled_from(ROLES),
    }),
    "Message": st.fixed_dictionaries({
        "roomId": st.none() | st.sampled_from(ROOMS),
        "userId": st.none() | st.sampled_from(USERS), "level": LEVEL,
        "body": st.none() | st.sampled_from((*ROLES, "r1")),
        "weight": st.none() | st.sampled_from([0.5, 1.0, 2.0]),
    }),
}
TEXT_VALUE = st.sampled_from(["data.roomId", "data.userId", "data.body", "auth.userId", "'r1'"])
NUMBER_VALUE = st.sampled_from(["data.level", "data.weight", "0", "1", "-1", "1.5"])
ANY_ORDER = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])


@st.composite
def comparison(draw: st.DrawFn, role: str = "role", level: str = "level") -> str:
    """A comparison that needs no index: no equality with the caller or the row."""
    made: str = draw(st.one_of(
        st.builds("{} {} {}".format, st.just(level), ANY_ORDER.filter(lambda s: s != "=="),
                  NUMBER_VALUE),
        st.builds("{} {} {}".format, st.just(role), st.sampled_from(["!=", "<", ">="]),
                  TEXT_VALUE),
        st.sampled_from([
            f"{role} == 'owner'", f"{role} == null", f"{role} != null", f"{level} == null",
            f"{role} in ['owner', null]", f"{role} in ['guest', data.body]", f"{level} == 1",
            f"{role} in auth.roles", f"{role} in []", f"{level} in [0, data.weight]",
        ]),
    ))
    return made


@st.composite
def exists(draw: st.DrawFn) -> str:
    """An ``exists(...)``, of one level or two."""
    if draw(st.integers(0, 2)):
        keys = draw(st.sampled_from([("roomId",), ("userId",), ("roomId", "userId")]))
        parts = [f"{key} == {draw(TEXT_VALUE)}" for key in keys]
        parts += draw(st.lists(comparison(), max_size=2))
        if draw(st.booleans()):
            parts.append("isMuted " + draw(st.sampled_from(["==", "!="])) + " true")
        return f"exists(Member, {', '.join(draw(st.permutations(parts)))})"
    key = draw(st.sampled_from(["id", "teamId"]))
    parts = [f"{key} == {draw(TEXT_VALUE)}"]
    if draw(st.booleans()):
        parts.append("level " + draw(ANY_ORDER.filter(lambda s: s != "==")) + " data.level")
    inner = [f"teamId == {draw(st.sampled_from(['Room.teamId', 'Room.id', 'data.roomId']))}"]
    inner.append(f"userId == {draw(TEXT_VALUE)}")
    if draw(st.booleans()):
        inner.append("role != " + draw(st.sampled_from(["Room.teamId", "data.body", "null"])))
    nested = f"exists(TeamMember, {', '.join(draw(st.permutations(inner)))})"
    return f"exists(Room, {', '.join(draw(st.permutations([*parts, nested])))})"


ASKING_RULE = st.recursive(
    exists(),
    lambda rule: st.one_of(
        rule.map("!({})".format), st.builds("({} && {})".format, rule, rule),
        st.builds("({} || {})".format, rule, rule),
        st.builds("({} && {})".format, rule, st.sampled_from(["data.level > 0", "data.body"])),
        st.builds("({} || {})".format, rule, st.just("data.userId == auth.userId")),
    ),
    max_leaves=3,
)


class ListedRows:
    """The related rows of a list: answers a check by the words of docs/query-semantics.md."""

    def __init__(self, rows: dict[tuple[str, str], dict[str, Any]]) -> None:
        self._rows = rows

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        bound = dict(zip(map(id, check.values), values, strict=True))
        return self._has(check.exists, bound, {})

    def _has(self, exists: e.Exists, bound: dict[int, Any], around: dict[str, Any]) -> bool:
        return any(
            all(self._holds(part, row, bound, around) for part in exists.comparisons)
            and all(self._has(inner, bound, row) for inner in exists.nested)
            for (entity, _), row in self._rows.items() if entity == exists.entity
        )

    def _holds(
        self, part: e.Comparison, row: dict[str, Any], bound: dict[int, Any],
        around: dict[str, Any],
    ) -> bool:
        given: list[Any] = []
        for option in part.options:
            if isinstance(option, e.Literal):
                given.append(option.value)
                continue
            value = around[option.field] if isinstance(option, e.Related) else bound[id(option)]
            for one in value if isinstance(value, tuple) else (value,):
                given.append(NOTHING if one is None else one)
        found = row[part.field]
        if part.op in OPERATORS:
            return found is not None and given[0] is not NOTHING and bool(
                OPERATORS[part.op](found, given[0])
            )
        return (found in given) is (part.op != "!=")


NOTHING = object()  # a null value equals nothing; only the word null equals null
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
IDS = {"Room": ROOMS, "Member": ("m1", "m2", "m3", "m4"), "TeamMember": ("t1", "t2", "t3")}
STEP = st.one_of(*[
    st.tuples(st.just(name), st.sampled_from(ids), st.none() | BODIES[name])
    for name, ids in IDS.items()
], st.tuples(st.just("Message"), CALLERS, BODIES["Message"]))


def put(entity: str, name: str, body: dict[str, Any], auth: AuthContext | None = None) -> InsertRow:
    encoded = CODECS[entity].insert(body, name)
    return InsertRow(entity, name, encoded.values, encoded.row_json, True, None, auth)


def change_of(
    rows: dict[tuple[str, str], dict[str, Any]], entity: str, name: str,
    body: dict[str, Any] | None,
) -> RowOp | None:
    """Apply a step to the model, and return the operation that does the same."""
    known = (entity, name) in rows
    if body is None:
        if not known:
            return None
        del rows[entity, name]
        return DeleteRow(entity, name, ADMIN)
    rows[entity, name] = {**body, "id": name}
    return UpdateRow(entity, name, body, ADMIN) if known else put(entity, name, body)


@settings(
    deadline=None, max_examples=count_examples(150),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rule=ASKING_RULE, batches=st.lists(st.lists(STEP, min_size=1, max_size=6), max_size=4),
    is_one=st.booleans(),
)
def test_writer_judges_by_the_rows_of_its_transaction_and_readers_by_those_of_the_commit(
    open_stage: Any, rule: str, batches: list[list[Any]], is_one: bool
) -> None:
    """A batch changes what the rule asks, and inserts messages between these changes."""
    with TemporaryDirectory() as folder:
        stage: StoreStage = open_stage(folder, rule)
        judge = stage.rules.for_entity("Message")
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        number = 0
        for batch in batches:
            ops: list[RowOp] = []
            wanted: list[str | None] = []
            before = dict(rows)
            for entity, name, body in batch:
                if entity == "Message":
                    number += 1
                    row = {**body, "id": f"x{number}"}
                    may = judge.may_insert(name, row, ListedRows(rows))
                    event(f"message may be added: {may}")
                    ops.append(put("Message", f"x{number}", body, name))
                    wanted.append(None if may else "POLICY_DENIED")
                    if may:
                        rows["Message", f"x{number}"] = row
                    elif is_one:
                        break
                elif (op := change_of(rows, entity, name, body)) is not None:
                    ops.append(op)
                    wanted.append(None)
            if is_one:
                (reply,) = stage.apply(Transact(ops))
                replies = reply.results or []
                if wanted and wanted[-1] is not None:  # the transaction is undone
                    rows = before
            else:
                replies = stage.apply(*ops)
            assert [reply.error.code if reply.error else None for reply in replies] == wanted
            check_readers(stage, judge, rows)
        stage.close()


FILTERS = {"body": "owner", "roomId": "r1", "userId": "ann", "level": 1, "weight": 1.0}


def check_readers(
    stage: StoreStage, judge: EntityRules, rows: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """Compare the verdicts of the store, of Python on the store's rows and of the model."""
    stored = {row["id"]: row for row in stage.rows("Message")}
    assert stored == {name: row for (entity, name), row in rows.items() if entity == "Message"}
    for auth in (ANN, BOB, ANONYMOUS):
        allowed = judge.readable_by(auth)
        wanted = {
            name for name, row in stored.items() if judge.may_read(auth, row, ListedRows(rows))
        }
        for name, row in stored.items():
            assert judge.may_read(auth, row, related(stage)) is (name in wanted)
            is_found = stage.reader.get_version("Message", name, allowed) is not None
            assert is_found is (name in wanted)
        assert {row["id"] for row in stage.rows("Message", allowed)} == wanted
        assert stage.reader.count("Message", allowed) == len(wanted)
        for field, value in FILTERS.items():  # a filter's value is known to the policy, too
            filtered = guarded(allowed, equal(field, value))
            assert {row["id"] for row in stage.rows("Message", filtered)} == {
                name for name in wanted if stored[name][field] == value
            }
