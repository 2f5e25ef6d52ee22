"""Each line of docs/query-semantics.md by the evaluators in Python.

`tests.storage_contract.test_semantics` asks the stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.clock import ManualClock
from pylon.errors import PylonError
from pylon.manifest.model import Field, FieldType
from pylon.policy.rules import compile_rules
from pylon.query.evaluate import evaluator_of
from pylon.query.operands import value_of_text
from pylon.query.predicate_parts import Cost, asks_rows, cost_of
from pylon.storage.ops import WriteRequest
from pylon.storage.related import StoredRelated
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.examples import count_examples
from tests.support.query_cases import (
    CALLER,
    Case,
    inserts_of,
    load_cases,
    manifest_of,
    rows_stored,
)

CASES = load_cases()
PAGE = Path(__file__).parent.parent / "docs" / "query-semantics.md"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteReader]:
    path = tmp_path_factory.mktemp("semantics") / "a.db"
    manifest = manifest_of(CASES)
    engine = SqliteEngine.open(path, manifest, compile_rules(manifest), ManualClock(), "normal")
    ops = [op for case in CASES for op in inserts_of(case)]
    result = engine.apply([WriteRequest(n, op) for n, op in enumerate(ops, 1)])
    assert not any(reply.error for reply in result.replies)
    engine.close()
    made = SqliteReader(path, manifest)
    yield made
    made.close()


def cases(*questions: str) -> list[object]:
    return [
        pytest.param(case, id=f"{case.number}-{case.rule}") for case in CASES
        if any(question in case.source for question in questions)
    ]


@pytest.mark.parametrize("case", cases("filter", "where", "policy", "search"))
def test_the_evaluators_pass_the_rows(reader: SqliteReader, case: Case) -> None:
    if "error" in case.source or cost_of(case.condition) is Cost.MATCH:
        return  # no row has a verdict
    rows = rows_stored(reader, case)
    if asks_rows(case.condition):
        with pytest.raises(ValueError, match="no single row"):
            evaluator_of(case.condition)
    else:
        passes = evaluator_of(case.condition)
        assert [n for n, row in enumerate(rows, 1) if passes(row)] == case.source["ids"]
    if "policy" in case.source and "where" not in case.source:
        rules, related = case.rules, StoredRelated(lambda read: read(reader))
        judged = [n for n, row in enumerate(rows, 1) if rules.may_read(CALLER, row, related)]
        assert judged == case.source["ids"]


@pytest.mark.parametrize("case", cases("error"))
def test_a_question_without_a_meaning_is_refused(case: Case) -> None:
    with pytest.raises(PylonError) as caught:
        _ = case.condition
    assert caught.value.code == case.source["error"]


def test_every_rule_of_the_page_has_a_case_and_every_case_a_rule() -> None:
    rules = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(rules) == len(set(rules))
    assert set(rules) == {case.rule for case in CASES}


NUMBERS = apsw.Connection(":memory:")
NUMBERS.execute("CREATE TABLE N (n INTEGER)")
NUMBER_TEXTS = st.text("0123456789+-.eE \t\n", max_size=12)


@settings(max_examples=count_examples(2_000))
@given(NUMBER_TEXTS | st.integers(-(2**70), 2**70).map(str))
def test_a_text_in_a_url_is_the_number_that_sqlite_takes_it_for(text: str) -> None:
    value = value_of_text(Field("n", FieldType.INT, True, False), text)
    values = [0, 1, 2**63 - 1, -(2**63)]
    if isinstance(value, int) or (isinstance(value, float) and abs(value) < 2**53):
        values.append(int(value))
    NUMBERS.execute("DELETE FROM N")
    NUMBERS.executemany("INSERT INTO N VALUES (?)", [(v,) for v in set(values)])
    found, by_affinity = (
        NUMBERS.execute("SELECT n FROM N WHERE n = ? ORDER BY n", (operand,)).fetchall()
        for operand in (value, text)
    )
    assert found == by_affinity
