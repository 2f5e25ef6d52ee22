"""The read rows of the table: filter parsing, SQL with the read policy's clause, JSON out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any, Final

from pylon import limits
from pylon.auth.context import ADMIN
from pylon.bench.measure import Step
from pylon.manifest.model import Entity
from pylon.policy.rules import EntityRules
from pylon.storage.clause import SqlClause
from pylon.storage.contract import Query, Reader
from pylon.storage.sqlite.filters import parse_filter

_ROUND: Final = 50  # point reads between two looks at the clock


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
        turn = cycle(self._row_ids)
        return self._points(lambda: self._reader.get(self._entity.name, next(turn)))

    def lookup(self, field: str, value_of: Callable[[int], Any]) -> Step:
        turn = cycle(range(1, len(self._row_ids) + 1))
        return self._points(
            lambda: self._reader.lookup(self._entity.name, field, value_of(next(turn)))
        )

    def query(self, body: dict[str, Any], want_rows: int | None = None) -> Step:
        """Each op: parse the filter, select, and join the answer."""
        def step() -> int:
            query = parse_filter(self._entity, body, 1_000)
            answer = self._answer(query)
            if want_rows is not None and len(answer) != want_rows:
                raise AssertionError(f"{len(answer)} rows, {want_rows} wanted")
            return 1

        return step

    def list_rows(self, count: int) -> Step:
        """Each op: the JSON text of the first `count` rows."""
        query = Query(SqlClause("1", ()), limit=count)

        def step() -> int:
            if len(self._answer(query)) != count:
                raise AssertionError(f"fewer than {count} rows")
            return 1

        return step

    def _answer(self, query: Query) -> list[bytes]:
        allowed = self._rules.read_clause(ADMIN)
        where = SqlClause(
            f"({query.where.sql}) AND ({allowed.sql})", (*query.where.params, *allowed.params)
        )
        found = self._reader.rows(
            self._entity.name,
            Query(where, query.limit, query.order, query.offset, query.after_id),
        )
        if len(b"[" + b",".join(found) + b"]") > limits.BODY_BYTES:
            raise AssertionError("an answer larger than any request")
        return found

    def _points(self, read: Callable[[], bytes | None]) -> Step:
        def step() -> int:
            for _ in range(_ROUND):
                if read() is None:
                    raise AssertionError("the row is there")
            return _ROUND

        return step
