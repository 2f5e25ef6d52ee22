"""An app whose rules ask other rows: rooms, members and messages, for tests of ``exists(...)``."""

from __future__ import annotations

from typing import Any

from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.storage.ops import InsertRow
from pylon.storage.related import StoredRelated
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage


def field(name: str, kind: FieldType = FieldType.STRING) -> Field:
    return Field(name, kind, optional=True, unique=False)


ROOM = Entity("Room", (
    field("teamId"), field("level", FieldType.INT), field("isOpen", FieldType.BOOL),
), (
    Index("by_level", ("level",), False), Index("by_open", ("isOpen",), False),
    Index("by_team", ("teamId",), False),
))
MEMBER = Entity("Member", (
    field("roomId"), field("userId"), field("role"), field("level", FieldType.INT),
    field("isMuted", FieldType.BOOL), field("weight", FieldType.FLOAT),
), (
    Index("by_user", ("userId", "roomId"), False), Index("by_room", ("roomId", "weight"), False),
    Index("by_room_user", ("roomId", "userId", "role"), False),
    Index("by_user_room_role", ("userId", "roomId", "role"), False),
    Index("by_weight", ("weight",), False), Index("by_role", ("role", "userId"), False),
))
MESSAGE = Entity("Message", (
    field("roomId"), field("userId"), field("level", FieldType.INT), field("body"),
    field("weight", FieldType.FLOAT),
), (Index("by_room", ("roomId",), False),))
TEAM_MEMBER = Entity(
    "TeamMember", (field("teamId"), field("userId"), field("role")),
    (
        Index("by_user", ("userId", "teamId", "role"), False),
        Index("by_team", ("teamId", "userId"), False),
    ),
)
ENTITIES = (ROOM, MEMBER, MESSAGE, TEAM_MEMBER)
CODECS = {entity.name: EntityCodec(entity) for entity in ENTITIES}

ANN = AuthContext(user_id="ann", tenant_id="t1", roles=("owner", "staff"))
BOB = AuthContext(user_id="bob")
MINE = "exists(Member, roomId == data.roomId, userId == auth.userId)"


def row_id(number: int) -> str:
    return f"{number:040x}"


def put(entity: str, name: str, body: dict[str, Any], auth: AuthContext | None = None) -> InsertRow:
    """An insert of a row with any id."""
    encoded = CODECS[entity].insert(body, name)
    return InsertRow(entity, name, encoded.values, encoded.row_json, True, None, auth)


def insert(
    entity: str, number: int, auth: AuthContext | None = None, **body: Any
) -> InsertRow:
    """An insert of the row with the id of a number."""
    return put(entity, row_id(number), body, auth)


def app_of(rule: str, entity: str = "Message") -> Manifest:
    policies = [
        Policy(
            "p", entity, allow_read=rule, allow_update=rule, allow_delete=rule, allow_insert=rule
        ),
        *(Policy(e.name, e.name, allow="true") for e in ENTITIES if e.name != entity),
    ]
    return Manifest("chat", "1", ENTITIES, policies=tuple(policies))


def related(stage: StoreStage) -> StoredRelated:
    return StoredRelated(lambda read: read(stage.reader))
