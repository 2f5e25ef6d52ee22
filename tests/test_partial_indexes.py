"""SQLite uses partial and descending indexes for the queries that they serve. Other programs can
write to a database with a field that is unique without regard to case."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon.errors import SchemaRefused
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.query.conditions import equal
from pylon.query.predicate import TRUE, Predicate
from pylon.query.rows import parse_filter
from pylon.storage.sql.compiler import CompiledCache
from pylon.storage.sqlite.reads import EntityReads, selection
from tests.support.storage import open_engine

TASK = Entity(
    "Job",
    (
        Field("state", FieldType.STRING, True, False),
        Field("owner", FieldType.STRING, True, False),
        Field("rank", FieldType.INT, True, False), Field("done", FieldType.BOOL, True, False),
        Field("mail", FieldType.STRING, True, True, nocase=True),
        Field("kind", FieldType.STRING, True, False), Field("text", FieldType.STRING, True, False),
    ),
    (
        Index("waiting", ("owner",), False, where='{"state": "waiting", "done": false}'),
        Index("ranked", ("owner", "rank"), False, ("rank",), '{"done": true}'),
        Index("by_rank", ("kind", "rank"), False, ("rank",)),
    ),
)
MANIFEST = Manifest("jobs", "1", (TASK,))


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> apsw.Connection:
    path: Path = tmp_path_factory.mktemp("plans") / "a.db"
    open_engine(path, manifest=MANIFEST).close()
    return apsw.Connection(str(path))


def plan_of(
    connection: apsw.Connection, body: dict[str, Any], allowed: Predicate = TRUE
) -> list[str]:
    """The lines of the plan."""
    select = selection(EntityReads(TASK, CompiledCache()), parse_filter(TASK, body, 100, allowed))
    return [
        line for (_, _, _, line) in connection.execute(
            f"EXPLAIN QUERY PLAN {select.sql}", select.params
        )
    ]


@pytest.mark.parametrize("allowed", [TRUE, equal("text", "a")], ids=["all", "own"])
@pytest.mark.parametrize(("body", "index"), [
    ({"state": "waiting", "done": False, "owner": "a"}, "Job_waiting (owner=?)"),
    ({"done": False, "owner": "a", "$and": [{"state": "waiting"}]}, "Job_waiting (owner=?)"),
    ({"done": True, "owner": "a", "rank": {"$lt": 3}}, "Job_ranked (owner=? AND rank<?)"),
])
def test_query_that_implies_the_condition_uses_the_partial_index(
    connection: apsw.Connection, body: dict[str, Any], index: str, allowed: Predicate
) -> None:
    lines = plan_of(connection, body, allowed)
    assert [line for line in lines if index in line], lines


@pytest.mark.parametrize("body", [
    {"owner": "a"}, {"state": "waiting", "owner": "a"}, {"state": "x", "done": False, "owner": "a"},
    {"state": "waiting", "done": None, "owner": "a"},
    {"$or": [{"state": "waiting"}, {"done": False}], "owner": "a"},
])
def test_other_queries_do_not_use_it(connection: apsw.Connection, body: dict[str, Any]) -> None:
    assert not [line for line in plan_of(connection, body) if "Job_waiting" in line]


def test_statements_of_one_shape_and_other_values_are_not_mixed_up(
    connection: apsw.Connection,
) -> None:
    reads = EntityReads(TASK, CompiledCache())
    for state in ("waiting", "other", "waiting", "other"):
        body = {"state": state, "done": False, "owner": "a"}
        text = selection(reads, parse_filter(TASK, body, 100)).sql
        assert ("'waiting'" in text) is (state == "waiting")


def test_descending_index_gives_the_order_without_a_sort(connection: apsw.Connection) -> None:
    lines = plan_of(connection, {"kind": "a", "$order": {"rank": "desc"}})
    assert lines == ["SEARCH Job USING INDEX Job_by_rank (kind=?)"]


def test_lookup_in_any_case_uses_an_index_behind_a_policy(connection: apsw.Connection) -> None:
    reads = EntityReads(TASK, CompiledCache())
    select = reads.lookup("mail", "A", equal("owner", "a"))
    plan = connection.execute(f"EXPLAIN QUERY PLAN {select.sql}", select.params)
    lines = [row[3] for row in plan]
    assert [line for line in lines if "Job_mail_nocase (_fold_mail=?)" in line], lines


def test_another_program_writes_and_the_next_start_folds(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    open_engine(path, manifest=MANIFEST).close()
    insert = "INSERT INTO Job (id, mail) VALUES (?, ?)"
    with closing(apsw.Connection(str(path))) as other:
        other.execute(insert, ("1", "Ada"))
        other.execute("INSERT INTO _pylon_schema_history (manifest_version, app_version, "
                      "applied_at, operation_count, baseline, plan_json) "
                      "VALUES (1, '1', '', 0, '', '[]')")
    open_engine(path, manifest=MANIFEST).close()
    with closing(apsw.Connection(str(path))) as other:
        assert other.execute("SELECT _fold_mail FROM Job").get == "ada"
        other.execute(insert, ("2", "ADA"))
        other.execute("INSERT INTO _pylon_schema_history (manifest_version, app_version, "
                      "applied_at, operation_count, baseline, plan_json) "
                      "VALUES (1, '1', '', 0, '', '[]')")
    with pytest.raises(SchemaRefused, match="differ only in case"):
        open_engine(path, manifest=MANIFEST)
