"""Defaults: the writer sets the fields with onUpdate at each update of a row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.manifest.model import Default, Entity, Field, FieldType, Manifest, Policy
from pylon.storage.backend import Backend
from pylon.storage.ops import InsertRow, OpKey, Transact, UpdateRow
from pylon.values import EntityCodec
from pylon.values.defaults import instant_text
from tests.storage_contract.backends import StoreStage
from tests.support.storage import row_id

pytestmark = pytest.mark.stores

PAGE = Entity("Page", (
    Field("text", FieldType.STRING, False, False),
    Field("changedAt", FieldType.DATETIME, True, False, on_update=Default("now")),
    Field("changedBy", FieldType.STRING, True, False, on_update=Default("auth", "userId")),
))
# The policy reads the row after the server has set its fields.
MANIFEST = Manifest("pages", "1", (PAGE,), policies=(
    Policy("p", entity="Page", allow_read="true", allow_insert="true", allow_delete="true",
           allow_update="data.changedBy != 'eve' && auth.userId != null"),
))
ADA, EVE = AuthContext(user_id="ada"), AuthContext(user_id="eve")


@pytest.fixture
def stage(backend: Backend) -> Iterator[StoreStage]:
    """A store with one page."""
    made = StoreStage(backend, MANIFEST)
    encoded = EntityCodec(PAGE).insert({"text": "a"}, row_id(1))
    made.apply(InsertRow("Page", row_id(1), encoded.values, encoded.row_json))
    yield made
    made.close()


def test_update_sets_the_fields_and_its_policy_sees_them(stage: StoreStage) -> None:
    stage.clock.advance(1.5)
    at = instant_text(stage.clock.wall_ns())
    assert stage.codes(
        UpdateRow("Page", row_id(1), {"text": "b"}, EVE),
        UpdateRow("Page", row_id(1), {"text": "b"}, ANONYMOUS),
    ) == ["POLICY_DENIED"] * 2
    assert stage.codes(UpdateRow("Page", row_id(1), {"text": "c"}, ADA)) == [None]
    assert stage.row("Page", row_id(1)) == {
        "id": row_id(1), "text": "c", "changedAt": at, "changedBy": "ada",
    }


def test_repeated_operation_leaves_the_first_time(stage: StoreStage) -> None:
    once = UpdateRow("Page", row_id(1), {"text": "b"}, ADA, OpKey("ada", "op"))
    stage.apply(once)
    first = stage.row("Page", row_id(1))
    stage.clock.advance(1)
    stage.apply(once)
    assert stage.row("Page", row_id(1)) == first
    given = "2020-01-01T00:00:00.000000Z"
    stage.apply(Transact([UpdateRow("Page", row_id(1), {"changedAt": given}, ADMIN)]))
    row = stage.row("Page", row_id(1))
    assert row is not None and (row["changedAt"], row["changedBy"]) == (given, None)
