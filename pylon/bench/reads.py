"""Read operations: parse a request, select with the read policy's condition, and encode the JSON.

For reads by key there are also steps that call the database driver directly, for comparison.
Called by `pylon.bench.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any, Final

from pylon.api.data.graph import parse_request
from pylon.app import App
from pylon.auth_context import ADMIN
from pylon.bench.measure import Step
from pylon.manifest.model import Entity
from pylon.policy.entity_rules import EntityRules
from pylon.query.rows import Query, parse_filter
from pylon.storage.backend import BareReads
from pylon.storage.interface import Reader

_ROUND: Final = 50  # point reads between two readings of the clock


class Reads:
    """The steps for one entity, whose rows `row_ids` names."""

    def __init__(
        self, entity: Entity, rules: EntityRules, reader: Reader, row_ids: list[str]
    ) -> None:
        self._entity = entity
        self._rules = rules
        self._reader = reader
        self._row_ids = row_ids

    def get(self) -> Step:
        values = cycle(self._row_ids)
        return self._repeat_read(lambda: self._reader.get(self._entity.name, next(values)))

    def lookup(self, field: str, value_of: Callable[[int], Any]) -> Step:
        values = cycle(range(1, len(self._row_ids) + 1))
        return self._repeat_read(
            lambda: self._reader.lookup(self._entity.name, field, value_of(next(values)))
        )

    def bare_get(self, bare: BareReads) -> Step:
        """Each op: the driver's call that `get` wraps."""
        values = cycle(self._row_ids)
        get = bare.get(self._entity.name)
        return self._repeat_read(lambda: get(next(values)))

    def bare_lookup(
        self, bare: BareReads, field: str, value_of: Callable[[int], Any]
    ) -> Step:
        """Each op: the driver's call that `lookup` wraps."""
        values = cycle(range(1, len(self._row_ids) + 1))
        lookup = bare.lookup(self._entity.name, field)
        return self._repeat_read(lambda: lookup(value_of(next(values))))

    def query(self, body: dict[str, Any]) -> Step:
        """Each op: parse the filter, select, and join the response."""
        def step() -> int:
            allowed = self._rules.readable_by(ADMIN)
            if self._count_rows(parse_filter(self._entity, body, 1_000, allowed)) == 0:
                raise AssertionError("no row answers the filter")
            return 1

        return step

    def list_rows(self, count: int) -> Step:
        """Each op: the JSON text of the first `count` rows."""
        def step() -> int:
            if self._count_rows(Query(self._rules.readable_by(ADMIN), limit=count)) != count:
                raise AssertionError(f"fewer than {count} rows")
            return 1

        return step

    def graph(self, app: App, relation: str, count: int) -> Step:
        """Each op: parse the query, and the JSON text of `count` rows with a relation each."""
        body = {self._entity.name: {"include": {relation: {}}, "limit": count}}
        wanted = b'"%b":{' % relation.encode()
        if self._reader.graph(parse_request(app, ADMIN, body)).count(wanted) != count:
            raise AssertionError(f"fewer than {count} rows with {relation}")

        def step() -> int:
            self._reader.graph(parse_request(app, ADMIN, body))
            return 1

        return step

    def _count_rows(self, query: Query) -> int:
        count, _ = self._reader.page(self._entity.name, query)
        return count

    def _repeat_read(self, read: Callable[[], bytes | None]) -> Step:
        def step() -> int:
            for _ in range(_ROUND):
                if read() is None:
                    raise AssertionError("the row does not exist")
            return _ROUND

        return step
