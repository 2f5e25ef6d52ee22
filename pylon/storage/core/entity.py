"""Entity writes: the codec, the rules and the stored rows of one entity, for the writer.

`engine` makes one for each entity of the manifest; `rows` and `documents` use it.
"""

from __future__ import annotations

from pylon import limits
from pylon.clock import Clock, SystemRandom
from pylon.manifest.model import Entity
from pylon.policy.entity_rules import EntityRules
from pylon.storage.core.transaction import RowTable
from pylon.values import EntityCodec, FieldDefaults


class EntityWrites:
    """One entity. `has_documents`: whether any row may have a document. `row_max_bytes`: largest
    size of the JSON of a row that a client inserts or enlarges."""

    __slots__ = ("codec", "defaults", "entity", "has_documents", "name", "row_max_bytes",
                 "rules", "table")

    def __init__(
        self, entity: Entity, rules: EntityRules, table: RowTable,
        row_max_bytes: int = limits.BODY_BYTES, *, clock: Clock,
    ) -> None:
        self.entity = entity
        self.name = entity.name
        self.rules = rules
        self.table = table
        self.row_max_bytes = row_max_bytes
        self.codec = EntityCodec(entity)
        self.defaults = FieldDefaults(entity, clock, SystemRandom())
        self.has_documents = False
