"""Any sequence of inserts, updates, deletes and transactions on rows that refer to each other.

The model is a dict of tables. A transaction is right if every reference holds at its end; the model
tries that on a copy. After each batch the rows, and the rows as the change log replays them, are
those of the model.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pylon.auth_context import ADMIN
from pylon.manifest.model import Entity, Field, FieldType, Manifest, OnDelete
from pylon.storage.ops import DeleteRow, InsertRow, RowOp, Transact, UpdateRow
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage, open_backend
from tests.support.examples import count_examples
from tests.support.storage import row_id

pytestmark = pytest.mark.stores

Tables = dict[str, dict[str, dict[str, Any]]]


def ref(name: str, target: str, on_delete: OnDelete) -> Field:
    return Field(name, FieldType.ID, True, False, target=target, on_delete=on_delete)


ENTITIES = {
    "Tree": Entity("Tree", (ref("up", "Tree", "cascade"), ref("friend", "Tree", "setNull"),
                            ref("leaf", "Leaf", "setNull"))),
    "Leaf": Entity("Leaf", (ref("tree", "Tree", "cascade"), ref("peer", "Leaf", "restrict"))),
    "Nest": Entity("Nest", (ref("tree", "Tree", "restrict"), ref("leaf", "Leaf", "cascade"))),
}
NUMBERS = st.integers(1, 4)
NAMES = st.sampled_from(sorted(ENTITIES))
VALUES = st.none() | NUMBERS.map(row_id)


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, str, str, dict[str, Any]]:
    """A kind, an entity, a row id, and fields."""
    kind, name = draw(st.sampled_from(["insert", "insert", "update", "delete"])), draw(NAMES)
    fields = [field.name for field in ENTITIES[name].fields]
    if kind == "update":
        fields = [draw(st.sampled_from(fields))]
    return kind, name, row_id(draw(NUMBERS)), {field: draw(VALUES) for field in fields}


def op_of(step: tuple[str, str, str, dict[str, Any]]) -> RowOp:
    kind, name, id_, fields = step
    if kind == "insert":
        encoded = EntityCodec(ENTITIES[name]).insert(fields, id_)
        return InsertRow(name, id_, encoded.values, encoded.row_json)
    return UpdateRow(name, id_, fields, ADMIN) if kind == "update" else DeleteRow(name, id_, ADMIN)


class RefusedError(Exception):
    """The model refuses the step."""


def missing(tables: Tables) -> list[tuple[str, str, str]]:
    """Return the references that do not hold: entity, row id and field."""
    return [
        (name, id_, field.name)
        for name, rows in tables.items() for id_, row in rows.items()
        for field in ENTITIES[name].fields
        if row[field.name] is not None and row[field.name] not in tables[field.target or ""]
    ]


def remove(tables: Tables, name: str, id_: str, is_deferred: bool) -> None:
    """Remove a row, and what goes with it."""
    deleted = {(name, id_)}
    while True:
        more = {
            (child, child_id)
            for child, rows in tables.items() for child_id, row in rows.items()
            for field in ENTITIES[child].fields
            if field.on_delete == "cascade" and (field.target, row[field.name]) in deleted
        } - deleted
        if not more:
            break
        deleted |= more
    for child, rows in tables.items():
        for child_id, row in rows.items():
            for field in ENTITIES[child].fields:
                if (field.target, row[field.name]) not in deleted or (child, child_id) in deleted:
                    continue
                if field.on_delete == "setNull":
                    row[field.name] = None
                elif not is_deferred:
                    raise RefusedError
    for child, child_id in deleted:
        del tables[child][child_id]


def carry_out(
    tables: Tables, step: tuple[str, str, str, dict[str, Any]], is_deferred: bool
) -> None:
    kind, name, id_, fields = step
    rows = tables[name]
    if (id_ in rows) is (kind == "insert"):
        raise RefusedError
    if kind == "delete":
        remove(tables, name, id_, is_deferred)
        return
    rows[id_] = {**rows.get(id_, {"id": id_}), **fields}
    if not is_deferred and missing(tables):
        raise RefusedError


class ReferenceMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        backend = open_backend(Path(self.folder.name))
        self.stage = StoreStage(backend, Manifest("m", "1", tuple(ENTITIES.values())))
        self.tables: Tables = {name: {} for name in ENTITIES}
        self.logged: Tables = {name: {} for name in ENTITIES}
        self.seq = 0

    def teardown(self) -> None:
        self.stage.close()
        self.folder.cleanup()

    @rule(batch=st.lists(steps(), min_size=1, max_size=6))
    def write(self, batch: list[tuple[str, str, str, dict[str, Any]]]) -> None:
        replies = self.stage.apply(*map(op_of, batch))
        for step, reply in zip(batch, replies, strict=True):
            tried = copy.deepcopy(self.tables)
            try:
                carry_out(tried, step, is_deferred=False)
            except RefusedError:
                assert reply.error is not None, step
            else:
                assert reply.error is None, (step, reply.error)
                self.tables = tried

    @rule(batch=st.lists(steps(), min_size=1, max_size=6))
    def transact(self, batch: list[tuple[str, str, str, dict[str, Any]]]) -> None:
        (reply,) = self.stage.apply(Transact([op_of(step) for step in batch]))
        results = reply.results or []
        tried = copy.deepcopy(self.tables)
        try:
            for step in batch:
                carry_out(tried, step, is_deferred=True)
            if missing(tried):
                raise RefusedError
        except RefusedError:
            assert results[-1].error is not None
        else:
            assert [result.error for result in results] == [None] * len(batch)
            self.tables = tried

    @invariant()
    def every_reference_holds_and_the_log_tells_all(self) -> None:
        assert missing(self.tables) == []
        for name in ENTITIES:
            assert {row["id"]: row for row in self.stage.rows(name)} == self.tables[name]
        for event in self.stage.events(self.seq):
            rows = self.logged[event.entity]
            assert event.seq > self.seq
            self.seq = event.seq
            before = orjson.loads(event.prev_data) if event.prev_data else None
            assert rows.get(event.row_id) == before
            if event.data is not None:
                rows[event.row_id] = orjson.loads(event.data)
            else:
                rows.pop(event.row_id, None)
        assert self.logged == self.tables


def test_references_hold_after_any_writes() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        ReferenceMachine, settings=settings(max_examples=count_examples(80), stateful_step_count=30,
                                   deadline=None)
    )
