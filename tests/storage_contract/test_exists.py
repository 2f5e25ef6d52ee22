"""Rules with ``exists(...)``: the store, the rule in Python and the writer ask the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.manifest.model import Entity, FieldType, Index, Manifest, Policy
from pylon.query.conditions import and_, equal
from pylon.storage.ops import DeleteRow, InsertRow, OpKey, UpdateRow
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage
from tests.support.exists_app import ANN, BOB, MINE, field, insert, related, row_id

pytestmark = pytest.mark.stores

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
    field("userId"), field("until", FieldType.DATETIME), field("day", FieldType.DATE),
    field("price", FieldType.DECIMAL),
), (
    Index("by_user", ("userId",), False), Index("by_until", ("userId", "until"), False),
    Index("by_price", ("userId", "price"), False),
))
SALE = Entity("Sale", (
    field("at", FieldType.DATETIME), field("day", FieldType.DATE),
    field("price", FieldType.DECIMAL),
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
