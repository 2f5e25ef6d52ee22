"""Entities as the application names them: a text, or a class whose instances are its rows.

A class may be a msgspec Struct, a dataclass, a TypedDict, or a class that says itself how it is
made of a row. Its entity is `__pylon_entity__`, or else its name. A class with the method
`__pylon_from_row__` is given the decoded JSON; all others are decoded by msgspec.

Fields are those on the wire. A text in place of a class means rows as dicts.

Called by `rows`, `windows`, `changes` and `transactions`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from pylon_client.errors import RowMismatch

T = TypeVar("T")
Row = dict[str, Any]

_COUNTER_BITS: Final = 32


class Entity(Generic[T]):
    """The name of an entity, and how its rows are decoded."""

    __slots__ = ("_from_row", "decode", "name")

    def __init__(self, name: str, row_type: Any) -> None:
        """
        Args:
            name: the entity as the manifest has it.
            row_type: the class of a row.
        """
        self.name = name
        make: Callable[[Row], T] | None = getattr(row_type, "__pylon_from_row__", None)
        self._from_row = make
        decoder: msgspec.json.Decoder[Any] = (
            msgspec.json.Decoder(Row if make is not None else row_type)
        )
        self.decode: Callable[[bytes | msgspec.Raw], T] = (
            decoder.decode if make is None else lambda raw: make(decoder.decode(raw))
        )

    def read(self, raw: bytes | msgspec.Raw) -> T:
        """Return the row. Raises: RowMismatch: it does not fit the class."""
        try:
            return self.decode(raw)
        except (msgspec.ValidationError, TypeError, ValueError) as ex:
            raise RowMismatch(f"a row of {self.name} does not fit its class: {ex}") from ex


def entity_of(named: str | type[T]) -> Entity[Any]:
    """Return the entity that the application has named."""
    if isinstance(named, str):
        return Entity(named, Row)
    return Entity(entity_name(named), named)


def entity_name(row_type: type[Any]) -> str:
    """Return the entity of a class."""
    name = getattr(row_type, "__pylon_entity__", row_type.__name__)
    return name if isinstance(name, str) else row_type.__name__


def row_id_of(row: object) -> str:
    """Return the id of a row, or the text itself. Raises: TypeError: there is none."""
    if isinstance(row, str):
        return str(row)
    found = row.get("id") if isinstance(row, Mapping) else getattr(row, "id", None)
    if not isinstance(found, str) or not found:
        raise TypeError(f"{type(row).__name__} has no id; give a row, or the id of a row")
    return str(found)


def encode(value: object) -> bytes:
    """Return JSON. Raises: TypeError: a value has no form in JSON."""
    return msgspec.json.encode(value, enc_hook=_plain_text)


def plain(value: object) -> Any:
    """Return a value as JSON would have it: datetimes, decimals and enums as texts."""
    return msgspec.to_builtins(value, enc_hook=_plain_text)


def _plain_text(value: object) -> str:
    """Return a text of a subclass, such as the id of an entity, as a plain text."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def make_row_id() -> str:
    """Return a new row id: 40 hex characters that sort by creation, as the server makes them."""
    return f"{time.time_ns() << _COUNTER_BITS | secrets.randbits(_COUNTER_BITS):040x}"


def make_key() -> str:
    """Return a new idempotency key."""
    return secrets.token_hex(16)
