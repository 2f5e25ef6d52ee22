"""Each line of docs/query-semantics.md: every backend selects, counts and aggregates the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage_contract.backends import StoreStage, open_backend
from tests.support.query_cases import (
    Case,
    id_found,
    ids_selected,
    inserts_of,
    load_cases,
    manifest_of,
)
from tests.support.stores import TestStore

pytestmark = pytest.mark.stores

CASES = load_cases()


@pytest.fixture(scope="module")
def stage(
    tested_store: TestStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoreStage]:
    """One store with the rows of all cases."""
    backend = open_backend(tmp_path_factory.mktemp("semantics"))
    made = StoreStage(backend, manifest_of(CASES))
    assert not any(made.codes(*(op for case in CASES for op in inserts_of(case))))
    yield made
    made.close()


def cases_with(question: str) -> list[object]:
    return [
        pytest.param(case, id=f"{case.number}-{case.rule}")
        for case in CASES if question in case.source
    ]


@pytest.mark.parametrize("case", cases_with("ids"))
def test_store_selects_the_rows_of_a_case(stage: StoreStage, case: Case) -> None:
    if "lookup" in case.source:
        assert id_found(stage.reader, case) == case.source["ids"]
        return
    assert ids_selected(stage.reader, case) == case.source["ids"]


@pytest.mark.parametrize("case", cases_with("aggregate"))
def test_store_aggregates_the_rows_of_a_case(stage: StoreStage, case: Case) -> None:
    answer = stage.reader.aggregate(case.entity.name, case.aggregate)
    assert answer == case.source["answer"]
    for found, expected in zip(answer, case.source["answer"], strict=True):
        assert [type(value) for value in found.values()] == [
            type(expected[key]) for key in found
        ]


@pytest.mark.parametrize("case", cases_with("facets"))
def test_store_counts_the_facets_of_a_case(stage: StoreStage, case: Case) -> None:
    counts = stage.reader.facet_counts(case.entity.name, case.part, ["v"], case.source["facets"])
    assert counts.total == len(case.rows)
    found = [list(pair) for pair in counts.by_field["v"]]
    assert found == case.source["answer"]
    assert [type(v) for v, _ in found] == [type(v) for v, _ in case.source["answer"]]
