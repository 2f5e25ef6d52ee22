"""Rules with ``exists(...)``: what the checker refuses, the index that it asks for, and the plan.

`tests/storage_contract/test_exists*.py` compare the verdicts, `tests/test_api_exists.py` has the
paths of the API.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.manifest.diagnostics import Diagnostic, ManifestInvalid
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.manifest_loader import parse_manifest
from pylon.policy import expression as e
from pylon.policy.check import check
from pylon.policy.entity_rules import EntityRules
from pylon.policy.grammar import PolicyIndexMissing, PolicyInvalid
from pylon.policy.related import CheckValues, ExistsCheck
from pylon.policy.routing import General, Keyed, Related, Union
from pylon.policy.rules import compile_rules
from pylon.policy.scope import entity_scope
from pylon.query.conditions import compare, equal, guarded
from pylon.query.predicate import FALSE, TRUE, Column, Compare, Exists, Literal, Outer
from pylon.query.predicate_parts import asks_rows

MEMBER = Entity("Member", (
    Field("roomId", FieldType.ID, False, False, "Room"),
    Field("userId", FieldType.STRING, False, False),
    Field("role", FieldType.STRING, False, False),
    Field("level", FieldType.INT, True, False),
    Field("isMuted", FieldType.BOOL, True, False),
    Field("ticket", FieldType.STRING, True, True),
), (Index("by_user", ("userId", "roomId"), False), Index("by_role", ("role",), False)))
ROOM = Entity(
    "Room", (Field("teamId", FieldType.STRING, True, False),), (Index("t", ("teamId",), False),)
)
MESSAGE = Entity("Message", (
    Field("roomId", FieldType.ID, False, False, "Room"),
    Field("authorId", FieldType.STRING, True, False),
    Field("level", FieldType.INT, True, False),
    Field("isOpen", FieldType.BOOL, True, False),
))
ENTITIES = {entity.name: entity for entity in (MEMBER, ROOM, MESSAGE)}
SCOPE = entity_scope(MESSAGE, ENTITIES)
MINE = "exists(Member, roomId == data.roomId, userId == auth.userId)"
ANN = AuthContext(user_id="ann", roles=("lead",))


def rules(**texts: str) -> EntityRules:
    policy = Policy("p", "Message", **texts)
    manifest = Manifest("m", "1", tuple(ENTITIES.values()), policies=(policy,))
    return compile_rules(manifest).for_entity("Message")


class Recorder:
    """Related rows that note what they are asked."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.asked: list[tuple[str, CheckValues]] = []

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        self.asked.append((check.entity, values))
        return self.answer


@pytest.mark.parametrize("text", [
    MINE,
    f"!{MINE} || data.isOpen",
    f"{MINE[:-1]}, role == 'owner', level >= data.level, isMuted != true)",
    f"{MINE[:-1]}, role in ['owner', data.authorId], level == null)",
    f"{MINE[:-1]}, role in auth.roles, level > -1)",
    f"{MINE} == data.isOpen",
    "exists(Member, role == 'owner')",
    "exists(Member, ticket == data.authorId)",
    "exists(Room, id == data.roomId)",
    "exists(Room, id == existing.roomId, teamId == auth.tenantId)",
    "exists(Room, id == data.roomId, exists(Member, roomId == Room.id, userId == auth.userId))",
    "exists(Room, id == data.roomId, exists(Room, id == Room.teamId))",
])
def test_rules_that_ask_are_accepted(text: str) -> None:
    assert check(text, SCOPE) is not None


@pytest.mark.parametrize(("marked", "message"), [
    ("^exists()", "takes an entity and one comparison or more"),
    ("^exists(Member)", "takes an entity and one comparison or more"),
    ("^exists('Member', role == 'x')", "takes an entity"),
    ("exists(^Membr, role == 'x')", 'unknown entity "Membr" (known: Member, Room, Message;'),
    ("exists(Member, ^data.roomId == roomId)", "the left side of a comparison is a field of"),
    ("exists(Member, ^rom == data.roomId)", '"rom" is none (known: id, roomId, userId'),
    ("exists(Member, roomId == ^roomId)", 'unknown name "roomId"'),
    ("exists(Member, roomId == ^Room.id)", 'unknown name "Room.id"'),
    ("exists(Member, roomId == data.^room)", 'unknown attribute "room"'),
    ("exists(Member, roomId == ^(data.roomId == '1'))".replace("^(", "("), "is a field of a row"),
    ("exists(Member, level == ^data.level)".replace("^", "", 1), "needs an index"),
    ("exists(Member, role == 'x', level == data.level ^+ 1)", "is a field of a row"),
    ("exists(Member, role == 'x', level > ^data.authorId)", "level is a number, and a string"),
    ("exists(Member, role == ^5)", "role is a string, and a number"),
    ("exists(Member, role == 'x', role > ^null)", "null has no order"),
    ("exists(Member, role == 'x', isMuted > ^true)", "isMuted is a boolean"),
    ("exists(Member, role == 'x', ^isMuted)", "write a boolean field as isOpen == true"),
    ("exists(Member, role == 'x', ^!isMuted)", "takes comparisons"),
    ("exists(Member, role == 'x' ^&& level > 1)", "takes comparisons"),
    ("exists(Member, role == 'x' ^|| level > 1)", "takes comparisons"),
    ("exists(Member, role == 'x', role ^starts_with 'a')", "takes comparisons"),
    ("exists(Member, role == 'x', role == ^auth.roles)", "auth.roles is a list"),
    ("exists(Member, role == 'x', level in ^auth.roles)".replace(
        "level in ^", "^level in "), "level is a number"),
    ("exists(Member, role == 'x', role in ^data.authorId)", "a list or auth.roles"),
    ("exists(Member, role == 'x', level in [1, ^'a'])", "level is a number, and a string"),
    ("^exists(Member, level > 1)", "compares one field of Member or more by =="),
    ("^exists(Member, roomId != data.roomId)", "by =="),
    ("exists(Room, id == data.roomId, exists(Room, id == Room.^name))", 'unknown field "name"'),
    (
        "exists(Room, id == data.roomId, exists(Room, id == Room.id, ^exists(Room, id == 'x')))",
        "two levels deep at most",
    ),
    (" || ".join([*["exists(Room, id == 'x')"] * limits.POLICY_EXISTS, "^exists(Room, id == 'x')"]),
     f"{limits.POLICY_EXISTS} exists(...) at most"),
])
def test_bad_checks_and_the_character_to_blame(marked: str, message: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        check(marked.replace("^", "", 1), SCOPE)
    assert message in caught.value.message
    if "^" in marked:
        assert caught.value.at == marked.index("^")


@pytest.mark.parametrize(("text", "fields"), [
    ("exists(Member, roomId == data.roomId)", ["roomId"]),
    ("exists(Member, level == data.level, userId == auth.userId)", ["userId", "level"]),
    ("exists(Member, role == data.authorId, userId == auth.userId)", ["userId", "role"]),
    (f"{MINE[:-1]}, level == data.level)", ["userId", "roomId", "level"]),
    # An index on (userId, roomId) lists no members of a room for a user with this room.
    ("exists(Member, roomId == auth.tenantId, userId == data.authorId)", ["roomId", "userId"]),
    ("exists(Member, level == 1)", ["level"]),
])
def test_missing_index_is_an_error_with_the_line_to_add(text: str, fields: list[str]) -> None:
    with pytest.raises(PolicyIndexMissing) as caught:
        check(text, SCOPE)
    message = caught.value.message
    (line,) = re.findall(r"needs an index: add (\{.*?\}) to the indexes of Member\.", message)
    assert json.loads(line) == {
        "name": "by_" + "_".join(fields), "fields": fields, "unique": False
    }
    index = Index("made", tuple(fields), False)
    mended = Entity("Member", MEMBER.fields, (*MEMBER.indexes, index))
    assert check(text, entity_scope(MESSAGE, {**ENTITIES, "Member": mended})) is not None


@pytest.mark.parametrize(("text", "is_listable"), [
    (MINE, True),
    ("exists(Member, ticket == data.authorId, userId == auth.userId)", True),
    ("exists(Member, ticket == data.authorId)", False),
    ("exists(Member, role == 'owner')", False),
    ("exists(Room, id == data.roomId, teamId == auth.tenantId)", True),
    ("exists(Room, id == data.roomId)", False),
    ("exists(Room, id == data.roomId, exists(Member, roomId == Room.id, userId == auth.userId))",
     True),
])
def test_rows_are_listable_where_an_index_begins_with_what_the_caller_has(
    text: str, is_listable: bool
) -> None:
    expr = check(text, SCOPE)
    assert isinstance(expr, e.Exists)
    assert expr.is_listable is is_listable


@pytest.mark.parametrize(("indexes", "is_enough"), [
    ((Index("i", ("roomId", "userId"), True),), False),  # does not list the caller's rows
    ((Index("i", ("roomId", "userId"), False), Index("j", ("userId",), False)), True),
    ((Index("i", ("userId", "roomId"), True),), True),
    ((Index("i", ("userId", "role", "roomId"), False),), False),
    ((Index("i", ("userId",), False), Index("j", ("roomId",), False)), False),
    ((Index("i", ("userId", "roomId"), False, where='{"role": "x"}'),), False),
    ((Index("i", ("userId", "roomId"), False, ("roomId",)),), True),
])
def test_index_finds_the_row_and_lists_those_of_the_caller(
    indexes: tuple[Index, ...], is_enough: bool
) -> None:
    scope = entity_scope(MESSAGE, {"Member": Entity("Member", MEMBER.fields, indexes)})
    if is_enough:
        assert check(MINE, scope) is not None
    else:
        with pytest.raises(PolicyIndexMissing):
            check(MINE, scope)


def manifest(entities: Any = None, **policy: Any) -> str:
    return json.dumps({
        "manifest_version": 1, "name": "chat", "version": "1", "entities": entities or [
            {"name": "Message", "fields": [{"name": "roomId", "type": "string"}]},
            {"name": "Member", "fields": [
                {"name": "roomId", "type": "string"}, {"name": "userId", "type": "string"},
            ]},
        ],
        "policies": [{"name": "p", "entity": "Message", **policy}],
    }, indent=1)


def diagnostics_of(text: str) -> list[Diagnostic]:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(text, "m.json")
    return list(caught.value.diagnostics)


def test_start_names_the_place_and_the_line_to_add() -> None:
    text = manifest(allowRead=f"auth.userId != null && {MINE}")
    (found,) = diagnostics_of(text)
    assert (found.severity, found.code) == ("error", "POLICY_EXISTS_INDEX_MISSING")
    assert '{"name": "by_userId_roomId", "fields": ["userId", "roomId"]' in found.message
    assert found.line is not None and "exists(" in text.split("\n")[found.line - 1]
    assert found.hint is not None and found.hint.endswith("^")


def test_rule_of_an_action_asks_by_its_inputs() -> None:
    document = json.loads(manifest(allow="true"))
    document["actions"] = [{"name": "close", "input": [{"name": "roomId", "type": "string"}]}]
    asking = "exists(Member, roomId == input.roomId, userId == auth.userId)"
    document["policies"].append({"name": "close", "action": "close", "allow": asking})
    assert [d.code for d in diagnostics_of(json.dumps(document))] == ["POLICY_EXISTS_INDEX_MISSING"]
    index = {"name": "i", "fields": ["userId", "roomId"], "unique": False}
    document["entities"][1]["indexes"] = [index]
    made = compile_rules(parse_manifest(json.dumps(document), "m.json"))
    asked = Recorder()
    assert made.may_act("close", ANN, {"roomId": "r1"}, asked)
    assert asked.asked == [("Member", ("r1", "ann"))]
    assert made.may_act("close", ADMIN, {})


def test_rule_that_asks_a_faulty_entity_adds_no_error_of_its_own() -> None:
    entities = json.loads(manifest(allow="true"))["entities"]
    entities[1]["fields"][0]["type"] = "strin"
    codes = {found.code for found in diagnostics_of(manifest(entities, allowRead=MINE))}
    assert not {code for code in codes if code.startswith("POLICY")}


def test_judge_passes_the_values_of_the_caller_and_the_rows() -> None:
    made = rules(
        allow_read=MINE, allow_delete=MINE,
        allow_update=f"{MINE[:-1]}, role != existing.authorId, role in auth.roles)",
        allow_insert=f"{MINE} && data.level > 1",
    )
    row = {"id": "m1", "roomId": "r1", "authorId": "ann", "level": 1}
    asked = Recorder()
    assert made.may_read(ANN, row, asked)
    assert made.may_update(ANN, row, {**row, "roomId": "r2"}, asked)
    assert made.may_delete(ANN, row, asked)
    assert not made.may_insert(ANN, row, asked)
    assert asked.asked == [
        ("Member", ("r1", "ann")), ("Member", ("r2", "ann", "ann", ("lead",))),
        ("Member", ("r1", "ann")), ("Member", ("r1", "ann")),
    ]
    assert not made.may_read(ANN, row, Recorder(answer=False))


def test_admin_and_rules_that_do_not_ask_need_no_related_rows() -> None:
    made = rules(allow_read=MINE, allow_insert="data.level > 0")
    assert made.may_read(ADMIN, {"roomId": "r1"})
    assert made.may_insert(ANN, {"level": 1})
    assert made.checks["insert"] == () and made.asked["insert"] == frozenset()
    with pytest.raises(RuntimeError, match="asks Member"):
        made.may_read(ANN, {"roomId": "r1"})


def test_checks_name_what_each_action_asks_and_compare_by_structure() -> None:
    nested = (
        "exists(Room, id == data.roomId, exists(Member, roomId == Room.id, userId == auth.userId))"
    )
    made = rules(allow_read=f"{MINE} || ({MINE} && {nested})", allow_delete=MINE.replace(
        "data", "existing"
    ))
    first, second = made.checks["read"]
    assert first.entity == "Member" and second.entities == {"Room", "Member"}
    assert made.asked["read"] == {"Room", "Member"}
    assert made.checks["delete"] == (first,) and hash(made.checks["delete"][0]) == hash(first)
    assert made.checks["insert"] == made.checks["update"] == ()
    assert made.read_fields == {"roomId"}
    assert [type(value) for value in first.values] == [e.Column, e.Auth]


def test_tree_of_a_caller_has_the_caller_as_literals() -> None:
    made = rules(allow_read=MINE)
    found = made.readable_by(ANN)
    assert isinstance(found, Exists) and asks_rows(found) and found.is_listable
    assert found.where.items == (  # type: ignore[union-attr]
        Compare("=", Column("roomId"), Outer("roomId", 1)),
        Compare("=", Column("userId"), Literal("ann")),
    )
    assert made.readable_by(ANONYMOUS) is FALSE
    assert made.readable_by(ADMIN) is TRUE
    assert rules(allow_read=f"!{MINE}").readable_by(ANONYMOUS) is TRUE


def test_check_is_a_predicate_on_the_asked_rows() -> None:
    (check,) = rules(allow_read=f"{MINE[:-1]}, level >= data.level)").checks["read"]
    assert check.predicate(("r1", "ann", 3)).items == (  # type: ignore[union-attr]
        equal("roomId", "r1"), equal("userId", "ann"), compare(">=", Column("level"), Literal(3)),
    )
    assert check.predicate((None, "ann", 3)) is FALSE


def test_new_index_leaves_the_text_of_a_read_rule() -> None:
    """Another text would hide the history of all documents of the entity."""
    rule = "exists(Member, ticket == data.authorId, userId == auth.userId)"
    fewer = Entity("Member", MEMBER.fields)
    texts = set()
    for member in (MEMBER, fewer):
        policy = Policy("p", "Message", allow_read=rule)
        manifest = Manifest("m", "1", (MESSAGE, member), policies=(policy,))
        made = compile_rules(manifest).for_entity("Message")
        assert isinstance(made.read_rule, e.Exists)
        assert made.read_rule.is_listable is (member is MEMBER)
        texts.add(made.read_text)
    assert len(texts) == 1


def test_text_of_a_rule_is_that_of_earlier_versions() -> None:
    """Stores keep it: another text would hide the history of all documents of the entity."""
    made = rules(allow_read="exists(Room, id == data.roomId) && data.authorId != auth.userId")
    assert made.read_text == (
        "And(items=(Exists(entity='Room', comparisons=(Comparison(field='id', op='==', "
        "options=(Column(root='data', field='roomId', kind=<Kind.STRING: 'string'>),)),), "
        "nested=()), Not(operand=Equal(left=Column(root='data', field='authorId', "
        "kind=<Kind.STRING: 'string'>), right=Auth(attribute='user_id', "
        "kind=<Kind.STRING: 'string'>)))))"
    )


def test_routing_never_takes_a_rule_that_asks_for_one_of_the_caller_alone() -> None:
    assert isinstance(rules(allow_read=MINE).routing, Related)
    assert isinstance(rules(allow_read=f"data.authorId == auth.userId || {MINE}").routing, Union)
    assert rules(allow_read=f"data.level == 1 || {MINE}").routing == General()
    assert isinstance(rules(allow_read="exists(Member, userId == auth.userId)").routing, Related)
    assert rules(allow_read="exists(Member, role == 'owner')").routing == General()
    keyed = rules(allow_read=f"data.authorId == auth.userId && {MINE}").routing
    assert keyed == Keyed("authorId", "user_id", exact=False)


@pytest.mark.parametrize(("text", "does_ask"), [
    (MINE, True),
    (f"!{MINE}", True),
    (f"data.isOpen || (data.level > 1 && !{MINE})", True),
    (f"({MINE}) == data.isOpen", True),
    (f"data.isOpen != ({MINE})", True),
    (f"({MINE}) in [data.isOpen, false]", True),
    (f"data.isOpen in [{MINE}, false]", True),
    ("data.level + 1 > data.level || data.isOpen == null || data.authorId in ['a', 'b']", False),
    ("data.authorId starts_with 'a' && !(data.level == 1)", False),
])
def test_tree_tells_whether_it_asks_other_rows(text: str, does_ask: bool) -> None:
    found = rules(allow_read=text).readable_by(ANN)
    assert asks_rows(found) is does_ask
    assert asks_rows(guarded(found, equal("authorId", "x"))) is does_ask
