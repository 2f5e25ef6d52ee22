"""Patterns have LIKE's verdict in Python and in SQL, and cost time linear in text and pattern."""

from __future__ import annotations

import apsw
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from pylon.manifest.model import Entity, Field, FieldType
from pylon.query import patterns
from pylon.query.conditions import contains, like
from pylon.query.evaluate import evaluator_of
from pylon.query.patterns import UNMETERED, LikePattern, Meter, MeterExpired, fold
from pylon.query.predicate import Like, Predicate
from pylon.storage.sql.compiler import compile_predicate
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.patterns import CONTAINS, LIKE, add_functions
from tests.support.examples import count_examples

T = Entity("T", (Field("x", FieldType.STRING, True, False),))
STORE = apsw.Connection(":memory:")
add_functions(STORE, UNMETERED)
STORE.execute("CREATE TABLE T (x TEXT)")

LETTERS = st.text("abAB", max_size=12)
TEXTS = st.one_of(
    LETTERS,
    st.text("abAB_%\\ä\ufffd\ufffe\uffff\U0001f600\n", max_size=12),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    st.tuples(LETTERS, st.integers(1, 400)).map(lambda t: t[0] * t[1]),
)
PATTERNS = st.one_of(
    st.text("ab_%", max_size=10), st.text("abAB_%ä\ufffe", max_size=24), TEXTS,
    st.tuples(st.text("ab_", max_size=5), st.integers(1, 30)).map(lambda t: t[0] * t[1]),
)


def is_like(text: str, pattern: str) -> bool:
    """What LIKE means, by the book: a table of which prefixes match."""
    text, pattern = fold(text), f"%{fold(pattern)}%"
    matching = [True] + [False] * len(text)
    for wanted in pattern:
        if wanted == "%":
            for at in range(1, len(text) + 1):
                matching[at] = matching[at] or matching[at - 1]
        else:
            matching = [False] + [
                was and wanted in ("_", found)
                for was, found in zip(matching[:-1], text, strict=True)
            ]
    return matching[-1]


def selects(condition: Predicate, text: str) -> bool:
    """The verdict of SQLite, which is also that of Python."""
    clause = compile_predicate(SQLITE, T, condition)
    STORE.execute("DELETE FROM T")
    STORE.execute("INSERT INTO T VALUES (?)", (text,))
    found = bool(STORE.execute(f"SELECT count(*) FROM T WHERE {clause.sql}", clause.params).get)
    assert evaluator_of(condition)({"x": text}) is found
    return found


@settings(max_examples=count_examples(2_000))
@given(TEXTS, PATTERNS)
@example("a" * 50, "_a" * 20)
@example("ab" * 20_000, "ab" * 50 + "b")
@example("\ufffe", "\ufffd")
@example("x\uffff", "X\uffff")
def test_verdicts_are_those_of_like(text: str, pattern: str) -> None:
    condition = like("x", pattern)
    wanted = is_like(text, pattern)
    event(f"{wanted}, {compile_predicate(SQLITE, T, condition).sql.split('(')[0]}")
    assert selects(condition, text) is wanted
    assert LikePattern(pattern).matches(text) is wanted
    own = Like("x", pattern, has_wildcards=True, is_hard=True)
    assert selects(own, text) is wanted


@settings(max_examples=count_examples(1_000))
@given(TEXTS, TEXTS)
@example("50% off", "50%")
@example("a\\b", "\\")
def test_a_substring_is_found_as_it_stands(text: str, part: str) -> None:
    wanted = fold(part) in fold(text)
    assert selects(contains("x", part), text) is wanted
    own = Like("x", part, has_wildcards=False, is_hard=True)
    assert selects(own, text) is wanted


@settings(max_examples=count_examples(500))
@given(st.text("ab", max_size=200), st.text("ab_", min_size=1, max_size=12))
def test_shift_and_finds_what_the_search_for_runs_finds(text: str, piece: str) -> None:
    if "_" not in piece:
        piece += "_"
    wild = patterns._Wild(piece)
    found = wild.find_end(text, 0, len(text), UNMETERED)
    assert wild._scan(text, 0, len(text), UNMETERED) == found


def test_a_null_is_neither_found_nor_missed() -> None:
    STORE.execute("DELETE FROM T")
    STORE.execute("INSERT INTO T VALUES (NULL)")
    for function in (LIKE, CONTAINS):
        sql = f"SELECT {function}(CAST(x AS BLOB), 'a') IS NULL FROM T"
        assert STORE.execute(sql).get == 1


@pytest.mark.parametrize(("pattern", "native"), [
    ("0017", "instr"), ("ä-%", "LIKE"), ("task 17", "LIKE"), ("a_b%c", "LIKE"), ("-" * 64, "instr"),
    ("the quick brown fox jumps over the lazy dog and then has a rest", "LIKE"),
    ("https://example.com/some_path/and_another", "LIKE"),
    ("a" * 17, LIKE), ("_a" * 17, LIKE), ("-" * 65, CONTAINS), ("x\ufffd", LIKE),
    ("%".join(["a" * 9] * 900), "LIKE"), ("%".join(["aB" * 17] * 2), LIKE),
])
def test_the_form_of_a_pattern_decides_who_looks_for_it(pattern: str, native: str) -> None:
    assert native in compile_predicate(SQLITE, T, like("x", pattern)).sql


HARD = {
    "literal": ("a" * 1_000_000, "a" * 5_000 + "b"),
    "short text": ("a" * 29_000, "a" * 99 + "b"),
    "periodic": ("ab" * 500_000, "ab" * 2_500 + "b"),
    "wild": ("a" * 200_000, "a_" * 500 + "b"),
    "wild at the front": ("ab" * 100_000, "_a" * 40 + "bb_"),
    "near misses": (("a" * 60 + "b") * 3_000, "a" * 30 + "_c"),
    "pieces": ("a" * 100_000, "%".join("a" * 3_000) + "%b"),
}


@pytest.mark.parametrize("name", HARD)
def test_work_is_linear_in_the_text(name: str) -> None:
    """Twice the text is at most a little more than twice the work, and never text x pattern."""
    text, pattern = HARD[name]
    work = []
    for part in (text[: len(text) // 2], text):
        meter = Meter(lambda: False)
        assert not LikePattern(pattern).matches(part, meter)
        work.append(meter.characters)
    assert work[1] <= 2.2 * work[0] + 100_000
    assert work[1] <= 30 * len(text) + 70 * len(pattern)


def test_a_pattern_ends_when_its_time_is_over() -> None:
    asked = 0

    def is_late() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    for text, pattern in HARD.values():
        asked, meter = 0, Meter(is_late)
        if len(text) < 3 * Meter.GRAIN:
            continue
        with pytest.raises(MeterExpired):
            for _ in range(3):
                LikePattern(pattern).matches(text, meter)
