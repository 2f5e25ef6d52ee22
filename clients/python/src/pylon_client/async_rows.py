"""Rows of an entity for asyncio: a query, and the operations on its rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

from pylon_client import rows as core_rows
from pylon_client.async_live import AsyncLiveWindow
from pylon_client.async_shell import AsyncShell
from pylon_client.effects import Raw, with_answer
from pylon_client.links import Link
from pylon_client.queries import Query
from pylon_client.requests import Core

T = TypeVar("T")


class AsyncRows(Generic[T]):
    """The rows of an entity, or those of a query. Each builder method returns another `AsyncRows`.

    Iterating reads page by page, as far as the loop goes.
    """

    __slots__ = ("_core", "_link", "_shell", "query")

    def __init__(self, shell: AsyncShell, core: Core, link: Link, query: Query[T]) -> None:
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

    async def all(self) -> list[T]:
        """Return all rows of the query."""
        return await self._shell.run(core_rows.read_all(self._core, self.query))

    async def first(self) -> T | None:
        """Return the first row of the query, or None."""
        steps = core_rows.first(self._core, self.query)
        return await self._shell.run(steps)

    async def count(self) -> int:
        """Return how many rows fulfil the conditions."""
        return await self._shell.run(core_rows.count(self._core, self.query))

    def __aiter__(self) -> AsyncIterator[T]:
        return self._shell.iterate(core_rows.pages(self._core, self.query))

    async def get(self, row_id: str) -> T:
        """Return a row by its id. Raises: NotFoundError."""
        return await self._shell.run(core_rows.get(self._core, self.query.entity, row_id))

    async def aggregate(self, **spec: Any) -> list[dict[str, Any]]:
        """Return figures: ``aggregate(count="*", groupBy=["room"])``."""
        spec = {"where": dict(self.query.filter), **spec}
        return await self._shell.run(core_rows.aggregate(self._core, self.query.entity.name, spec))

    def live(self, *, timeout: float | None = None) -> AsyncLiveWindow[T]:
        """Open a live window. `timeout`: of one step of its iterators, in seconds."""
        return AsyncLiveWindow(self._link, self.query, timeout)

    # --- Writing ------------------------------------------------------------------------------

    async def insert(self, *, idempotency_key: str | None = None, **values: Any) -> T:
        """Insert a row, and return it as the server has stored it."""
        return await self._shell.run(
            core_rows.insert(self._core, self.query.entity, values, idempotency_key)
        )

    async def insert_many(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Insert rows, 100 in a transaction, and return their ids."""
        return await self._shell.run(core_rows.insert_many(self._core, self.query.entity, rows))

    async def update(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None,
        **values: Any,
    ) -> None:
        """Change fields of a row. `if_seq`: only if this is still the seq of its last change."""
        await self._shell.run(core_rows.update(
            self._core, self.query.entity.name, row, values, idempotency_key, if_seq
        ))

    async def delete(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None
    ) -> None:
        """Delete a row. `if_seq`: only if this is still the seq of its last change."""
        await self._shell.run(core_rows.delete(
            self._core, self.query.entity.name, row, idempotency_key, if_seq
        ))

    @property
    def with_raw_response(self) -> AsyncRawRows[T]:
        """The same operations with the answers of the server."""
        return AsyncRawRows(self._shell, self._core, self.query)


class AsyncRawRows(Generic[T]):
    """Operations on rows that return the last answer of the server beside their result."""

    __slots__ = ("_core", "_query", "_shell")

    def __init__(self, shell: AsyncShell, core: Core, query: Query[T]) -> None:
        self._shell = shell
        self._core = core
        self._query = query

    async def all(self) -> Raw[list[T]]:
        return await self._shell.run(with_answer(core_rows.read_all(self._core, self._query)))

    async def get(self, row_id: str) -> Raw[T]:
        return await self._shell.run(with_answer(
            core_rows.get(self._core, self._query.entity, row_id)
        ))

    async def insert(self, *, idempotency_key: str | None = None, **values: Any) -> Raw[T]:
        return await self._shell.run(with_answer(
            core_rows.insert(self._core, self._query.entity, values, idempotency_key)
        ))

    async def update(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None,
        **values: Any,
    ) -> Raw[None]:
        return await self._shell.run(with_answer(core_rows.update(
            self._core, self._query.entity.name, row, values, idempotency_key, if_seq
        )))

    async def delete(
        self, row: T | str, *, idempotency_key: str | None = None, if_seq: int | None = None
    ) -> Raw[None]:
        return await self._shell.run(with_answer(core_rows.delete(
            self._core, self._query.entity.name, row, idempotency_key, if_seq
        )))
