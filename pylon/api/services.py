"""What the resources work with: one bundle for each process, built by the worker at start.

The worker passes a `ReaderPool` and a `WriterClient`; tests an engine of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pylon.api.notes import CursorNotes
from pylon.api.readiness import Readiness
from pylon.app import App
from pylon.auth.cookies import SessionCookie
from pylon.auth.origin import Origins
from pylon.bus.messages import Signal, WriteOp, WriteReply
from pylon.changelog.feed import Feed
from pylon.storage.contract import Store


class Writer(Protocol):
    """Writes. Both calls return after the commit."""

    def submit(self, op: WriteOp) -> WriteReply:
        """Carry out one write; raises the `PylonError` that it was refused with."""

    def submit_all(self, ops: Sequence[WriteOp]) -> list[WriteReply]:
        """Carry out writes in order; each reply has its own error, if any."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a resource may use."""

    app: App
    store: Store
    writer: Writer
    feed: Feed
    notes: CursorNotes
    readiness: Readiness
    origins: Origins
    cookie: SessionCookie
    send_signal: Callable[[Signal], None]
    control_socket: Path  # the supervisor's, for /metrics
    started_s: float  # monotonic
