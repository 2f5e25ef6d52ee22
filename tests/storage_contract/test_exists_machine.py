"""Any rule with ``exists(...)``, while the rows that it asks come, go and change.

The writer judges by the rows of its transaction, and readers by those of the commit.
"""

from __future__ import annotations

import operator
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pylon.auth_context import ADMIN, ANONYMOUS
from pylon.policy import expression as e
from pylon.policy.entity_rules import EntityRules
from pylon.policy.related import CheckValues, ExistsCheck
from pylon.query.conditions import equal, guarded
from pylon.storage.ops import DeleteRow, RowOp, Transact, UpdateRow
from tests.storage_contract.backends import StoreStage
from tests.support.examples import count_examples
from tests.support.exists_app import ANN, BOB, put, related
from tests.support.exists_rules import ASKING_RULE, BODIES, CALLERS, ROOMS

pytestmark = pytest.mark.stores


class ListedRows:
    """The related rows of a list: answers a check by the words of docs/query-semantics.md."""

    def __init__(self, rows: dict[tuple[str, str], dict[str, Any]]) -> None:
        self._rows = rows

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        bound = dict(zip(map(id, check.values), values, strict=True))
        return self._has(check.exists, bound, {})

    def _has(self, exists: e.Exists, bound: dict[int, Any], around: dict[str, Any]) -> bool:
        return any(
            all(self._holds(part, row, bound, around) for part in exists.comparisons)
            and all(self._has(inner, bound, row) for inner in exists.nested)
            for (entity, _), row in self._rows.items() if entity == exists.entity
        )

    def _holds(
        self, part: e.Comparison, row: dict[str, Any], bound: dict[int, Any],
        around: dict[str, Any],
    ) -> bool:
        given: list[Any] = []
        for option in part.options:
            if isinstance(option, e.Literal):
                given.append(option.value)
                continue
            value = around[option.field] if isinstance(option, e.Related) else bound[id(option)]
            for one in value if isinstance(value, tuple) else (value,):
                given.append(NOTHING if one is None else one)
        found = row[part.field]
        if part.op in OPERATORS:
            return found is not None and given[0] is not NOTHING and bool(
                OPERATORS[part.op](found, given[0])
            )
        return (found in given) is (part.op != "!=")


NOTHING = object()  # a null value equals nothing; only the word null equals null
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
IDS = {"Room": ROOMS, "Member": ("m1", "m2", "m3", "m4"), "TeamMember": ("t1", "t2", "t3")}
STEP = st.one_of(*[
    st.tuples(st.just(name), st.sampled_from(ids), st.none() | BODIES[name])
    for name, ids in IDS.items()
], st.tuples(st.just("Message"), CALLERS, BODIES["Message"]))


def change_of(
    rows: dict[tuple[str, str], dict[str, Any]], entity: str, name: str,
    body: dict[str, Any] | None,
) -> RowOp | None:
    """Apply a step to the model, and return the operation that does the same."""
    known = (entity, name) in rows
    if body is None:
        if not known:
            return None
        del rows[entity, name]
        return DeleteRow(entity, name, ADMIN)
    rows[entity, name] = {**body, "id": name}
    return UpdateRow(entity, name, body, ADMIN) if known else put(entity, name, body)


@settings(
    deadline=None, max_examples=count_examples(150),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rule=ASKING_RULE, batches=st.lists(st.lists(STEP, min_size=1, max_size=6), max_size=4),
    is_one=st.booleans(),
)
def test_writer_judges_by_the_rows_of_its_transaction_and_readers_by_those_of_the_commit(
    open_stage: Any, rule: str, batches: list[list[Any]], is_one: bool
) -> None:
    """A batch changes what the rule asks, and inserts messages between these changes."""
    with TemporaryDirectory() as folder:
        stage: StoreStage = open_stage(folder, rule)
        judge = stage.rules.for_entity("Message")
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        number = 0
        for batch in batches:
            ops: list[RowOp] = []
            wanted: list[str | None] = []
            before = dict(rows)
            for entity, name, body in batch:
                if entity == "Message":
                    number += 1
                    row = {**body, "id": f"x{number}"}
                    may = judge.may_insert(name, row, ListedRows(rows))
                    event(f"message may be added: {may}")
                    ops.append(put("Message", f"x{number}", body, name))
                    wanted.append(None if may else "POLICY_DENIED")
                    if may:
                        rows["Message", f"x{number}"] = row
                    elif is_one:
                        break
                elif (op := change_of(rows, entity, name, body)) is not None:
                    ops.append(op)
                    wanted.append(None)
            if is_one:
                (reply,) = stage.apply(Transact(ops))
                replies = reply.results or []
                if wanted and wanted[-1] is not None:  # the transaction is undone
                    rows = before
            else:
                replies = stage.apply(*ops)
            assert [reply.error.code if reply.error else None for reply in replies] == wanted
            check_readers(stage, judge, rows)
        stage.close()


FILTERS = {"body": "owner", "roomId": "r1", "userId": "ann", "level": 1, "weight": 1.0}


def check_readers(
    stage: StoreStage, judge: EntityRules, rows: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """Compare the verdicts of the store, of Python on the store's rows and of the model."""
    stored = {row["id"]: row for row in stage.rows("Message")}
    assert stored == {name: row for (entity, name), row in rows.items() if entity == "Message"}
    for auth in (ANN, BOB, ANONYMOUS):
        allowed = judge.readable_by(auth)
        wanted = {
            name for name, row in stored.items() if judge.may_read(auth, row, ListedRows(rows))
        }
        for name, row in stored.items():
            assert judge.may_read(auth, row, related(stage)) is (name in wanted)
            is_found = stage.reader.get_version("Message", name, allowed) is not None
            assert is_found is (name in wanted)
        assert {row["id"] for row in stage.rows("Message", allowed)} == wanted
        assert stage.reader.count("Message", allowed) == len(wanted)
        for field, value in FILTERS.items():  # a filter's value is known to the policy, too
            filtered = guarded(allowed, equal(field, value))
            assert {row["id"] for row in stage.rows("Message", filtered)} == {
                name for name in wanted if stored[name][field] == value
            }
