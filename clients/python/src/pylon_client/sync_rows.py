"""Rows of an entity for blocking code: a query, and the operations on its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

from pylon_client import rows as core_rows
from pylon_client.effects import Raw, with_answer
from pylon_client.links import Link
from pylon_client.queries import Query
from pylon_client.requests import Core
from pylon_client.sync_live import LiveWindow
from pylon_client.sync_shell import SyncShell

T = TypeVar("T")


class Rows(Generic[T]):
    """The rows of an entity, or those of a query. Each builder method returns another `Rows`.

    Iterating reads page by page, as far as the loop goes.
    """

    __slots__ = ("_core", "_link", "_shell", "query")

    def __init__(self, shell: SyncShell, core: Core, link: Link, query: Query[T]) -> None:
        self._shell = shell
        self._core = core
        self._link = link
        self.query = query

    def _with(self, query: Query[T]) -> Self:
        return type(self)(self._shell, self._core, self._link, query)

    # --- The query ----------------------------------------------------------------------------

    def where(self, given: Mapping[str, Any] | None = None, /, **conditions: Any) -> Self:
        """Add conditions: ``where(room=x, sentAt__lt=t)``, or a filter of the wire."""
        return self._with(self.query.where(given or {}, conditions))

    def order(self, *names: str) -> Self:
        """Order by fields, the most important first; ``-sentAt`` descends."""
        return self._with(self.query.ordered(names))

    def limit(self, rows: int) -> Self:
        """Take at most so many rows."""
        return self._with(replace(self.query, limit=rows))

    def after(self, **position: Any) -> Self:
        """Take the rows behind a position: the values of the order, and an id."""
        return self._with(replace(self.query, after=position))

    def before(self, **position: Any) -> Self:
        """Take the last rows before a position: the values of the order, and an id."""
        return self._with(replace(self.query, before=position))

    def search(self, text: str) -> Self:
        """Take the rows that have these words."""
        return self._with(replace(self.query, search=text))

    # --- Reading ------------------------------------------------------------------------------

    def all(self) -> list[T]:
        """Return all rows of the query."""
        return self._shell.run(core_rows.read_all(self._core, self.query))

    def first(self) -> T | None:
        """Return the first row of the query, or None."""
        steps = core_rows.first(self._core, self.query)
        return self._shell.run(steps)

    def count(self) -> int:
        """Return how many rows fulfil the conditions."""
        return self._shell.run(core_rows.count(self._core, self.query))

    def __iter__(self) -> Iterator[T]:
        return self._shell.iterate(core_rows.pages(self._core, self.query))

    def get(self, row_id: str) -> T:
        """Return a row by its id. Raises: NotFoundError."""
        return self._shell.run(core_rows.get(self._core, self.query.entity, row_id))

    def aggregate(self, **spec: Any) -> list[dict[str, Any]]:
        """Return figures: ``aggregate(count="*", groupBy=["room"])``."""
        spec = {"where": dict(self.query.filter), **spec}
        return self._shell.run(core_rows.aggregate(self._core, self.query.entity.name, spec))

    def live(self, *, timeout: float | None = None) -> LiveWindow[T]:
        """Open a live window. `timeout`: of one step of its iterators, in seconds."""
        return LiveWindow(self._link, self.query, timeout)

    # --- Writing ------------------------------------------------------------------------------

    def insert(self, *, idempotency_key: str | None = None, **values: Any) -> T:
        """Insert a row, and return it as the server has stored it."""
        return self._shell.run(
            core_rows.insert(self._core, self.query.entity, values, idempotency_key)
        )

    def insert_many(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Insert rows, 100 in a transaction, and return their ids."""
        return self._shell.run(core_rows.insert_many(self._core, self.query.entity, rows))

    def update(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None,
        **values: Any,
    ) -> None:
        """Change fields of a row. `if_seq`: only if this is still the seq of its last change."""
        self._shell.run(core_rows.update(
            self._core, self.query.entity.name, row, values, idempotency_key, if_seq
        ))

    def delete(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None
    ) -> None:
        """Delete a row. `if_seq`: only if this is still the seq of its last change."""
        self._shell.run(core_rows.delete(
            self._core, self.query.entity.name, row, idempotency_key, if_seq
        ))

    @property
    def with_raw_response(self) -> RawRows[T]:
        """The same operations with the answers of the server."""
        return RawRows(self._shell, self._core, self.query)


class RawRows(Generic[T]):
    """Operations on rows that return the last answer of the server beside their result."""

    __slots__ = ("_core", "_query", "_shell")

    def __init__(self, shell: SyncShell, core: Core, query: Query[T]) -> None:
        self._shell = shell
        self._core = core
        self._query = query

    def all(self) -> Raw[list[T]]:
        return self._shell.run(with_answer(core_rows.read_all(self._core, self._query)))

    def get(self, row_id: str) -> Raw[T]:
        return self._shell.run(with_answer(
            core_rows.get(self._core, self._query.entity, row_id)
        ))

    def insert(self, *, idempotency_key: str | None = None, **values: Any) -> Raw[T]:
        return self._shell.run(with_answer(
            core_rows.insert(self._core, self._query.entity, values, idempotency_key)
        ))

    def update(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None,
        **values: Any,
    ) -> Raw[None]:
        return self._shell.run(with_answer(core_rows.update(
            self._core, self._query.entity.name, row, values, idempotency_key, if_seq
        )))

    def delete(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None
    ) -> Raw[None]:
        return self._shell.run(with_answer(core_rows.delete(
            self._core, self._query.entity.name, row, idempotency_key, if_seq
        )))
