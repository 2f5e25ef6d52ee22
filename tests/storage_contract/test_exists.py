"""Rules with ``exists(...)``: the store, the rule in Python and the writer ask the same rows.

The rows that a rule asks come, go and change; the writer sees those of its own transaction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pylon.auth_context import ANONYMOUS, AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.policy.rules import EntityRules, compile_rules
from pylon.query.predicate import and_, equal
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow
from pylon.storage.related import StoredRelated
from pylon.values import EntityCodec
from tests.storage_contract.backends import BACKENDS, StoreStage


def _field(name: str, kind: FieldType = FieldType.STRING) -> Field:
    return Field(name, kind, optional=True, unique=False)


ROOM = Entity("Room", (
    _field("teamId"), _field("level", FieldType.INT), _field("isOpen", FieldType.BOOL),
), (Index("by_level", ("level",), False), Index("by_open", ("isOpen",), False)))
MEMBER = Entity("Member", (
    _field("roomId"), _field("userId"), _field("role"), _field("level", FieldType.INT),
    _field("isMuted", FieldType.BOOL), _field("weight", FieldType.FLOAT),
), (
    Index("by_user", ("userId", "roomId"), True), Index("by_room", ("roomId", "weight"), False),
    Index("by_weight", ("weight",), False), Index("by_role", ("role", "userId"), False),
))
MESSAGE = Entity("Message", (
    _field("roomId"), _field("userId"), _field("level", FieldType.INT), _field("body"),
    _field("weight", FieldType.FLOAT),
), (Index("by_room", ("roomId",), False),))
TEAM_MEMBER = Entity(
    "TeamMember", (_field("teamId"), _field("userId"), _field("role")),
    (Index("by_user", ("userId", "teamId"), True),),
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


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def open_stage(request: pytest.FixtureRequest) -> Any:
    """Return a function that opens an empty store in a folder."""
    return lambda folder, rule: StoreStage(BACKENDS[request.param](Path(folder)), app_of(rule))


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
