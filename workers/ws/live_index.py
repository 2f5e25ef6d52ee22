"""Live index: finds the watches of an entity whose result a change may affect.

The index finds a watch by its term (`live_subscriptions`): a change looks up the values in its row
before and after, so its cost does not grow with the number of other watches. Every change of an
entity concerns its watches without a term.

Invariant: a watch that `find_affected` does not return has the same result before and after the
change. Bound: `limits.LIVE_SCANNED` watches without a term, which `live_watches` checks. Called by
`live_watches`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pylon.changelog.change import Change
from workers.ws.live_subscriptions import Watch


class EntityWatches:
    """The watches of one entity."""

    __slots__ = ("by_value", "count", "scanned", "weight")

    def __init__(self) -> None:
        self.count = 0
        self.weight = 0
        # By field, then by value. Dicts, because many watches may share a value and must be quick
        # to remove.
        self.by_value: dict[str, dict[object, dict[Watch, None]]] = {}
        self.scanned: dict[Watch, None] = {}

    def find_affected(self, change: Change) -> Iterable[Watch]:
        """Return the watches whose result the change may affect."""
        found = dict(self.scanned)
        for row in (change.prev_row, change.row):
            if row is None:
                continue
            for name, by_value in self.by_value.items():
                try:
                    watches = by_value.get(row.get(name))
                except TypeError:  # a list or an object: no filter can compare with it
                    continue
                if watches is not None:
                    found.update(watches)
        return found

    def add(self, watch: Watch) -> None:
        self.count += 1
        self.weight += watch.weight
        if watch.field is None:
            self.scanned[watch] = None
        elif watch.values:  # without values no row can be in the result
            by_value = self.by_value.setdefault(watch.field, {})
            for value in watch.values:
                by_value.setdefault(value, {})[watch] = None

    def remove(self, watch: Watch) -> None:
        self.count -= 1
        self.weight -= watch.weight
        if watch.field is None:
            del self.scanned[watch]
        elif watch.values:
            by_value = self.by_value[watch.field]
            for value in watch.values:
                watches = by_value[value]
                del watches[watch]
                if not watches:
                    del by_value[value]
            if not by_value:
                del self.by_value[watch.field]
