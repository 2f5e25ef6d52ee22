"""The database of one app in the test's process: the engine that writes, readers, operations.

`Database` opens a new or an existing database with the product's own parts, on the store of the
running test. `commit` applies
operations as one batch, as the writer of a supervisor does, and publishes nothing. The stages of
`tests.support` are built on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pylon.app import App
from pylon.auth_context import ADMIN
from pylon.clock import Clock
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow, WriteOp, WriteRequest
from pylon.storage.records import BatchResult
from tests.support import stores


class Database:
    """A database, the engine that writes to it, and a pool of readers."""

    def __init__(self, path: Path, app: App, clock: Clock) -> None:
        """Open the database that `path` names."""
        self.app = app
        self.backend = stores.backend_at(
            path, PYLON_ROW_MAX_BYTES=str(app.config.row_max_bytes)
        )
        self.engine = self.backend.open_writer(app.manifest, app.rules, clock)
        self.pool = self.backend.open_readers(app.manifest, clock)

    def close(self) -> None:
        self.pool.close()
        self.engine.close()

    def commit(self, *ops: WriteOp) -> BatchResult:
        """Apply `ops` as one batch; each must succeed."""
        result = self.engine.apply([WriteRequest(number, op) for number, op in enumerate(ops, 1)])
        for reply in result.replies:
            assert reply.error is None, reply.error
        return result

    def insert(self, entity: str, row_id: str, **body: Any) -> InsertRow:
        """Return the operation that inserts a row."""
        encoded = self.app.codecs[entity].insert(body, row_id)
        return InsertRow(entity, row_id, encoded.values, encoded.row_json)

    def update(self, entity: str, row_id: str, **patch: Any) -> UpdateRow:
        """Return the operation by which an admin updates a row."""
        return UpdateRow(entity, row_id, patch, ADMIN)

    def delete(self, entity: str, row_id: str) -> DeleteRow:
        """Return the operation by which an admin deletes a row."""
        return DeleteRow(entity, row_id, ADMIN)
