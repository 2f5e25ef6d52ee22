"""Pending schema: a thread does what the start left for later, while the server serves.

The store says how much there is (`SchemaManager.count_pending`): indexes of large tables that no
answer depends on, and what has to wait while nodes with another manifest live. The thread
tries again every `_AGAIN_S`, because another node may be at work, or such a node may still live.
A node with an older manifest may also start later: while one lives, the thread looks after the rows
that it writes. `count` is what is left, for /readyz. A killed server leaves the rest to the next
start. Made by `main`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from pylon import log, metrics
from pylon.errors import PylonError
from pylon.manifest.model import Manifest
from pylon.storage.nodes import NodeFacts
from pylon.storage.schemas import SchemaManager

_AGAIN_S: Final = 10.0
_LOOK_S: Final = 2.0  # at the other nodes, which costs nothing

_log = log.get_logger("schema")


class PendingSchema:
    """`start` it once the store is open for writing; `stop` it at the end."""

    def __init__(
        self, schema: SchemaManager, manifest: Manifest, again_s: float = _AGAIN_S,
        others: Callable[[], tuple[NodeFacts, ...]] | None = None,
    ) -> None:
        """
        Args:
            again_s: between two attempts.
            others: returns the other nodes that live; None: there can be none.
        """
        self._others = others
        self._digest = sha256(manifest.text.encode()).hexdigest()
        self._schema = schema
        self._manifest = manifest
        self._again_s = again_s
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None
        self.count = 0

    def start(self) -> None:
        """Begin, if anything is left to do, or may be later.

        Raises:
            PylonError: the schema cannot be read.
        """
        self._set(self._schema.count_pending(self._manifest))
        if self.count or self._others is not None:
            self._thread = threading.Thread(target=self._run, name="schema", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Begin no further attempt. One that is under way ends with the process."""
        self._is_ending.set()

    def _run(self) -> None:
        while not self._is_ending.is_set():
            if self.count or self._is_mixed():
                self._finish()
            if not self.count and self._others is None:
                return
            self._is_ending.wait(self._again_s if self.count else min(_LOOK_S, self._again_s))

    def _finish(self) -> None:
        before = self.count
        try:
            self._set(self._schema.finish_pending(self._manifest))
        except PylonError as error:
            _log.info("schema.pending", left=self.count, reason=error.message)
        if before and not self.count:
            _log.info("schema.finished")

    def _is_mixed(self) -> bool:
        """Whether a node with another manifest lives."""
        return self._others is not None and any(
            facts.manifest != self._digest for facts in self._others()
        )

    def _set(self, count: int) -> None:
        self.count = count
        metrics.SCHEMA_PENDING.set(count)
