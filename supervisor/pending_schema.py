"""Pending schema: a thread does what the start left for later, while the server serves.

The store says how much there is (`SchemaManager.count_pending`): indexes of large tables that no
answer depends on, and rows that nodes with another manifest wrote during a migration. The thread
tries again every `_AGAIN_S`, because another node may be at work, or such a node may still live.
`count` is what is left, for /readyz. A killed server leaves the rest to the next start. Made by
`main`.
"""

from __future__ import annotations

import threading
from typing import Final

from pylon import log, metrics
from pylon.errors import PylonError
from pylon.manifest.model import Manifest
from pylon.storage.schemas import SchemaManager

_AGAIN_S: Final = 10.0

_log = log.get_logger("schema")


class PendingSchema:
    """`start` it once the store is open for writing; `stop` it at the end."""

    def __init__(
        self, schema: SchemaManager, manifest: Manifest, again_s: float = _AGAIN_S
    ) -> None:
        """Args: `again_s`: between two attempts."""
        self._schema = schema
        self._manifest = manifest
        self._again_s = again_s
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.count = 0

    def start(self) -> None:
        """Begin, if anything is left to do.

        Raises:
            PylonError: the schema cannot be read.
        """
        self._set(self._schema.count_pending(self._manifest))
        if self.count:
            self._thread = threading.Thread(target=self._run, name="schema", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Begin no further attempt. One that is under way ends with the process."""
        self._is_ending.set()

    def _run(self) -> None:
        while self.count and not self._is_ending.is_set():
            try:
                self._set(self._schema.finish_pending(self._manifest))
            except PylonError as error:
                _log.info("schema.pending", left=self.count, reason=error.message)
            if self.count:
                self._is_ending.wait(self._again_s)
        if not self.count:
            _log.info("schema.finished")

    def _set(self, count: int) -> None:
        self.count = count
        metrics.SCHEMA_PENDING.set(count)
