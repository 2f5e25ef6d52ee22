"""Conditions on PostgreSQL whose values are not of their columns' types, or that no row can have:
the server's verdict is that of the evaluators in Python.

The trees are made at random, not parsed, so they have values that a parser converts before: numbers
beyond 64 bits, infinities, nulls in arithmetic, texts with NUL characters and halves of surrogate
pairs; and patterns that are syntax of a regular expression.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from pylon.manifest.model import Entity, Field, FieldType, Manifest
from pylon.query.conditions import (
    affix,
    compare,
    contains,
    guarded,
    is_null,
    like,
    not_,
    one_of,
    or_,
)
from pylon.query.evaluate import evaluator_of
from pylon.query.parse import parse_where
from pylon.query.predicate import (
    Arithmetic,
    Column,
    CompareTuple,
    InValues,
    Like,
    Literal,
    Predicate,
    Value,
)
from pylon.storage.postgres.dialect import dialect_of, numbered
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.sql.compiler import compile_predicate
from pylon.values.json_values import json_text_of
from tests.support.examples import count_examples
from tests.support.postgres_rows import open_tables, statements_of

THING = Entity("Thing", (
    Field("s", FieldType.STRING, True, False), Field("n", FieldType.INT, True, False),
    Field("f", FieldType.FLOAT, True, False), Field("b", FieldType.BOOL, True, False),
    Field("j", FieldType.JSON, True, False),
))
MANIFEST = Manifest("operands", "1", (THING,))
DIALECT = dialect_of(MANIFEST)
INTS = (0, 1, -1, 2, 3, 2**53, 2**53 + 1, 2**62, 2**62 + 1, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, 2.0**53, 2.0**53 + 2, 2.0**62, 2.0**63, -(2.0**63), 1e308,
          5e-324, 0.1, 0.3)
TEXTS = ("", "a", "b", "ab", "A", "ä", "\uffff", "\U0001f600", 'q"', "\\")
NO_TEXTS = ("a\0", "\0", "\ud800", "a\ud8ff", "ab\0c")
FAR = (2**63, -(2**63) - 1, 2**64, 10**400, -(10**400), float("inf"), -float("inf"))
SIGNS = ("=", "<>", "<", "<=", ">", ">=")
ALPHABETS = ("a(", "a.b", "a\\_", "aA%", "a*", "^a$", "[a]", "ä_a", "\n_a", "{a}|", "?+a")


class Trees:
    """Random conditions."""

    def __init__(self, random: Random) -> None:
        self.pick = random.choice
        self.random = random
        self.makers = (
            self.tuple, self.comparison, self.listed, self.affixed, self.arithmetic, self.option,
            self.element,
        )

    def tree(self) -> Predicate:
        """One condition, negated, joined or guarded."""
        made = self.pick(self.makers)()
        how = self.random.random()
        if how < 0.3:
            return not_(made)
        if how < 0.5:
            return or_(made, self.pick(self.makers)())
        return guarded(self.pick(self.makers)(), made) if how < 0.6 else made

    def row(self, number: int) -> dict[str, Any]:
        return {
            "id": f"r{number}", "s": self.pick((*TEXTS, None)), "n": self.pick((*INTS, None)),
            "f": self.pick((*FLOATS, None)), "b": self.pick((True, False, None)), "j": self.json(2),
        }

    def json(self, depth: int) -> Any:
        how = self.random.random() if depth else 1.0
        if how < 0.15:
            names = self.random.sample(["a", "b", "0", "ä"], 2)
            return {name: self.json(depth - 1) for name in names}
        if how < 0.3:
            return [self.json(depth - 1) for _ in range(self.random.randint(0, 3))]
        return self.pick((None, True, False, *INTS, *FLOATS, *TEXTS))

    def value(self, field: str) -> Any:
        if field in ("s", "id"):
            return self.pick((*TEXTS, *NO_TEXTS, "r1", "r\0"))
        return self.pick((True, False) if field == "b" else (*INTS, *FLOATS, *FAR))

    def tuple(self) -> Predicate:
        fields = tuple(self.random.sample(["s", "n", "f", "b", "id"], self.random.randint(2, 4)))
        return CompareTuple(fields, self.pick((True, False)), tuple(map(self.value, fields)))

    def comparison(self) -> Predicate:
        field = self.pick(("s", "n", "f", "b"))
        return compare(self.pick(SIGNS), Column(field), Literal(self.value(field)))

    def listed(self) -> Predicate:
        field = self.pick(("s", "n", "f"))
        values = [self.value(field) for _ in range(self.random.randint(1, 4))]
        if field == "f":
            values = [self.pick(FLOATS) for _ in values]
        return InValues(field, tuple(values), *self.pick(((True, False), (False, True), ())))

    def affixed(self) -> Predicate:
        text = self.pick((Column("s"), Column("id"), Literal(self.value("s"))))
        return affix(
            self.pick((True, False)), text, self.pick((Column("s"), Literal(self.value("s"))))
        )

    def number(self, depth: int = 2) -> Value:
        if depth and self.pick((True, False)):
            sign = self.pick(("+", "-", "*", "/", "%"))
            return Arithmetic(sign, self.number(depth - 1), self.number(depth - 1))
        literal = Literal(self.pick((*INTS, *FLOATS, None)))
        return self.pick((Column("n"), Column("f"), literal))

    def arithmetic(self) -> Predicate:
        if self.random.random() < 0.2:
            return is_null(self.number())
        return compare(self.pick(SIGNS), self.number(), self.number())

    def option(self) -> Predicate:
        field = self.pick(("s", "n", "f"))
        item = self.pick((Column(field), Column(field), Literal(self.value(field))))
        columns = ("s",) if field == "s" else ("n", "f")
        return one_of(item, tuple([
            self.pick((Literal(self.value(field)), Column(self.pick(columns))))
            for _ in range(self.random.randint(1, 3))
        ]))

    def element(self) -> Predicate:
        path = self.pick(("j", "j.a", "j.b", "j.0", "j.a.b", "j.ä", "j.a\0"))
        scalars = (True, False, *INTS, *FLOATS, *TEXTS, "a\0")
        operator = self.pick(
            ("$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains")
        )
        value: Any = self.pick(scalars)
        if operator in ("$in", "$nin"):
            value = [self.pick((*scalars, None)) for _ in range(self.random.randint(0, 3))]
        elif operator == "$exists":
            value = self.pick((True, False))
        return parse_where(THING, {path: {operator: value}})


@pytest.fixture
def session(postgres_url: str) -> Any:
    made = open_tables(postgres_url, MANIFEST)
    yield made
    made.close()


def selected(session: BlockingSession, predicate: Predicate) -> set[str]:
    clause = compile_predicate(DIALECT, THING, predicate)
    params: Any = clause.params
    result = session.execute(numbered(f'SELECT id FROM "Thing" WHERE {clause.sql}'), params)
    return {(result.get_value(row, 0) or b"").decode() for row in range(result.ntuples)}


def put(session: BlockingSession, rows: list[dict[str, Any]]) -> None:
    session.pipeline(statements_of(THING, THING.columns, [
        [json_text_of(row["j"]) if name == "j" else row[name] for name in THING.columns]
        for row in rows
    ]))


def judged(rows: list[dict[str, Any]], predicate: Predicate) -> set[str]:
    passes = evaluator_of(predicate)
    return {row["id"] for row in rows if passes(row)}


def test_values_of_any_kind_select_the_rows_that_python_passes(session: BlockingSession) -> None:
    trees = Trees(Random(1))
    for _ in range(count_examples(50)):
        rows = [trees.row(number) for number in range(12)]
        put(session, rows)
        for _ in range(40):
            predicate = trees.tree()
            assert selected(session, predicate) == judged(rows, predicate), predicate


def test_any_pattern_selects_the_rows_that_python_passes(session: BlockingSession) -> None:
    random = Random(1)
    for _ in range(count_examples(300)):
        alphabet = random.choice(ALPHABETS)
        pattern = "".join(random.choice(alphabet) for _ in range(random.randint(1, 60)))
        text = pattern.replace("%", "zz").replace("_", "q")
        other = "".join(random.choice("a(.b\\_A%*^$[]ä\n{}|?+x") for _ in range(80))
        texts = (f"x{text}y", text.upper(), text[1:], other)
        rows = [
            {**dict.fromkeys(THING.columns), "id": str(n), "s": s} for n, s in enumerate(texts)
        ]
        put(session, rows)
        condition = like("s", pattern)
        assert isinstance(condition, Like)
        for predicate in (condition, contains("s", pattern), not_(condition)):
            assert selected(session, predicate) == judged(rows, predicate), repr(pattern)


@pytest.mark.parametrize("sign", SIGNS)
def test_a_comparison_that_is_compared_with_a_constant(
    session: BlockingSession, sign: Any
) -> None:
    rows = [{"id": name, "s": None, "n": n, "f": f, "b": None, "j": None} for name, n, f in (
        ("same", 1, 1.0), ("other", 1, 1.5), ("large", 2**53 + 1, 2.0**53),
    )]
    put(session, rows)
    inner = compare("=", Column("n"), Column("f"))
    for held in (True, False):
        for predicate in (
            compare(sign, Literal(held), inner), one_of(Literal(held), (inner, Column("b"))),
        ):
            assert selected(session, predicate) == judged(rows, predicate)
