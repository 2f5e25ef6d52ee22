"""Pending schema: what a start leaves for later is done while the server serves, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest
from pylon.storage.nodes import NodeFacts
from pylon.storage.postgres.schema import apply
from pylon.storage.postgres.schema.leader import alone
from supervisor.pending_schema import PendingSchema
from tests.support.schema_stage import SchemaStage
from tests.support.wait import wait_until

ITEM = Entity("Item", (Field("rank", FieldType.INT, True, False),))
APP = Manifest("items", "1", (ITEM,))
WANTED = replace(APP, entities=(replace(ITEM, indexes=(Index("by_rank", ("rank",), False),)),))


@pytest.fixture
def stage(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SchemaStage]:
    """A database whose start has left an index for later."""
    monkeypatch.setattr(apply, "ROWS_AT_START", 2)
    made = SchemaStage(postgres_url)
    made.start(APP)
    for number in range(5):
        made.add(APP, "Item", f"i{number}", rank=number)
    made.start(WANTED)
    yield made
    made.close()


def test_the_index_is_built_when_no_other_node_changes_the_schema(stage: SchemaStage) -> None:
    other = stage.open()
    pending = PendingSchema(stage.manager, WANTED, again_s=0.05)
    with alone(other):
        pending.start()
        assert pending.count == 1
    wait_until("the index", lambda: pending.count == 0)
    assert stage.left(WANTED) == []
    pending.stop()
    other.close()


def test_a_start_that_left_nothing_has_no_thread(stage: SchemaStage) -> None:
    pending = PendingSchema(stage.manager, APP)
    pending.start()
    assert pending.count == 0


def test_an_older_node_that_starts_later_is_noticed(stage: SchemaStage) -> None:
    """Its start has written all rows with the fields that it knows."""
    newer = replace(APP, text="newer", entities=(replace(
        ITEM, fields=(*ITEM.fields, Field("note", FieldType.STRING, True, False)),
    ),))
    stage.start(newer)
    others: list[NodeFacts] = []
    pending = PendingSchema(stage.manager, newer, again_s=0.05, others=lambda: tuple(others))
    pending.start()
    stage.start(APP)
    assert "note" not in stage.rows("Item")[0] and pending.count == 0
    stage.ask(
        "INSERT INTO _pylon_nodes (node, incarnation, roles, version, manifest, workers, "
        "started_at, seen_at) VALUES ('old', '', '', '', 'older', '', now(), now())"
    )
    others.append(NodeFacts("old", "i", (), "", "older"))
    try:
        wait_until("something is left", lambda: pending.count == 1)
        assert "note" in stage.rows("Item")[0]
        others.clear()
        stage.ask("DELETE FROM _pylon_nodes")
        wait_until("the rest is done", lambda: pending.count == 0)
    finally:
        pending.stop()
