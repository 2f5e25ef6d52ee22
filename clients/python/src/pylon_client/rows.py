"""Operations on rows: read, insert, update, delete, count, search, many at once, transactions.

Each is a `Steps`: `sync_client` and `async_client` carry it out. Called by both shells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from pylon_client.effects import Deliver, Steps, gather
from pylon_client.entities import Entity, encode, make_key, make_row_id, plain, row_id_of
from pylon_client.errors import (
    BadRequestError,
    NotFoundError,
    PermissionDeniedError,
    TransactionFailed,
    UnreadableRow,
)
from pylon_client.queries import PAGE_ROWS, Query, split_rows
from pylon_client.requests import Core, decode_object, send_json
from pylon_client.transactions import Operation

T = TypeVar("T")

LARGE_PAGE_ROWS: Final = 1_000
_TRANSACTION_ROWS: Final = 100


def path_of(entity: str, row_id: str | None = None) -> str:
    """Return the path of an entity's rows, or of one row."""
    path = f"/api/entities/{quote(entity, safe='')}"
    return path if row_id is None else f"{path}/{quote(row_id, safe='')}"


def get(core: Core, entity: Entity[T], row_id: str) -> Steps[T]:
    """Return a row. Raises: NotFoundError: there is none, or the caller may not read it."""
    answer = yield from send_json(core, "GET", path_of(entity.name, row_id))
    return entity.read(answer.content)


def insert(
    core: Core, entity: Entity[T], values: Mapping[str, Any], key: str | None
) -> Steps[T]:
    """Insert a row, and return it as the server has stored it.

    Raises:
        UnreadableRow: it was inserted, but the caller may not read it.
    """
    answer = yield from send_json(
        core, "POST", path_of(entity.name), plain(values), key=key or make_key()
    )
    row_id = str(decode_object(answer)["id"])
    try:
        return (yield from get(core, entity, row_id))
    except (NotFoundError, PermissionDeniedError) as error:
        raise UnreadableRow(entity.name, row_id) from error


def update(
    core: Core, entity: str, row: object, values: Mapping[str, Any], key: str | None,
    if_seq: int | None,
) -> Steps[None]:
    """Change fields of a row. `if_seq`: only if this is the seq of its last change."""
    headers = {} if if_seq is None else {"If-Match": f'"{if_seq}"'}
    yield from send_json(
        core, "PATCH", path_of(entity, row_id_of(row)), plain(values), headers=headers,
        key=key or make_key(),
    )


def delete(
    core: Core, entity: str, row: object, key: str | None, if_seq: int | None
) -> Steps[None]:
    """Delete a row. `if_seq`: only if this is the seq of its last change."""
    headers = {} if if_seq is None else {"If-Match": f'"{if_seq}"'}
    yield from send_json(
        core, "DELETE", path_of(entity, row_id_of(row)), headers=headers, key=key or make_key()
    )


def pages(core: Core, query: Query[T], page_rows: int = PAGE_ROWS) -> Steps[None]:
    """Deliver the rows of a query, a page at a time, up to its limit."""
    return _pages(core, query, page_rows, query.entity.read)


def read_raw(core: Core, query: Query[Any]) -> Steps[list[msgspec.Raw]]:
    """Return all rows of a query, each undecoded."""
    return gather(_pages(core, query, LARGE_PAGE_ROWS, lambda raw: raw))


def _pages(
    core: Core, query: Query[Any], page_rows: int, read: Callable[[msgspec.Raw], Any]
) -> Steps[None]:
    """Deliver the rows of a query, a page at a time, up to its limit.

    Pages follow one another by position, so rows that come or go meanwhile shift nothing. A search
    in the order of relevance has no positions, and is read by offset.
    """
    left = query.limit
    page = query
    while left is None or left > 0:
        size = page_rows if left is None else min(left, page_rows)
        page = replace(page, limit=size)
        answer = yield from send_json(core, "POST", _query_path(query), page.body())
        raws = split_rows(answer.content)
        if raws:
            yield Deliver([read(raw) for raw in raws])
        if len(raws) < size:
            return
        if left is not None:
            left -= size
        if query.search is not None and not query.order:
            page = replace(page, offset=(page.offset or 0) + size)
        elif query.before is not None:
            page = replace(page, before=query.position_of(raws[0]))
        else:
            page = replace(page, offset=None, after=query.position_of(raws[-1]))


def read_all(core: Core, query: Query[T]) -> Steps[list[T]]:
    """Return all rows of a query, up to its limit."""
    return gather(pages(core, query, LARGE_PAGE_ROWS))


def first(core: Core, query: Query[T]) -> Steps[T | None]:
    """Return the first row of a query, or None."""
    rows: list[T] = yield from read_all(core, replace(query, limit=1))
    return rows[0] if rows else None


def count(core: Core, query: Query[T]) -> Steps[int]:
    """Return how many rows fulfil the filter, whatever the limit."""
    spec = {"count": "*", "where": dict(query.filter)}
    rows = yield from aggregate(core, query.entity.name, spec)
    return int(rows[0]["count"]) if rows else 0


def aggregate(core: Core, entity: str, spec: Mapping[str, Any]) -> Steps[list[dict[str, Any]]]:
    """Return the rows of ``POST /api/aggregate``."""
    path = f"/api/aggregate/{quote(entity, safe='')}"
    answer = yield from send_json(core, "POST", path, plain(spec))
    rows: list[dict[str, Any]] = decode_object(answer)["rows"]
    return rows


def search(core: Core, entity: str, spec: Mapping[str, Any]) -> Steps[dict[str, Any]]:
    """Return the answer of ``POST /api/search``: hits, facets and the total."""
    path = f"/api/search/{quote(entity, safe='')}"
    answer = yield from send_json(core, "POST", path, plain(spec))
    return decode_object(answer)


def insert_many(
    core: Core, entity: Entity[T], rows: Iterable[Mapping[str, Any]]
) -> Steps[list[str]]:
    """Insert rows, 100 in a transaction, and return their ids in order.

    Raises:
        TransactionFailed: a row was refused. The transactions before it are carried out.
    """
    ids: list[str] = []
    operations: list[Operation] = []
    for values in rows:
        operations.append(Operation("insert", entity.name, make_row_id(), plain(values)))
        if len(operations) == _TRANSACTION_ROWS:
            ids += yield from commit(core, operations, None)
            operations = []
    if operations:
        ids += yield from commit(core, operations, None)
    return ids


def commit(core: Core, operations: list[Operation], key: str | None) -> Steps[list[str]]:
    """Carry out all operations, or none, and return the ids of their rows.

    Raises:
        TransactionFailed: the number of the refused operation is in it.
    """
    if not operations:
        return []
    body = [operation.body() for operation in operations]
    try:
        answer = yield from send_json(core, "POST", "/api/transact", body, key=key or make_key())
    except BadRequestError as error:
        raise _transaction_error(error) from error
    return [str(result["id"]) for result in decode_object(answer)["results"]]


def _transaction_error(error: BadRequestError) -> BadRequestError:
    """Return the error of a refused transaction, if the answer is one."""
    try:
        results = msgspec.json.decode(error.content, type=_Refused).results
    except msgspec.DecodeError:
        return error
    number = len(results) - 1
    refused = results[-1] if results else {}
    code = refused.get("code", "TRANSACTION_FAILED")  # not every server names it
    body = encode({"error": {"code": code, "message": refused.get("error")}})
    failed = TransactionFailed(
        error.status, error.headers, body, f"operation {number} of the transaction",
    )
    failed.operation = number
    return failed


class _Refused(msgspec.Struct):
    """The answer to a transaction of which one operation was refused."""

    committed: bool
    results: list[dict[str, Any]]


def _query_path(query: Query[Any]) -> str:
    return f"/api/query/{quote(query.entity.name, safe='')}"
