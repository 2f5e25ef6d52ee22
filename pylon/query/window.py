"""Live windows: parses the order, the limit and the beginning of a window of rows.

A window is a part of a query's ordered result: its first rows, or those behind a position
(`$after`), or the last ones before a position (`$before`). `parse_window` takes these members from
the place where `POST /api/query` takes them. A window before a position is read the other way
round: its *scan order* turns every direction around, so that each window begins at its position and
grows from there.

Invariants: a scan order is total. Windows of equal `begin_text` and equal conditions have the same
rows, up to their limits. Bound: `limits.LIVE_WINDOW_ROWS`. Called by `workers.ws.live_queries`.
"""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec
import orjson

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity
from pylon.query.operands import field_of
from pylon.query.position import Order, parse_position, total_order
from pylon.query.predicate import Column, Compare, IsNull, Literal, Predicate
from pylon.query.predicate_parts import conjuncts
from pylon.query.rows import parse_count, parse_order
from pylon.query.sort_keys import SortKeys

WINDOW_KEYS: Final = ("$order", "$limit", "$after", "$before")


class WindowQuery(msgspec.Struct, frozen=True):
    """The place and the size of a window.

    `order` is the scan order, and `begin` the key at which the window begins, b"" for the first row
    of the result. `is_reversed`: the window's rows come in the opposite order.
    """

    order: Order
    limit: int
    begin: bytes
    is_reversed: bool
    sort_keys: SortKeys

    @property
    def begin_text(self) -> bytes:
        """Return a text that differs for windows that begin elsewhere or have another order."""
        return orjson.dumps((self.order, self.is_reversed)) + self.begin


_sort_keys: WeakValueDictionary[tuple[Entity, Order], SortKeys] = WeakValueDictionary()


def parse_window(entity: Entity, body: dict[str, Any]) -> WindowQuery | None:
    """Return the window that a filter object describes; None if it describes no window.

    Raises:
        InvalidQuery, InvalidColumn, InvalidValue: as `parse_order` and `parse_position`.
        LimitExceeded: the limit is above `limits.LIVE_WINDOW_ROWS`.
    """
    if all(body.get(name) is None for name in WINDOW_KEYS):
        return None
    order = parse_order(entity, "$order", body.get("$order"))
    limit = parse_count("$limit", body.get("$limit"))
    if limit is None:
        limit = limits.LIVE_WINDOW_ROWS
    check_limit("$limit", limit)
    position = parse_position(
        entity, order, body.get("$after"), body.get("$before"), ("$after", "$before")
    )
    scan_order = total_order(order)
    is_reversed = position is not None and position.is_before
    if is_reversed:
        scan_order = tuple([(field, not desc) for field, desc in scan_order])
    keys = _sort_keys_of(entity, scan_order)
    begin = b""
    if position is not None:
        names = [field for field, _ in scan_order]
        begin = keys.key_of(dict(zip(names, position.values, strict=True)))
    return WindowQuery(scan_order, limit, begin, is_reversed, keys)


def check_limit(name: str, limit: int) -> None:
    """Check the number of a window's rows.

    Raises:
        InvalidQuery: it is 0.
        LimitExceeded: it is above `limits.LIVE_WINDOW_ROWS`.
    """
    if limit > limits.LIVE_WINDOW_ROWS:
        raise LimitExceeded(
            f"{name} is {limit}, and a live window has {limits.LIVE_WINDOW_ROWS} rows at most",
            hint="ask for fewer rows, or begin another window with $after",
        )
    if not limit:
        raise InvalidQuery(f"{name} of a live window must be 1 to {limits.LIVE_WINDOW_ROWS}")


def fields_that_find(
    entity: Entity, wanted: Predicate, allowed: Predicate, order: Order
) -> tuple[str, ...]:
    """Return the fields of the index that a window needs; none if the entity has such an index.

    Such an index has, behind fields for which all rows of the window have one value, the first
    field of the order. Its rows are then read in their order, and no others.
    """
    fixed: set[str] = set()
    for item in (*conjuncts(wanted), *conjuncts(allowed)):
        name = _fixed_field(item)
        if name is not None:
            if type(item) is Compare and field_of(entity, name).unique:
                return ()  # there is one row at most
            fixed.add(name)
    ordered = [field for field, _ in order if field not in fixed]
    for columns in entity.index_columns:
        free = [column for column in (*columns, "id") if column not in fixed]
        if not ordered or free[:1] == ordered[:1]:
            return ()
    return (*sorted(fixed), *[field for field in ordered if field != "id"])


def _fixed_field(item: Predicate) -> str | None:
    """Return the field for which all rows of a condition have one value, or None."""
    if type(item) is Compare and item.sign == "=" and type(item.left) is Column:
        return item.left.field if type(item.right) is Literal else None
    if type(item) is IsNull and type(item.operand) is Column:
        return item.operand.field
    return None


def _sort_keys_of(entity: Entity, order: Order) -> SortKeys:
    """Return the sort keys of an order: one object for all windows, which computes a key once."""
    name = entity, order
    keys = _sort_keys.get(name)
    if keys is None:
        keys = _sort_keys[name] = SortKeys(entity, order)
    return keys
