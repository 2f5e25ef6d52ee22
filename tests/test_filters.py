"""The filter object: every operator against real rows, every refusal, and no 500 ever."""

from __future__ import annotations

from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import limits
from pylon.errors import InvalidColumn, InvalidQuery, InvalidValue, LimitExceeded, PylonError
from pylon.query.parse import parse_where
from pylon.query.rows import parse_filter
from pylon.storage.sql.compiler import compile_predicate
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.storage import TASK, apply, open_engine, open_reader, row_id, task

MEMORY = apsw.Connection(":memory:")
ROWS = {
    1: {"title": "Red pump", "done": True, "rank": 1, "weight": 0.5, "ownerId": "a"},
    2: {"title": "red valve", "done": False, "rank": 2, "dueAt": "2026-01-01", "ownerId": "a"},
    3: {"title": "blue_valve", "done": False, "weight": 2.5, "ownerId": "b"},
    4: {"title": "100% wool", "done": True, "rank": -4, "slug": "x"},
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SqliteReader:
    path: Path = tmp_path_factory.mktemp("filters") / "a.db"
    engine = open_engine(path)
    apply(engine, *[task(n, **{"ownerId": None, **fields}) for n, fields in ROWS.items()])
    return open_reader(path)


def found(reader: SqliteReader, body: Any, max_limit: int = 100) -> list[int]:
    rows = reader.rows("Task", parse_filter(TASK, body, max_limit))
    return [int(orjson.loads(r)["id"], 16) for r in rows]


def test_bounds_of_any_size_compare_as_in_mathematics(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.db")
    numbers = {1: (-(2**63), -(2.0**63)), 2: (2**63 - 1, 2.0**63), 3: (0, 1e308)}
    apply(engine, *[
        task(n, rank=rank, weight=weight, ownerId=f"{n}") for n, (rank, weight) in numbers.items()
    ])
    engine.close()
    reader = open_reader(tmp_path / "a.db")
    for field, place in (("rank", 0), ("weight", 1)):
        for bound in (2**63, 2**63 + 1, -(2**63) - 1, 2**64 + 1, 10**308, 10**309, -(10**309)):
            for sign, holds in (("$gt", gt), ("$gte", ge), ("$lt", lt), ("$lte", le)):
                wanted = [n for n, row in numbers.items() if holds(row[place], bound)]
                assert found(reader, {field: {sign: bound}}) == wanted, (field, sign, bound)
    reader.close()


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_an_integer_that_no_row_can_have_is_no_value_to_ask_for(number: int) -> None:
    for body in ({"rank": number}, {"rank": {"$ne": number}}, {"rank": {"$in": [number]}}):
        with pytest.raises(InvalidValue, match="64 bits"):
            parse_filter(TASK, body, 10)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, [1, 2, 3, 4]),
        ({"title": "Red pump"}, [1]),
        ({"id": row_id(3)}, [3]),
        ({"done": True}, [1, 4]),
        ({"done": 0}, [2, 3]),
        ({"rank": None}, [3]),
        ({"rank": {"$not": None}}, [1, 2, 4]),
        ({"rank": {"$not": 2}}, [1, 4]),
        ({"rank": {"$gt": -4, "$lte": 2}}, [1, 2]),
        ({"rank": {"$gte": 1.5}}, [2]),
        ({"rank": {"$lt": 2**63}}, [1, 2, 4]),
        ({"rank": {"$lte": 10**30}}, [1, 2, 4]),
        ({"rank": {"$gt": -(2**63) - 1}}, [1, 2, 4]),
        ({"rank": {"$gte": 2**63}}, []),
        ({"weight": {"$gt": -(10**400)}}, [1, 3]),
        ({"weight": {"$ne": 2**70}}, [1, 3]),
        ({"weight": {"$in": [2**70 + 1, 2.5]}}, [3]),
        ({"weight": {"$nin": [2**70 + 1]}}, [1, 3]),
        ({"weight": {"$lt": 1}}, [1]),
        ({"weight": 2.5}, [3]),
        ({"title": {"$like": "RED"}}, [1, 2]),
        ({"title": {"$like": "d_v"}}, [2]),
        ({"title": {"$like": "e_v"}}, [3]),
        ({"rank": {"$in": [1, 2, 99]}}, [1, 2]),
        ({"rank": {"$in": [1, None]}}, [1, 3]),
        ({"rank": {"$in": [None]}}, [3]),
        ({"rank": {"$in": []}}, []),
        ({"done": {"$in": [True]}}, [1, 4]),
        ({"title": {"$in": ["Red pump", "nope"]}}, [1]),
        ({"dueAt": {"$gt": "2025-12-31"}}, [2]),
        ({"ownerId": "a", "done": False}, [2]),
        ({"$order": {"rank": "desc"}}, [2, 1, 4, 3]),
        ({"$order": {"ownerId": "desc", "title": "asc"}}, [3, 1, 2, 4]),
        ({"$order": {"done": "asc", "id": "desc"}}, [3, 2, 4, 1]),
        ({"$limit": 2}, [1, 2]),
        ({"$limit": 0}, []),
        ({"$limit": 2, "$offset": 3}, [4]),
        ({"$limit": None, "$offset": None, "$order": None}, [1, 2, 3, 4]),
        ({"rank": {"$ne": 2}}, [1, 4]),
        ({"rank": {"$ne": None}}, [1, 2, 4]),
        ({"rank": {"$nin": [1, 2]}}, [4]),
        ({"rank": {"$nin": [1, None]}}, [2, 4]),
        ({"rank": {"$nin": [None]}}, [1, 2, 4]),
        ({"rank": {"$nin": []}}, [1, 2, 3, 4]),
        ({"rank": {"$exists": True}}, [1, 2, 4]),
        ({"rank": {"$exists": False}}, [3]),
        ({"title": {"$startsWith": "red"}}, [2]),
        ({"title": {"$startsWith": ""}}, [1, 2, 3, 4]),
        ({"slug": {"$startsWith": ""}}, [4]),
        ({"title": {"$startsWith": "100%"}}, [4]),
        ({"title": {"$like": "a\0"}}, []),
        ({"$or": [{"rank": 1}, {"ownerId": "b"}]}, [1, 3]),
        ({"$or": [{"rank": 1}, {}]}, [1, 2, 3, 4]),
        ({"$or": []}, []),
        ({"$and": []}, [1, 2, 3, 4]),
        ({"$and": [{"rank": {"$gt": 0}}, {"rank": {"$lt": 2}}]}, [1]),
        ({"done": False, "$or": [{"rank": 1}, {"rank": None}]}, [3]),
        ({"$or": [{"done": True, "rank": 1}, {"$and": [{"done": False}, {"ownerId": "b"}]}]},
         [1, 3]),
        ({"$search": "valve"}, [2, 3]),
        ({"$search": "RED pu"}, [1]),
        ({"$search": "100%"}, [4]),
        ({"$or": [{"$search": "wool"}, {"rank": 1}]}, [1, 4]),
        ({"$search": "valve", "$order": {"title": "desc"}}, [2, 3]),
    ],
)
def test_answers(reader: SqliteReader, body: Any, wanted: list[int]) -> None:
    assert found(reader, body) == wanted


def test_the_default_limit_is_the_list_limit(reader: SqliteReader) -> None:
    assert found(reader, {}, max_limit=3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ([], InvalidQuery, "JSON object"),
        (None, InvalidQuery, "JSON object"),
        ({"nope": 1}, InvalidColumn, "valid columns: id, title"),
        ({"_json": "x"}, InvalidColumn, "_json"),
        ({"rank": {"$near": 1}}, InvalidQuery, r"\$near.*\$not, \$ne, \$gt.*\$exists"),
        ({"rank": {"gt": 1}}, InvalidQuery, "Unknown operator"),
        ({"rank": {}}, InvalidQuery, "no operator"),
        ({"$xor": []}, InvalidQuery, r"\$xor.*\$or, \$and, \$search, \$order"),
        ({"$or": {}}, InvalidQuery, "list of filters"),
        ({"$or": [1]}, InvalidQuery, "JSON object"),
        ({"$and": [{"nope": 1}]}, InvalidColumn, "nope"),
        ({"$and": [{"$limit": 1}]}, InvalidQuery, "outermost"),
        ({"$search": 1}, InvalidQuery, "text"),
        ({"$search": "a", "$and": [{"$search": "b"}]}, InvalidQuery, "one"),
        ({"rank": {"$exists": 1}}, InvalidQuery, "true or false"),
        ({"rank": {"$nin": 1}}, InvalidQuery, "list"),
        ({"rank": {"$nin": [True]}}, InvalidValue, "rank"),
        ({"rank": {"$in": [1] * (limits.FILTER_VALUES + 1)}}, LimitExceeded, "10000 values"),
        ({"rank": {"$startsWith": "1"}}, InvalidQuery, "text"),
        ({"weight": float("nan")}, InvalidValue, "weight"),
        ({"rank": "1"}, InvalidValue, "whole number"),
        ({"rank": True}, InvalidValue, "rank"),
        ({"rank": 2**70}, InvalidValue, "rank"),
        ({"rank": {"$gt": None}}, InvalidValue, "rank"),
        ({"title": 1}, InvalidValue, "string"),
        ({"title": ["a"]}, InvalidValue, "string"),
        ({"done": 2}, InvalidValue, "true or false"),
        ({"rank": {"$like": "1"}}, InvalidQuery, "text"),
        ({"title": {"$like": 1}}, InvalidValue, "title"),
        ({"rank": {"$in": 1}}, InvalidQuery, "list"),
        ({"rank": {"$in": ["a"]}}, InvalidValue, "rank"),
        ({"$order": "rank"}, InvalidQuery, "object"),
        ({"$order": {"rank": "up"}}, InvalidQuery, "asc"),
        ({"$order": {"nope": "asc"}}, InvalidColumn, "nope"),
        ({"$limit": -1}, InvalidQuery, r"\$limit"),
        ({"$limit": True}, InvalidQuery, r"\$limit"),
        ({"$offset": "1"}, InvalidQuery, r"\$offset"),
        ({"$limit": 101}, LimitExceeded, "PYLON_LIST_LIMIT"),
        ({"title": {"$like": "x" * (limits.LIKE_CHARS + 1)}}, LimitExceeded, "like"),
    ],
)
def test_refusals(body: Any, error: type[PylonError], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_filter(TASK, body, 100)


def test_the_number_of_conditions_is_bounded(reader: SqliteReader) -> None:
    fits = [{"rank": n} for n in range((limits.FILTER_TERMS - 1) // 2)]
    assert found(reader, {"$or": fits, "title": "none"}) == []
    for body in (
        {"$or": [*fits, {"rank": 1}]},
        {"$and": [{}] * limits.FILTER_TERMS},
        {"$or": [{"rank": {"$gt": 1, "$lt": 9}}] * 22},
    ):
        with pytest.raises(LimitExceeded, match="64 conditions"):
            parse_filter(TASK, body, 100)


def test_the_depth_is_bounded(reader: SqliteReader) -> None:
    body: dict[str, Any] = {"rank": 1}
    for _ in range(limits.FILTER_DEPTH):
        body = {"$or": [body, {"rank": 99}]}
    assert found(reader, body) == [1]
    with pytest.raises(LimitExceeded, match="8 levels"):
        parse_filter(TASK, {"$and": [body]}, 100)


@given(
    st.text(st.sampled_from("aA\u0430\ud7ff\ue000\U0010ffff%"), max_size=3),
    st.lists(st.text(st.sampled_from("aA\u0430\ud7ff\ue000\U0010ffff%"), max_size=4), max_size=5),
)
def test_a_prefix_is_a_range(prefix: str, texts: list[str]) -> None:
    clause = compile_predicate(SQLITE, TASK, parse_where(TASK, {"title": {"$startsWith": prefix}}))
    for text in texts:
        sql = f"SELECT {clause.sql} FROM (SELECT ? AS title)"
        assert bool(MEMORY.execute(sql, (*clause.params, text)).get) is text.startswith(prefix)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_names = st.sampled_from([f.name for f in TASK.fields] + ["id", "$limit", "$order", "$x", "'; --"])
_ops = st.sampled_from(
    ["$not", "$ne", "$gt", "$gte", "$lt", "$lte", "$like", "$in", "$nin", "$exists",
     "$startsWith", "$x"]
)
_operand = _scalars | st.lists(_scalars, max_size=3) | st.dictionaries(_ops, _scalars, max_size=3)


_flat = st.dictionaries(_names, _operand, max_size=4)
_filters = st.recursive(
    _flat,
    lambda inner: st.builds(
        lambda key, parts, rest: {**rest, key: parts},
        st.sampled_from(["$or", "$and"]), st.lists(inner, max_size=3), _flat,
    ),
    max_leaves=6,
)


@given(_filters)
def test_any_filter_is_answered_or_refused(reader: SqliteReader, body: dict[str, Any]) -> None:
    try:
        query = parse_filter(TASK, body, 100)
    except PylonError as error:
        assert error.status == 400
    else:
        assert len(reader.rows("Task", query)) <= len(ROWS)


@given(
    part=st.text(alphabet="0-1 \u00e9\u00c9\u017f\u212a\u65e5\u0301\U0001f680%_aA", max_size=3),
    value=st.text(alphabet="0-1 \u00e9\u00c9\u017f\u212a\u65e5\u0301\U0001f680%_aAks", max_size=8),
)
def test_a_substring_is_found_as_sqlite_s_like_finds_it(part: str, value: str) -> None:
    clause = compile_predicate(SQLITE, TASK, parse_where(TASK, {"title": {"$like": part}}))
    ((found, wanted),) = MEMORY.execute(
        f"SELECT {clause.sql}, title LIKE ? FROM (SELECT ? AS title)",
        (*clause.params, f"%{part}%", value),
    )
    assert found == wanted
