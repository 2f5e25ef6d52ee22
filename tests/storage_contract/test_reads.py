"""Reads: by id, by field, lists, pages, counts, facets and graphs; and what bounds them."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import orjson
import pytest

from pylon import limits
from pylon.errors import EntityNotFound, InvalidColumn, LimitExceeded
from pylon.query.conditions import equal
from pylon.query.graph import GraphNode
from pylon.query.predicate import FALSE, TRUE
from pylon.query.rows import Query
from pylon.storage.interface import Reader, Store, read_settled
from tests.storage_contract.backends import StoreStage
from tests.support.storage import insert, row_id, task, update

pytestmark = pytest.mark.stores

TITLES = ["b", "B", "a", "ä", "", "a"]


@pytest.fixture
def filled(stage: StoreStage) -> StoreStage:
    """A store with six tasks, whose ranks are 0, 10, 20 … but one null."""
    ops = [
        task(n, title=title, rank=None if n == 3 else 10 * n, slug=f"s{n}")
        for n, title in enumerate(TITLES, 1)
    ]
    assert not any(stage.codes(*ops))
    return stage


@pytest.fixture
def store(filled: StoreStage) -> Iterator[Store]:
    """The readers of a worker."""
    made = filled.backend.open_readers(filled.manifest, filled.clock)
    yield made
    made.close()


def numbers(rows: list[bytes]) -> list[int]:
    return [int(orjson.loads(row)["id"], 16) for row in rows]


def test_row_is_returned_as_it_was_written(stage: StoreStage) -> None:
    request = task(1, title='"\\ \n \U0001f600', weight=0.1, rank=2**53 + 1)
    stage.apply(request)
    assert stage.reader.get("Task", row_id(1)) == request.row_json
    assert stage.reader.get("Task", row_id(2)) is None
    assert stage.reader.get_version("Task", row_id(1)) == (request.row_json, 1)
    assert stage.reader.get_version("Task", row_id(1), equal("title", "x")) is None


def test_version_is_the_seq_of_the_last_change(stage: StoreStage) -> None:
    stage.apply(task(1))
    stage.apply(task(2))
    stage.apply(update("Task", 1, {"rank": 1}))
    found = stage.reader.get_version("Task", row_id(1))
    assert found is not None and found[1] == 3


def test_lookup_finds_the_first_row_by_id(filled: StoreStage) -> None:
    reader = filled.reader
    assert numbers([reader.lookup("Task", "title", "a") or b"{}"]) == [3]
    assert numbers([reader.lookup("Task", "slug", "s5") or b"{}"]) == [5]
    assert reader.lookup("Task", "title", "a", equal("done", True)) is None
    with pytest.raises(InvalidColumn):
        reader.lookup("Task", "nope", "a")
    with pytest.raises(EntityNotFound):
        reader.get("Nope", row_id(1))


@pytest.mark.parametrize(("order", "expected"), [
    ((), [1, 2, 3, 4, 5, 6]),
    ((("title", False),), [5, 2, 3, 6, 1, 4]),  # by code point; ties by id
    ((("title", True),), [4, 1, 3, 6, 2, 5]),
    ((("rank", False),), [3, 1, 2, 4, 5, 6]),  # null first
    ((("rank", True),), [6, 5, 4, 2, 1, 3]),
    ((("done", False), ("rank", True)), [6, 5, 4, 2, 1, 3]),
])
def test_lists_are_ordered(
    filled: StoreStage, order: tuple[tuple[str, bool], ...], expected: list[int]
) -> None:
    found = filled.reader.rows("Task", Query(TRUE, 100, order=order))
    assert numbers(found) == expected
    windows = [
        filled.reader.rows("Task", Query(TRUE, 2, order=order, offset=offset))
        for offset in range(0, 8, 2)
    ]
    assert [n for rows in windows for n in numbers(rows)] == expected


def test_keyset_pages_have_every_row_once(filled: StoreStage) -> None:
    found: list[int] = []
    after: str | None = None
    while rows := filled.reader.rows("Task", Query(TRUE, 2, after_id=after)):
        found += numbers(rows)
        after = orjson.loads(rows[-1])["id"]
    assert found == [1, 2, 3, 4, 5, 6]


def test_page_has_the_rows_as_one_array(filled: StoreStage) -> None:
    count, text = filled.reader.page("Task", Query(equal("title", "a"), 100))
    assert count == 2
    assert [row["title"] for row in orjson.loads(text)] == ["a", "a"]
    assert filled.reader.page("Task", Query(equal("title", "zz"), 100)) == (0, b"[]")
    assert filled.reader.count("Task", equal("title", "a")) == 2


def test_bounded_count_stops_at_its_bound(filled: StoreStage) -> None:
    reader = filled.reader
    assert [reader.count_within("Task", TRUE, most) for most in (1, 5, 6, 100)] == [1, 5, 6, 6]
    assert reader.count_within("Task", equal("title", "a"), 100) == 2
    assert reader.count_within("Task", FALSE, 100) == 0


def test_answer_is_bounded_in_bytes(
    filled: StoreStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIST_BYTES", 10_000)
    filled.restart()
    filled.apply(*(insert("Note", n, {"text": "x" * 3_000}) for n in range(4)))
    node = GraphNode(filled.manifest.by_name["Note"], TRUE)
    reader = filled.reader
    assert reader.page("Note", Query(TRUE, 3))[0] == 3
    for read in (
        lambda: reader.rows("Note", Query(TRUE, 100)),
        lambda: reader.page("Note", Query(TRUE, 100)),
        lambda: reader.graph([node]),
    ):
        with pytest.raises(LimitExceeded, match="10000 bytes"):
            read()


def test_rows_within_a_size_are_the_first_and_at_least_one(filled: StoreStage) -> None:
    rows, has_more = filled.reader.rows_within("Task", Query(TRUE, 100), 1)
    assert (numbers(rows), has_more) == ([1], True)
    rows, has_more = filled.reader.rows_within("Task", Query(TRUE, 100), 1_000_000)
    assert (len(rows), has_more) == (6, False)


def test_facets_count_values_and_not_nulls(filled: StoreStage) -> None:
    found = filled.reader.facet_counts("Task", TRUE, ["title", "rank"], 2)
    assert found.total == 6
    assert found.by_field["title"][0] == ("a", 2)
    assert len(found.by_field["rank"]) == 2 and None not in dict(found.by_field["rank"])


def test_graph_nests_related_rows_of_one_commit(filled: StoreStage) -> None:
    nodes = [GraphNode(filled.manifest.entities[0], equal("title", "a"))]
    found = orjson.loads(filled.reader.graph(nodes))
    assert [row["title"] for row in found["Task"]] == ["a", "a"]


def test_store_is_empty_until_a_row_is_written(stage: StoreStage) -> None:
    assert stage.reader.is_empty()
    stage.apply(insert("Note", 1, {"text": None}))
    assert not stage.reader.is_empty()


def test_data_version_changes_with_each_commit(stage: StoreStage) -> None:
    before = stage.reader.data_version()
    assert stage.reader.data_version() == before
    stage.apply(task(1))
    assert stage.reader.data_version() != before


def test_reads_at_one_commit_do_not_see_later_ones(stage: StoreStage) -> None:
    stage.apply(task(1))

    def read() -> list[int]:
        first = stage.reader.count("Task", TRUE)
        stage.apply(task(2))
        return [first, stage.reader.count("Task", TRUE)]

    assert stage.reader.at_one_commit(read) == [1, 1]
    assert stage.reader.count("Task", TRUE) == 2


def test_inline_read_switches_no_greenlet(store: Store) -> None:
    ran: list[str] = []
    other = gevent.spawn(ran.append, "other")
    assert store.point_inline(lambda reader: reader.count("Task", TRUE)) == 6
    assert ran == []
    other.join()


def test_settled_read_is_repeated_until_memory_stands_still(store: Store) -> None:
    stamps = iter([1, 2, 2, 2])
    reads: list[int] = []

    def read(reader: Reader) -> int:
        reads.append(1)
        return reader.count("Task", TRUE)

    assert read_settled(store, read, lambda: next(stamps)) == 6
    assert len(reads) == 2


def test_scan_answers_what_a_point_read_does(store: Store) -> None:
    def read(reader: Reader) -> list[bytes]:
        return reader.rows("Task", Query(TRUE, 100))

    assert store.scan(read) == store.point(read) == store.scan(read, inline=False)
