"""Full-text search: words find rows behind the caller's policy, and the index follows writes."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pylon.auth_context import ADMIN, AuthContext
from pylon.query.conditions import guarded
from pylon.query.index_words import index_words
from pylon.query.predicate import TRUE, Match, Predicate
from pylon.query.rows import Query
from pylon.query.words import parse_match, parse_words
from pylon.storage.backend import Backend
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage
from tests.support.examples import count_examples
from tests.support.search import pages_manifest

pytestmark = pytest.mark.stores

MANIFEST = pages_manifest()
PAGE = MANIFEST.by_name["Page"]
CODEC = EntityCodec(PAGE)
TITLES = [
    "Green tea and black tea", "Green house", "Über den Wolken", "naïve café", "tea",
    "日本語のページ", "100% wool",
]


def page(number: int, title: str, **fields: Any) -> InsertRow:
    row_id = f"{number:040x}"
    encoded = CODEC.insert({"title": title, "open": True, "ownerId": "ada", **fields}, row_id)
    return InsertRow("Page", row_id, encoded.values, encoded.row_json)


@pytest.fixture
def stage(backend: Backend) -> Iterator[StoreStage]:
    made = StoreStage(backend, MANIFEST)
    assert not any(made.codes(*(page(n, title) for n, title in enumerate(TITLES, 1))))
    yield made
    made.close()


def found(stage: StoreStage, text: str, allowed: Predicate = TRUE) -> list[int]:
    where = guarded(allowed, parse_words(PAGE, text))
    return [int(row["id"], 16) for row in stage.rows("Page", where)]


@pytest.mark.parametrize(("text", "numbers"), [
    ("tea", [1, 5]),
    ("TEA", [1, 5]),
    ("green te", [1]),  # the last word may be the beginning of one
    ("gree tea", []),
    ("green ", [1, 2]),
    ("uber", [3]),  # without accents
    ("cafe", [4]),
    ("100%", [7]),
    ("\"tea\" OR -green", []),  # a user's text has no operators
    ("", [1, 2, 3, 4, 5, 6, 7]),
])
def test_words_find_rows(stage: StoreStage, text: str, numbers: list[int]) -> None:
    assert found(stage, text) == numbers


def test_more_relevant_rows_come_first(stage: StoreStage) -> None:
    stage.apply(page(8, "words " * 200 + "tea"))
    match = parse_match(PAGE, "tea ")
    numbers = [int(row["id"], 16) for row in stage.rows("Page", relevance=match)]
    assert sorted(numbers) == [1, 5, 8]
    assert numbers[-1] == 8, "one word of many is less relevant"
    assert len(stage.reader.rows("Page", Query(TRUE, 1, relevance=match))) == 1


def test_search_stays_behind_the_policy(stage: StoreStage) -> None:
    stage.apply(page(8, "secret tea", open=False, ownerId="bob"))
    rules = stage.rules.for_entity("Page")
    assert found(stage, "secret", rules.readable_by(AuthContext(user_id="ada"))) == []
    assert found(stage, "secret", rules.readable_by(AuthContext(user_id="bob"))) == [8]


def test_index_follows_writes_in_their_commit(stage: StoreStage) -> None:
    row_id = f"{1:040x}"
    stage.apply(UpdateRow("Page", row_id, {"title": "coffee"}, ADMIN))
    assert found(stage, "coffee") == [1] and found(stage, "tea") == [5]
    stage.apply(DeleteRow("Page", row_id, ADMIN))
    assert found(stage, "coffee") == []


def test_rebuilt_index_equals_the_rows(stage: StoreStage) -> None:
    after, rebuilt = "", 0
    while True:
        rows, after = stage.writer.maintenance.renew_search("Page", after, 3)
        rebuilt += rows
        if not after:
            break
    assert rebuilt == len(TITLES)
    (check,) = stage.backend.schema.check_search([PAGE])
    assert (check.rows, check.problems) == (len(TITLES), ())


def test_entity_without_an_index_is_searched_by_its_texts(backend: Backend) -> None:
    manifest = pages_manifest(None)
    entity = manifest.by_name["Page"]
    stage = StoreStage(backend, manifest)
    stage.apply(*(page(n, title) for n, title in enumerate(TITLES, 1)))
    rows = stage.rows("Page", parse_words(entity, "green tea"))
    assert [int(row["id"], 16) for row in rows] == [1]
    stage.close()


# --- The found set, against a model -------------------------------------------------------------

LETTERS = "abAB éÉß日本ก็-_.'\"*:&|!\\1\u0301\U0001f600"
MODEL_TEXTS = [
    "".join(random.choice(LETTERS) for _ in range(random.randrange(1, 14)))
    for random in [Random(n) for n in range(120)]
]


def has_words(words: list[str], parts: list[str], is_open: bool) -> bool:
    """Whether the words have the parts side by side."""
    for begin in range(len(words) - len(parts) + 1):
        found = words[begin : begin + len(parts)]
        if found == parts or (
            is_open and found[:-1] == parts[:-1] and found[-1].startswith(parts[-1])
        ):
            return True
    return False


def matches(match: Match, text: str) -> bool:
    """Whether a text has all words of a search, as docs/query-semantics.md defines it."""
    words = index_words(text)
    asked = [(index_words(word), n == len(match.words) - 1) for n, word in enumerate(match.words)]
    return any(parts for parts, _ in asked) and all(
        not parts or has_words(words, parts, is_last and match.is_open) for parts, is_last in asked
    )


@pytest.fixture
def many(backend: Backend) -> Iterator[StoreStage]:
    made = StoreStage(backend, MANIFEST)
    assert not any(made.codes(*(page(n, title) for n, title in enumerate(MODEL_TEXTS, 1))))
    yield made
    made.close()


@settings(
    max_examples=count_examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(LETTERS, max_size=8) | st.sampled_from(MODEL_TEXTS))
def test_every_store_finds_the_rows_of_the_model(many: StoreStage, text: str) -> None:
    match = parse_match(PAGE, text)
    # A mark without a letter is a word for SQLite alone.
    assume(match is None or "" not in [part for word in match.words for part in index_words(word)])
    expected = range(1, len(MODEL_TEXTS) + 1) if match is None else [
        n for n, title in enumerate(MODEL_TEXTS, 1) if matches(match, title)
    ]
    assert found(many, text) == list(expected), repr(text)
