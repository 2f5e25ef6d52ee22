"""SQL of any policy and any filter together selects the rows that Python passes, whatever shapes
the compiler has kept; and the guard keeps the policy first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy, Search
from pylon.policy.rules import compile_rules
from pylon.query.conditions import and_, compare, equal, guarded, like, not_, or_
from pylon.query.evaluate import evaluator_of
from pylon.query.parse import parse_where
from pylon.query.predicate import FALSE, TRUE, And, Column, InValues, Literal, Match, Not, Predicate
from pylon.query.predicate_parts import Cost, cost_of
from pylon.storage.sql.compiler import CompiledCache, PredicateCompiler, compile_predicate
from pylon.storage.sqlite.dialect import SQLITE
from tests.support.examples import count_examples
from tests.support.sql_tables import table_of
from tests.test_matching import FILTER, ROW
from tests.test_policy_equivalence import AUTH, RULE

THING = Entity(
    "Thing",
    (
        Field("s", FieldType.STRING, True, False),
        Field("t", FieldType.RICHTEXT, True, False),
        Field("d", FieldType.DATETIME, True, False),
        Field("n", FieldType.INT, True, False),
        Field("m", FieldType.INT, True, False),
        Field("f", FieldType.FLOAT, True, False),
        Field("b", FieldType.BOOL, True, False),
        Field("c", FieldType.BOOL, True, False),
    ),
    indexes=(
        Index("by_s_n", ("s", "n"), False), Index("by_n", ("n",), False),
        Index("by_f", ("f",), False), Index("by_b_m", ("b", "m"), False),
    ),
)
OTHER = Entity("Other", THING.fields)
pytestmark = pytest.mark.stores
ROWS = st.lists(ROW, min_size=1, max_size=3, unique_by=lambda row: row["id"])


def store(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they are stored."""
    whole = [{**row, "c": row["b"]} for row in rows]
    table_of(THING).put(whole)
    return whole


def selected(predicate: Predicate, is_led: bool) -> set[str]:
    return table_of(THING).ids(predicate, is_led)


@settings(max_examples=count_examples(1_500))
@given(RULE, FILTER, ROWS, AUTH)
def test_sql_of_policy_and_filter_selects_the_rows_that_python_passes(
    rule: str, body: dict[str, Any], rows: list[dict[str, Any]], auth: AuthContext
) -> None:
    policy = Policy("p", "Thing", allow_read=rule)
    rules = compile_rules(Manifest("x", "1", (THING,), policies=(policy,))).for_entity("Thing")
    wanted = parse_where(THING, body)
    both = guarded(rules.readable_by(auth), wanted)
    stored = store(rows)
    passes = evaluator_of(both)
    expected = {row["id"] for row in stored if passes(row)}
    event(f"some pass: {bool(expected)}, cost: {cost_of(both).name}")
    judged = evaluator_of(wanted)
    assert expected == {
        row["id"] for row in stored if rules.may_read(auth, row) and judged(row)
    }
    for is_led in (False, True):
        assert selected(both, is_led) == expected
    if rules.readable_by(auth) is not TRUE:
        negated = not_(both)
        assert selected(negated, False) == {row["id"] for row in stored} - expected


ITEMS = st.one_of(
    st.builds(lambda v: equal("s", v), st.sampled_from(["a", "b"])),
    st.builds(lambda v: equal("n", v), st.sampled_from([1, 2, None])),
    st.builds(
        lambda v, null: InValues("n", tuple(v), null),
        st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3), st.booleans(),
    ),
    st.builds(lambda v: and_(equal("s", v), equal("m", 1)), st.sampled_from(["a", "b"])),
)


@settings(max_examples=count_examples(500))
@given(st.lists(ITEMS, min_size=2, max_size=5), ROWS)
def test_equal_values_of_an_either_do_not_change_its_shape(
    items: list[Predicate], rows: list[dict[str, Any]]
) -> None:
    """The SQL looks for each value once; which values are equal must not be part of the SQL."""
    for number, row in enumerate(rows):
        row |= {"s": "ab"[number % 2], "n": number, "m": 1}
    stored = store(rows)
    predicate = guarded(compare(">", Column("id"), Literal("")), or_(*items))
    passes = evaluator_of(predicate)
    assert selected(predicate, False) == {row["id"] for row in stored if passes(row)}


def test_constants_fold() -> None:
    some = equal("s", "a")
    assert and_() is TRUE and or_() is FALSE
    assert and_(some, TRUE) is some and or_(FALSE, some) is some
    assert and_(some, FALSE) is FALSE and or_(some, TRUE) is TRUE
    assert not_(TRUE) is FALSE and not_(not_(some)) is some
    assert guarded(TRUE, some) is some and guarded(some, TRUE) is some
    assert guarded(some, FALSE) is FALSE and guarded(FALSE, some) is FALSE
    assert and_(some, and_(some, some)) == And((some, some, some))
    assert compare("=", Column("s"), Literal(None)) is FALSE
    assert compare("<", Literal(1), Column("n")) == compare(">", Column("n"), Literal(1))


@pytest.mark.parametrize(("predicate", "cost"), [
    (TRUE, Cost.PLAIN), (equal("s", "a"), Cost.PLAIN), (like("s", "a"), Cost.PATTERN),
    (or_(equal("s", "a"), Not(like("s", "a"))), Cost.PATTERN),
    (guarded(equal("s", "a"), and_(like("s", "a"), Match(("a",), False))), Cost.MATCH),
])
def test_the_cost_is_that_of_the_dearest_part(predicate: Predicate, cost: Cost) -> None:
    assert cost_of(predicate) is cost


def test_shapes_have_no_values_and_are_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHAPES_KEPT", 4)
    monkeypatch.setattr(limits, "SHAPE_PARTS", 30)
    cache = CompiledCache()
    compiler, other = (PredicateCompiler(SQLITE, entity, cache) for entity in (THING, OTHER))
    texts = {compiler.compile(equal("s", f"v{n}")).sql for n in range(20)}
    assert texts == {'"s" = ?'} and len(cache.by_shape) == 1
    other.compile(equal("s", "v"))
    assert len(cache.by_shape) == 2, "entities have different indexes"
    for count in range(2, 14):
        compiler.compile(or_(*[equal("n", n) for n in range(count)]))
        assert len(cache.by_shape) <= 4
    cache.by_shape.clear()
    long = or_(*[equal("n", n) for n in range(40)])
    assert compiler.compile(long) == compile_predicate(SQLITE, THING, long)
    assert not cache.by_shape


def test_read_policies_are_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_RULES_KEPT", 3)
    cache = CompiledCache()
    compiler = PredicateCompiler(SQLITE, THING, cache)
    for n in range(9):
        rule = or_(equal("s", f"u{n}"), equal("b", True))
        assert compiler.compile_rule(rule) == compile_predicate(SQLITE, THING, rule)
        assert compiler.compile_rule(rule) == compile_predicate(SQLITE, THING, rule)
        assert len(cache.by_rule) <= 3


def test_the_last_predicate_is_that_of_its_entity_and_short() -> None:
    cache = CompiledCache()
    compiler, other = (PredicateCompiler(SQLITE, entity, cache) for entity in (THING, OTHER))
    both = guarded(equal("s", "a"), and_(equal("n", 1), equal("c", True)))
    assert compiler.compile(both) is compiler.compile(both)
    assert other.compile(both) == compile_predicate(SQLITE, OTHER, both) != compiler.compile(both)
    assert compiler.compile(both, True) == compile_predicate(SQLITE, THING, both, True)
    assert compiler.compile(both) == compile_predicate(SQLITE, THING, both)
    for long in (InValues("s", tuple(map(str, range(9_999)))), like("s", "x" * 9_999)):
        compiler.compile(long)
        assert cache.last is both, "no list and no pattern outlives its request"


def test_a_full_text_match_leads_and_no_other_index() -> None:
    """Facets of an index would be looked through for all rows that have them."""
    page = Entity("Page", (THING.by_name["s"], THING.by_name["n"]),
                  indexes=(Index("by_n", ("n",), False),), search=Search(("s",), ("n",), ()))
    allowed, match = equal("s", "a"), Match(("pump",), False)
    alone = compile_predicate(SQLITE, page, guarded(allowed, equal("n", 1))).sql
    assert alone == '("n" = ? AND "s" = ?)'
    led = compile_predicate(SQLITE, page, and_(match, guarded(allowed, equal("n", 1)))).sql
    assert "MATCH" in led and '"n" = ? THEN 1' in led and led.count('"n"') == 1
