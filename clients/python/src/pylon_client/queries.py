"""A query: an entity, a filter, an order and a limit. Immutable; each method returns another one.

Pages follow one another by position (``$after``), so each costs the same at any depth. Without an
order of its own a query is ordered by id. Called by `rows`, `windows` and both shells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from pylon_client.conditions import filter_of, join
from pylon_client.entities import Entity, plain
from pylon_client.errors import RowMismatch

T = TypeVar("T")

PAGE_ROWS: Final = 200  # rows of a page, when the query has no limit below
_RAW_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ROW: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """The rows to read. `order` maps fields to ``asc`` or ``desc``, the most important first."""

    entity: Entity[T]
    filter: Mapping[str, Any] = field(default_factory=dict)
    order: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    offset: int | None = None
    after: Mapping[str, Any] | None = None
    before: Mapping[str, Any] | None = None
    search: str | None = None

    def where(self, given: Mapping[str, Any], conditions: Mapping[str, Any]) -> Self:
        """Add conditions; all must hold."""
        return replace(self, filter=join([dict(self.filter), filter_of(given, conditions)]))

    def ordered(self, names: tuple[str, ...]) -> Self:
        """Order by fields; a name that begins with ``-`` descends.

        Raises:
            ValueError: no name, or an empty one.
        """
        order = {
            name.removeprefix("-"): "desc" if name.startswith("-") else "asc" for name in names
        }
        if not order or "" in order:
            raise ValueError("order takes the names of fields, such as order('-sentAt', 'id')")
        return replace(self, order=order)

    def body(self) -> dict[str, Any]:
        """Return the body of ``POST /api/query``, which is the filter of a live window too."""
        directives = {
            "$order": dict(self.order) or None, "$limit": self.limit, "$offset": self.offset,
            "$after": self.after, "$before": self.before, "$search": self.search,
        }
        return {**self.filter, **{k: plain(v) for k, v in directives.items() if v is not None}}

    def position_of(self, raw: bytes | msgspec.Raw) -> dict[str, Any]:
        """Return the position of a row in the order."""
        row = _ROW.decode(raw)
        return {name: row.get(name) for name in (*self.order, "id")}


def split_rows(content: bytes) -> list[msgspec.Raw]:
    """Return the rows of an answer, each undecoded.

    Raises:
        RowMismatch: the answer is no list.
    """
    try:
        return _RAW_ROWS.decode(content)
    except msgspec.DecodeError as ex:
        raise RowMismatch(f"the answer is no list of rows: {ex}") from ex
