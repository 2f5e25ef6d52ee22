"""Present rows of changes that were read from the log.

The tail knows the newer changes of each of its rows; a page of the log does not. `relate_to_store`
reads the rows, so that `pylon.changelog.change.find_view` can check old images against present
rows.

Invariant: the rows are read after the page. A change that is committed in between makes the check
stricter, never wider, and its own event follows later. Bound: one lookup by id for each row of a
page. Called by `pylon.changelog.feed` and `workers.hub.history`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pylon.changelog.change import Change, relate
from pylon.storage.events import ChangeEvent, kind_of
from pylon.storage.interface import Reader, Store

_NO_SEQ = 0  # the seq of a present row, which is no event


def relate_to_store(
    store: Store, changes: Sequence[Change], entities: Collection[str]
) -> None:
    """Set `Change.newer` of the changes of `entities`, up to the present state of each row.

    Raises:
        QueryTimeout, StoreUnavailable: the store cannot be read now.
    """
    newest = _newest_of(changes, entities)
    if newest:
        states = store.scan(lambda reader: _states_after(reader, newest))
        _set_states(newest, states)


def relate_to_reader(
    reader: Reader, changes: Sequence[Change], entities: Collection[str]
) -> None:
    """Do as `relate_to_store`, with a reader that the caller has."""
    newest = _newest_of(changes, entities)
    _set_states(newest, _states_after(reader, newest))


def _newest_of(changes: Sequence[Change], entities: Collection[str]) -> list[Change]:
    """Relate the changes of `entities` to each other, and return the last one of each row."""
    newest: dict[tuple[str, str], Change] = {}
    relate([change for change in changes if change.event.entity in entities], newest)
    return list(newest.values())


def _states_after(reader: Reader, changes: Sequence[Change]) -> list[Change | None]:
    return [_state_after(reader, change.event) for change in changes]


def _set_states(changes: Sequence[Change], states: Sequence[Change | None]) -> None:
    for change, state in zip(changes, states, strict=True):
        change.newer = state


def _state_after(reader: Reader, event: ChangeEvent) -> Change | None:
    """Return the present row as a change; None if no write has followed the event."""
    found = reader.get_version(event.entity, event.row_id)
    data, seq = (None, None) if found is None else found
    if seq == event.seq or data == event.data:
        return None
    kind = kind_of(b"", data)
    return Change(ChangeEvent(_NO_SEQ, event.entity, event.row_id, kind, data, None, 0))
