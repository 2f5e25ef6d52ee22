"""Span: the range of the change log that the store keeps, and the refusal of cursors outside it.

Invariant: `check` passes a cursor only if the log has everything after it (spec/realtime.md §1.4).
Called by `pylon.changelog.feed` and `readable_changes`, and by `workers.hub.history` for sockets.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pylon.errors import ResyncRequired
from pylon.storage.interface import Reader


class Span(msgspec.Struct, frozen=True):
    """The oldest seq and the head of the log. `oldest` is head + 1 if the log is empty."""

    head: int
    oldest: int
    void_ranges: Sequence[tuple[int, int]]

    def check(self, cursor: int) -> None:
        """Raise ResyncRequired if the log lacks events after `cursor`."""
        if self.is_void(cursor) or cursor + 1 < self.oldest:
            raise self.resync(cursor)

    def resync(self, cursor: int, *, is_lost: bool = False) -> ResyncRequired:
        """Return the refusal of a cursor. `is_lost`: its history may be lost."""
        # As in a pull: no retained event continues a void cursor.
        oldest = self.head + 1 if is_lost or self.is_void(cursor) else self.oldest
        return ResyncRequired(
            f"cursor last_seq={cursor} is older than the oldest retained seq={oldest}; "
            "client must re-sync",
            oldest_seq=oldest,
        )

    def is_void(self, cursor: int) -> bool:
        """Return whether the cursor is ahead of the head, or of a history that is lost."""
        return cursor > self.head or any(low < cursor < high for low, high in self.void_ranges)


def read_span(reader: Reader) -> Span:
    """Read the range of the change log."""
    return Span(reader.head_seq(), reader.oldest_seq(), reader.void_ranges())
