"""The verdict of a rule agrees with its compiled judge, and says what decided."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index
from pylon.policy.check import check
from pylon.policy.compile import compile_condition
from pylon.policy.related import CheckValues, ExistsCheck
from pylon.policy.scope import entity_scope
from pylon.policy.verdicts import causes_of, describe, judge_rule, text_of
from tests.support.examples import count_examples
from tests.test_policy_equivalence import AUTH, ROW, RULE, THING, binary

MEMBER = Entity(
    "Member",
    (Field("room", FieldType.STRING, True, False), Field("user", FieldType.STRING, True, False),
     Field("n", FieldType.INT, True, False)),
    indexes=(Index("by", ("user", "room"), False),),
)
SCOPE = entity_scope(THING, {"Member": MEMBER, "Thing": THING})
EXISTS = st.sampled_from([
    "exists(Member, room == data.s, user == auth.userId)",
    "!exists(Member, room == existing.t, user == 'a', n > 2)",
    "exists(Member, user == auth.userId, room in [data.s, 'b', null])",
    "exists(Member, user == auth.userId, room in auth.roles, exists(Thing, id == Member.room))",
])


class Answers:
    """Related rows that there are for some values."""

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        return hash((check.entity, values)) % 2 == 0


@given(RULE | binary(RULE | EXISTS, ["&&", "||"]), ROW, ROW, AUTH)
@example("data.s", {"s": ""}, {}, AuthContext())
@settings(max_examples=count_examples(1_500), deadline=None)
def test_a_verdict_agrees_with_the_judge_and_so_does_its_text(
    text: str, data: dict[str, object], existing: dict[str, object], auth: AuthContext
) -> None:
    rule = check(text, SCOPE)
    related = Answers()
    expected = compile_condition(rule)(auth, data, existing, related)
    verdict = judge_rule(rule, auth, data, existing, related)
    assert verdict.holds is expected
    again = check(verdict.text, SCOPE)
    assert compile_condition(again)(auth, data, existing, related) is expected, verdict.text
    causes = causes_of(verdict)
    assert causes
    for cause in causes:
        assert cause.text in "\n".join(verdict.lines())
        assert describe(cause)


@pytest.mark.parametrize(
    ("rule", "causes"),
    [
        ("data.s == auth.userId", ['data.s == auth.userId is false: data.s is "x",'
                                   ' auth.userId is "u"']),
        ("data.b && data.n > 3", ["data.n > 3 is false: data.n is 2"]),
        ("data.c && data.n > 3", ["data.c is false: data.c is null"]),
        ("data.c || data.n > 3 || auth.isGuest", [
            "data.c is false: data.c is null", "data.n > 3 is false: data.n is 2",
            "auth.isGuest is false",
        ]),
        ("!(data.b || data.n > 3)", ["data.b is true"]),
        ("data.s != 'x'", ['data.s != \'x\' is false: data.s is "x"']),
        ("auth.hasRole('lead')", ['\'lead\' in auth.roles is false: auth.roles is ["host"]']),
        ("exists(Member, user == auth.userId, room == data.t)", [
            "exists(Member, user == auth.userId, room == data.t) is false:"
            ' auth.userId is "u", data.t is null',
        ]),
        ("data.s in ['a', data.t]", [
            "data.s in ['a', data.t] is false: data.s is \"x\", data.t is null",
        ]),
        ("false", ["false is false"]),
    ],
)
def test_the_comparisons_that_decided_are_named_with_their_values(
    rule: str, causes: list[str]
) -> None:
    class Nothing:
        def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
            return False

    row = {"s": "x", "t": None, "n": 2, "b": True, "c": None}
    auth = AuthContext(user_id="u", roles=("host",))
    verdict = judge_rule(check(rule, SCOPE), auth, row, row, Nothing())
    assert not verdict.holds
    assert [describe(cause) for cause in causes_of(verdict)] == causes


def test_a_tree_has_a_line_for_each_part() -> None:
    rule = check("data.b && (data.n > 1 || data.s == auth.userId)", SCOPE)
    row = {"b": True, "n": 1, "s": "u"}
    verdict = judge_rule(rule, AuthContext(user_id="u"), row, row)
    assert list(verdict.lines()) == [
        "yes  data.b && (data.n > 1 || data.s == auth.userId)",
        "       data.b = true",
        "yes    data.n > 1 || data.s == auth.userId",
        "no       data.n > 1",
        "           data.n = 1",
        "yes      data.s == auth.userId",
        "           data.s = \"u\"",
        "           auth.userId = \"u\"",
    ]
    assert verdict.to_json()["parts"][1]["value"] is True
    assert text_of(rule) == verdict.text
