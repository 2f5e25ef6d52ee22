"""The backend under test, and a stage: one open store with short operations on it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Final

import orjson

from pylon.clock import ManualClock
from pylon.manifest.model import Manifest
from pylon.policy.rules import compile_rules
from pylon.query.predicate import TRUE, Predicate
from pylon.query.rows import Query
from pylon.storage.backend import Backend
from pylon.storage.events import ChangeEvent
from pylon.storage.ops import WriteOp, WriteReply, WriteRequest
from pylon.storage.records import BatchResult
from tests.support import stores
from tests.support.storage import MANIFEST

_MANY: Final = 10_000


def open_backend(folder: Path) -> Backend:
    """Return an empty store of the backend that the running test is for."""
    return stores.backend_at(folder / "app.db")


class StoreStage:
    """A writer and a reader of one store, on a manual clock."""

    def __init__(
        self, backend: Backend, manifest: Manifest = MANIFEST, clock: ManualClock | None = None
    ) -> None:
        self.backend = backend
        self.clock = clock or ManualClock()
        self._ids = itertools.count(1)
        self._open(manifest)

    def _open(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.rules = compile_rules(manifest)
        self.writer = self.backend.open_writer(manifest, self.rules, self.clock)
        self.reader = self.backend.open_reader(manifest)

    def restart(self, manifest: Manifest | None = None) -> None:
        """Close the store and open it again, as the next run of the server does."""
        self.close()
        self._open(manifest or self.manifest)

    def commit(self, *ops: WriteOp) -> BatchResult:
        """Commit `ops` as one batch."""
        return self.writer.apply([WriteRequest(next(self._ids), op) for op in ops])

    def apply(self, *ops: WriteOp) -> list[WriteReply]:
        """Commit `ops` as one batch and return the replies."""
        return self.commit(*ops).replies

    def codes(self, *ops: WriteOp) -> list[str | None]:
        """Commit `ops` as one batch and return the error code of each, or None."""
        return [reply.error.code if reply.error else None for reply in self.apply(*ops)]

    def rows(self, entity: str, where: Predicate = TRUE, **query: Any) -> list[dict[str, Any]]:
        """Return the decoded rows that a query selects, in its order."""
        found = self.reader.rows(entity, Query(where, query.pop("limit", _MANY), **query))
        return [orjson.loads(row) for row in found]

    def row(self, entity: str, row_id: str) -> dict[str, Any] | None:
        """Return one decoded row."""
        found = self.reader.get(entity, row_id)
        return None if found is None else orjson.loads(found)

    def events(self, since: int = 0) -> list[ChangeEvent]:
        """Return the change log after a seq."""
        return self.reader.events_after(since, _MANY)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
