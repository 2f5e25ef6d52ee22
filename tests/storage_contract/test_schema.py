"""Schema: additive steps at a start, refusals of all others, and the manager's plan and history."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pylon.errors import SchemaRefused, StartRefused
from pylon.manifest.model import Default, Entity, Field, FieldType, Index, Manifest
from pylon.query.parse import parse_where
from pylon.query.predicate import TRUE
from pylon.schema.options import MigrationOptions
from pylon.storage.backend import Backend
from pylon.storage.ops import InsertRow
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage
from tests.support.storage import MANIFEST, NOTE, TASK, USER, row_id, task

pytestmark = pytest.mark.stores


def app_with(*entities: Entity) -> Manifest:
    return replace(MANIFEST, entities=entities, policies=())


def with_fields(entity: Entity, *fields: Field) -> Entity:
    return replace(entity, fields=(*entity.fields, *fields))


def test_first_start_makes_every_table(stage: StoreStage) -> None:
    names = {table.name for table in stage.backend.schema.inspect()}
    assert {"Task", "User", "Note"} <= names
    plan = stage.backend.schema.plan(MANIFEST, MigrationOptions())
    assert not plan.steps


def test_optional_field_is_added_and_old_rows_have_null(stage: StoreStage) -> None:
    stage.apply(task(1))
    stage.restart(app_with(
        with_fields(TASK, Field("note", FieldType.STRING, optional=True, unique=False)), USER, NOTE
    ))
    row = stage.row("Task", row_id(1))
    assert row is not None and row["note"] is None and row["title"] == "task 1"


def test_required_field_over_rows_is_refused_and_nothing_changes(stage: StoreStage) -> None:
    stage.apply(task(1))
    wanted = app_with(
        with_fields(TASK, Field("must", FieldType.STRING, optional=False, unique=False)),
        USER, NOTE,
    )
    stage.close()
    with pytest.raises(StartRefused):
        stage.backend.schema.refuse_unreachable(wanted)
    with pytest.raises((SchemaRefused, StartRefused)):
        StoreStage(stage.backend, wanted, stage.clock)
    again = StoreStage(stage.backend, MANIFEST, stage.clock)
    assert [row["id"] for row in again.rows("Task")] == [row_id(1)]
    again.close()


@pytest.mark.parametrize(
    ("kind", "constant", "value"),
    [
        (FieldType.STRING, '"it\'s"', "it's"), (FieldType.INT, "-7", -7),
        (FieldType.FLOAT, "1", 1.0), (FieldType.BOOL, "true", True),
        (FieldType.DECIMAL, '"7.50"', "7.5"), (FieldType.DATE, '"2026-03-29"', "2026-03-29"),
        (FieldType.DATETIME, '"2026-03-29"', "2026-03-29T00:00:00.000000Z"),
        (FieldType.ENUM, '"new"', "new"), (FieldType.JSON, '{"a": [1]}', {"a": [1]}),
    ],
)
def test_required_field_with_a_constant_default_fills_the_rows(
    stage: StoreStage, kind: FieldType, constant: str, value: object
) -> None:
    stage.apply(task(1), task(2))
    version = stage.reader.get_version("Task", row_id(1), TRUE)
    values = ("new", "old") if kind is FieldType.ENUM else ()
    field = Field("must", kind, False, False, default=Default("constant", constant),
                  values=values)
    entity = with_fields(TASK, field)
    wanted = app_with(entity, USER, NOTE)
    stage.close()
    stage.backend.schema.refuse_unreachable(wanted)
    (step,) = stage.backend.schema.plan(wanted, MigrationOptions()).steps
    assert step.kind == "add_field" and "2 rows get the default" in step.detail
    again = StoreStage(stage.backend, wanted, stage.clock)
    assert [row["must"] for row in again.rows("Task")] == [value, value]
    if kind is not FieldType.JSON:
        assert again.rows("Task", parse_where(entity, {"must": value}))
    assert again.reader.get_version("Task", row_id(1), TRUE) != version
    again.restart()
    assert not again.backend.schema.plan(wanted, MigrationOptions()).steps
    encoded = EntityCodec(entity).insert(
        {"title": "x", "done": False, "must": value}, row_id(3)
    )
    assert again.codes(InsertRow("Task", row_id(3), encoded.values, encoded.row_json)) == [None]
    again.close()


def test_unique_field_with_a_default_cannot_fill_two_rows(stage: StoreStage) -> None:
    stage.apply(task(1), task(2))
    field = Field("must", FieldType.INT, False, True, default=Default("constant", "1"))
    plan = stage.backend.schema.plan(
        app_with(with_fields(TASK, field), USER, NOTE), MigrationOptions()
    )
    assert plan.refusals and not plan.steps


def test_rename_keeps_values_and_drop_needs_leave(backend: Backend) -> None:
    stage = StoreStage(backend)
    stage.apply(task(1))
    stage.close()
    renamed = replace(TASK, fields=(
        replace(TASK.fields[0], name="caption"), *TASK.fields[1:],
    ), indexes=(Index("by_owner_rank", ("ownerId", "rank"), unique=True),))
    wanted = app_with(renamed, USER, NOTE)
    options = MigrationOptions(rename_fields={("task", "title"): "caption"})
    drop = MigrationOptions(drop_entities=frozenset({"task"}))
    with pytest.raises(SchemaRefused):
        backend.schema.apply(app_with(USER, NOTE), drop, allow_destructive=False)
    assert backend.schema.apply(wanted, options, allow_destructive=True)
    after = StoreStage(backend, wanted)
    row = after.row("Task", row_id(1))
    assert row is not None and row["caption"] == "task 1" and "title" not in row
    assert backend.schema.history(5)
    after.close()


def test_export_has_all_rows_of_one_commit(stage: StoreStage) -> None:
    stage.apply(task(1), task(2))
    found = [(entity.name, row) for entity, row in stage.backend.schema.export([TASK])]
    assert [name for name, _ in found] == ["Task", "Task"]
    assert stage.backend.schema.has_rows(MANIFEST)
