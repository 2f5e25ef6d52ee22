"""Rows as they are now, beside changes that were read from the log.

The tail knows which of its changes are followed by newer ones of the same row; a page of the log
does not. `relate_to_store` looks the rows up, so that `pylon.changelog.change.view` can judge old
images by what the rows are now.

Invariant: the rows are read after the page. A change that is committed in between makes the
judgement stricter, never wider, and its own event comes later. At most one lookup by id for each
row of a page. Called by the feeds of HTTP workers and hubs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pylon.changelog.change import Change, relate
from pylon.storage.events import ChangeEvent, kind_of
from pylon.storage.interface import Reader, Store

_NO_SEQ = 0  # of a row as it is now, which is no event


def relate_to_store(
    store: Store, changes: Sequence[Change], entities: Collection[str]
) -> None:
    """Let each change of `entities` lead to the newest state of its row.

    Raises:
        QueryTimeout, StoreUnavailable: the store cannot be read now.
    """
    newest: dict[tuple[str, str], Change] = {}
    relate([change for change in changes if change.event.entity in entities], newest)
    if not newest:
        return

    def read(reader: Reader) -> list[Change | None]:
        return [_state_after(reader, change.event) for change in newest.values()]

    for change, state in zip(newest.values(), store.scan(read), strict=True):
        change.newer = state


def _state_after(reader: Reader, event: ChangeEvent) -> Change | None:
    """The row as it is now; None if it is as the event left it."""
    found = reader.get_version(event.entity, event.row_id)
    data, seq = (None, None) if found is None else found
    if seq == event.seq or data == event.data:
        return None
    kind = kind_of(b"", data)
    return Change(ChangeEvent(_NO_SEQ, event.entity, event.row_id, kind, data, None, 0))
