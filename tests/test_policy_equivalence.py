"""The Python verdict of a rule and its SQL agree, on every row and for every caller.

Random well-kinded rules are written as text, so the parser takes part; the row is stored in a
real table of each store.
"""

from __future__ import annotations

import apsw
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Manifest, Policy
from pylon.policy.entity_rules import EntityRules
from pylon.policy.rules import compile_rules
from pylon.query.conditions import equal
from pylon.query.evaluate import evaluator_of
from pylon.query.predicate import FALSE, TRUE, Constant
from pylon.storage.sql.compiler import compile_predicate
from pylon.storage.sqlite.dialect import SQLITE
from tests.support.examples import count_examples
from tests.support.moments import MOMENTS
from tests.support.sql_tables import SqlTable, table_of

THING = Entity(
    "Thing",
    (
        Field("s", FieldType.STRING, True, False),
        Field("t", FieldType.RICHTEXT, True, False),
        Field("n", FieldType.INT, True, False),
        Field("m", FieldType.INT, True, False),
        Field("f", FieldType.FLOAT, True, False),
        Field("b", FieldType.BOOL, True, False),
        Field("c", FieldType.BOOL, True, False),
        Field("d", FieldType.DATETIME, True, False),
    ),
)
pytestmark = pytest.mark.stores
INT64 = st.integers(-(2**63), 2**63 - 1)

# Few distinct texts, so that comparisons are often true; some that collations get wrong.
TEXTS = st.one_of(
    st.sampled_from(["", "a", "A", "ab", "b", "Ä", "ä", "\uffff", "\U0001f600", "%", "_", "1"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
)
NUL_TEXTS = st.one_of(TEXTS, st.text("a\0b", max_size=4))
INTS = st.one_of(st.sampled_from([0, 1, -1, 2, 3, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]), INT64)
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0**53, 2.0**63, -(2.0**63), 1e308, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)


def quoted(text: str) -> str:
    """The text as a string literal of the grammar."""
    for char, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\0", "\\0")):
        text = text.replace(char, escape)
    return f"'{text}'"


def number(value: float) -> str:
    return repr(value).lstrip("-")


def binary(operands: st.SearchStrategy[str], signs: list[str]) -> st.SearchStrategy[str]:
    return st.tuples(operands, st.sampled_from(signs), operands).map(
        lambda o: f"({o[0]} {o[1]} {o[2]})"
    )


STRING = st.one_of(
    st.sampled_from(["data.s", "data.t"]),
    st.sampled_from(["data.s", "existing.t", "data.id"]),
    st.sampled_from(["auth.userId", "auth.tenantId"]),
    NUL_TEXTS.map(quoted),
)
MOMENT = st.sampled_from(["data.d", "existing.d"]) | MOMENTS.map(quoted)
NUMBER = st.recursive(
    st.one_of(
        st.sampled_from(["data.n", "data.m", "data.f"]),
        st.sampled_from(["data.n", "existing.m", "data.f"]),
        INTS.filter(lambda n: n > -(2**63)).map(number),
        FLOATS.map(number),
    ),
    lambda inner: st.one_of(
        binary(inner, ["+", "-", "*", "/", "%"]), inner.map(lambda x: f"-{x}")
    ),
    max_leaves=4,
)


def listed(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items | st.just("null"), max_size=4).map(lambda i: f"[{', '.join(i)}]")


def conditions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        inner.map(lambda x: f"!{x}"),
        binary(inner, ["&&", "||", "==", "!="]),
        st.tuples(inner, st.lists(inner, max_size=3)).map(
            lambda x: f"({x[0]} in [{', '.join(x[1])}])"
        ),
    )


SCALAR = STRING | NUMBER | st.sampled_from(["data.b", "data.c", "auth.isGuest", "true", "false"])
CONDITION = st.recursive(
    st.one_of(
        st.sampled_from(["data.b", "data.c", "existing.b", "data.c", "auth.isGuest", "true"]),
        binary(STRING, ["==", "!=", "<", "<=", ">", ">=", "starts_with", "ends_with"]),
        binary(NUMBER, ["==", "!=", "<", "<=", ">", ">="]),
        binary(MOMENT, ["==", "!=", "<", "<=", ">", ">=", "starts_with"]),
        st.tuples(MOMENT, listed(MOMENT)).map(lambda x: f"({x[0]} in {x[1]})"),
        st.sampled_from(["(!data.d)", "(data.d == null)", "(data.d > data.s)"]),
        st.tuples(STRING, listed(STRING)).map(lambda x: f"({x[0]} in {x[1]})"),
        st.tuples(NUMBER, listed(NUMBER)).map(lambda x: f"({x[0]} in {x[1]})"),
        STRING.map(lambda x: f"({x} in auth.roles)"),
        NUL_TEXTS.map(lambda x: f"auth.hasAnyRole({quoted(x)}, 'lead')"),
        st.tuples(SCALAR, st.sampled_from(["==", "!="])).map(lambda x: f"({x[0]} {x[1]} null)"),
    ),
    conditions,
    max_leaves=6,
)
# A bare string or number is a condition too, but has no place inside ==.
RULE = st.one_of(CONDITION, STRING, NUMBER, binary(CONDITION | STRING | NUMBER, ["&&", "||"]))
ROW = st.fixed_dictionaries(
    {
        "id": TEXTS,
        "s": TEXTS | st.none(),
        "t": TEXTS | st.none(),
        "n": INTS | st.none(),
        "m": INTS | st.none(),
        "f": FLOATS | st.none(),
        "b": st.booleans() | st.none(),
        "c": st.booleans() | st.none(),
        "d": MOMENTS | st.none(),
    }
)
AUTH = st.builds(
    AuthContext,
    user_id=NUL_TEXTS | st.none(),
    is_guest=st.booleans(),
    tenant_id=NUL_TEXTS | st.none(),
    roles=st.lists(NUL_TEXTS | st.just("lead"), max_size=3).map(tuple),
)


def rules_for(rule: str) -> EntityRules:
    policies = (Policy("p", "Thing", allow_read=rule, allow_delete=f"!({rule})"),)
    return compile_rules(Manifest("x", "1", (THING,), policies=policies)).for_entity("Thing")


def table_with(row: dict[str, object]) -> SqlTable:
    table = table_of(THING)
    table.put([row])
    return table


@settings(max_examples=count_examples(1500))
@given(RULE, ROW, AUTH)
def test_sql_and_both_evaluators_pass_the_same_rows(
    rule: str, row: dict[str, object], auth: AuthContext
) -> None:
    rules = rules_for(rule)
    readable = rules.readable_by(auth)
    passes = rules.may_read(auth, row)
    event(f"passes: {passes}, depends on the row: {type(readable) is not Constant}")
    assert evaluator_of(readable)(row) is passes, readable
    table = table_with(row)
    (verdict,) = table.verdicts(readable)
    assert bool(table.ids(readable)) is passes, readable
    assert bool(verdict) is passes, readable
    assert rules.may_delete(auth, row) is not passes, "! must invert exactly"


@settings(max_examples=count_examples(500))
@given(CONDITION, ROW, AUTH)
def test_negated_sql_selects_exactly_the_others(
    rule: str, row: dict[str, object], auth: AuthContext
) -> None:
    table = table_with(row)
    plain, negated = (rules_for(text).readable_by(auth) for text in (rule, f"!{rule}"))
    counts = [len(table.ids(condition)) for condition in (plain, negated)]
    assert sorted(counts) == [0, 1], (plain, negated)


@settings(max_examples=count_examples(100))
@given(ROW, AUTH)
def test_an_absent_field_is_a_null(row: dict[str, object], auth: AuthContext) -> None:
    rules = rules_for("data.n == null || data.n + 1 > data.m || data.s starts_with auth.userId")
    sparse = {key: value for key, value in row.items() if value is not None}
    assert rules.may_read(auth, sparse) is rules.may_read(auth, row)


@pytest.mark.parametrize(
    "affix", ["data.s, ''", "data.s, data.t", "'', data.t", "data.s, auth.userId", "data.t, 'a'"]
)
@pytest.mark.parametrize("function", ["starts_with", "ends_with"])
def test_an_empty_text_is_an_affix_of_every_text(function: str, affix: str) -> None:
    """SQLite has no empty part of an empty text."""
    for rule in (f"{function}({affix})", f"!{function}({affix})", f"{function}({affix}) == false"):
        rules = rules_for(rule)
        for auth in (AuthContext(""), AuthContext("a"), AuthContext()):
            readable = rules.readable_by(auth)
            for s in ("", "a", "ba", None):
                for t in ("", "a", None):
                    row: dict[str, object] = dict.fromkeys(THING.columns) | {
                        "id": "1", "s": s, "t": t
                    }
                    selected = table_with(row).ids(readable)
                    assert bool(selected) is rules.may_read(auth, row), (rule, s, t)


@pytest.mark.sqlite
def test_the_plan_uses_an_index_for_an_owner_rule() -> None:
    conn = apsw.Connection(":memory:")
    conn.execute("CREATE TABLE Thing (id TEXT PRIMARY KEY, s TEXT) WITHOUT ROWID")
    conn.execute("CREATE INDEX by_s ON Thing(s)")
    rules = rules_for("auth.userId != null && (data.s == auth.userId || auth.hasRole('lead'))")
    assert rules.readable_by(AuthContext("u1")) == equal("s", "u1")
    clause = compile_predicate(SQLITE, THING, rules.readable_by(AuthContext("u1")))
    assert (clause.sql, clause.params) == ('"s" = ?', ("u1",))
    steps = conn.execute(
        f"EXPLAIN QUERY PLAN SELECT id FROM Thing WHERE {clause.sql}", clause.params
    ).fetchall()
    assert "USING COVERING INDEX by_s" in steps[0][3]
    assert rules.readable_by(AuthContext()) is FALSE
    assert rules.readable_by(AuthContext("u1", roles=("lead",))) is TRUE
    assert rules.readable_by(AuthContext("root", is_admin=True)) is TRUE


def test_very_long_chains_and_lists_stay_within_the_limits_of_stores_and_python() -> None:
    chain = "||".join(f"data.n=={n}" for n in range(900))
    items = ",".join(str(n) for n in range(900))
    rules = rules_for(f"({chain}) && data.n in [{items}]")
    row = dict.fromkeys(THING.columns) | {"id": "1", "n": 899}
    assert table_with(row).verdicts(rules.readable_by(AuthContext())) == [True]
    holds = evaluator_of(rules.readable_by(AuthContext()))
    for judged, passes in ((row, True), (row | {"n": 900}, False)):
        assert rules.may_read(AuthContext(), judged) is holds(judged) is passes
