"""Records of the auth tables in PostgreSQL: how their values travel.

A mark says the type of its value, so that the server never guesses. Values come as text
(`parameters`). Called by `reader` and `records`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pylon.storage.auth_tables import Kind
from pylon.storage.postgres.names import TEXT
from pylon.storage.postgres.parameters import bytea_of
from pylon.storage.sql.record_sql import RecordDialect

_CASTS: Final[dict[Kind, str]] = {
    "text": "text", "int": "bigint", "bytes": "bytea", "bool": "boolean",
}
DIALECT: Final = RecordDialect(
    mark=lambda number, kind: f"${number}::{_CASTS[kind]}",
    encode=lambda kind, value: bool(value) if kind == "bool" else value,
    types={"text": TEXT, "int": "BIGINT", "bytes": "BYTEA", "bool": "BOOLEAN"},
    volatile="UNLOGGED TABLE",
)
DECODERS: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    "text": lambda value: value.decode(), "int": int, "bytes": bytea_of,
    "bool": lambda value: int(value == b"t"),
}
