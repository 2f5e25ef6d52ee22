"""Write operations: validate, encode, check the policy, and write 64 requests in one transaction.

The writer's loop belongs to the supervisor and does not run here. The steps write batches of the
size that the loop has with 64 concurrent callers. Called by `pylon.bench.run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Final

from pylon.auth_context import ADMIN
from pylon.bench import rows
from pylon.bench.measure import Step
from pylon.ids import RowIds
from pylon.manifest.model import Entity
from pylon.policy.entity_rules import EntityRules
from pylon.storage.events import ChangeBatch
from pylon.storage.interface import WriteEngine
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow, WriteOp, WriteRequest
from pylon.values import EntityCodec

BATCH: Final = 64


class Writes:
    """The steps for one entity. Row numbers only increase, so that unique fields stay unique."""

    def __init__(
        self, entity: Entity, rules: EntityRules, engine: WriteEngine, ids: RowIds
    ) -> None:
        self.entity = entity
        self._rules = rules
        self._codec = EntityCodec(entity)
        self._body_of = rows.body_maker(entity)
        self._engine = engine
        self._ids = ids
        self._next = 0
        self.row_ids: list[str] = []  # of the rows that `fill` made
        self.last_batch: ChangeBatch | None = None

    def fill(self, count: int) -> None:
        """Insert the rows for updates and reads."""
        for start in range(0, count, BATCH):
            ops = [self._insert() for _ in range(min(BATCH, count - start))]
            self.row_ids += [op.row_id for op in ops]
            self._apply(ops)

    def set_references(self, field: str, targets: list[str]) -> None:
        """Set `field` of the rows of `fill` to the ids in `targets`, in turn."""
        ops: list[WriteOp] = []
        for row_id, target in zip(self.row_ids, cycle(targets), strict=False):
            patch = self._codec.patch({field: target}, row_id)
            ops.append(UpdateRow(self.entity.name, row_id, patch, ADMIN))
        for start in range(0, len(ops), BATCH):
            self._apply(ops[start:start + BATCH])

    def insert(self) -> Step:
        """Each op: a new row."""
        def step() -> int:
            self._apply([self._insert() for _ in range(BATCH)])
            return BATCH

        return step

    def update(self) -> Step:
        """Each op: change one field of an existing row, if possible one that is not unique."""
        taken = {f for index in self.entity.indexes if index.unique for f in index.fields}
        free = [f for f in self.entity.fields if not f.unique and f.name not in taken]
        field = (free or list(self.entity.fields))[0]
        row_ids = self._rotate()
        value_of = rows.value_maker(field, distinct=True)

        def step() -> int:
            ops: list[WriteOp] = []
            for _ in range(BATCH):
                self._next += 1
                row_id = next(row_ids)
                patch = self._codec.patch({field.name: value_of(self._next)}, row_id)
                ops.append(UpdateRow(self.entity.name, row_id, patch, ADMIN))
            self._apply(ops)
            return BATCH

        return step

    def delete_and_reinsert(self) -> Step:
        """Each op: delete a row, and insert it again with the same id."""
        row_ids = self._rotate()

        def step() -> int:
            ops: list[WriteOp] = []
            for _ in range(BATCH // 2):
                row_id = next(row_ids)
                ops.append(DeleteRow(self.entity.name, row_id, ADMIN))
                ops.append(self._insert(row_id))
            self._apply(ops)
            return BATCH // 2

        return step

    def _rotate(self) -> Iterator[str]:
        while True:
            yield from self.row_ids

    def _insert(self, row_id: str | None = None) -> InsertRow:
        self._next += 1
        row_id = row_id or self._ids.new()
        encoded = self._codec.insert(self._body_of(self._next), row_id)
        if not self._rules.may_insert(ADMIN, encoded.row):
            raise AssertionError("admin may insert")
        return InsertRow(self.entity.name, row_id, encoded.values, encoded.row_json)

    def _apply(self, ops: list[InsertRow] | list[WriteOp]) -> None:
        result = self._engine.apply([WriteRequest(number, op) for number, op in enumerate(ops)])
        for reply in result.replies:
            if reply.error is not None:
                raise reply.error.to_exception()
        self.last_batch = result.batch
