"""Column values: encodes and decodes the values of a row, and refuses what cannot be stored.

PostgreSQL has no text with a NUL character, and no index entry above 2,704 bytes. The writer
refuses such a row before it gathers a statement, so that the statement cannot fail in the flush.
Called by `table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pylon import limits
from pylon.errors import InvalidValue, ValueTooLongToIndex
from pylon.manifest.model import Entity, FieldType
from pylon.storage.postgres.parameters import encode_parameters

ESCAPED_NUL: Final = b"\\u0000"  # in a row's JSON
_ENCODERS: Final[dict[type, Callable[[Any], bytes | None]]] = {
    str: str.encode, int: b"%d".__mod__, bool: {True: b"t", False: b"f"}.__getitem__,
    float: lambda value: encode_parameters((value,))[0][0],  # type: ignore[index]
    type(None): lambda _: None,
}
_TEXTS: Final = frozenset({
    FieldType.STRING, FieldType.RICHTEXT, FieldType.ID, FieldType.DATETIME, FieldType.ENUM,
    FieldType.JSON,
})


class IndexTexts:
    """The texts of an entity that stand in indexes."""

    __slots__ = ("_entity", "_indexed")

    def __init__(self, entity: Entity, indexed: Sequence[Sequence[str]]) -> None:
        """Args: `indexed`: the fields of each index."""
        self._entity = entity.name
        texts = {field.name for field in entity.fields if field.type in _TEXTS}
        self._indexed = [
            names for fields in indexed
            if (names := tuple(name for name in fields if name in texts))
        ]

    def check(self, row: Mapping[str, Any]) -> None:
        """Refuse a row whose texts no index can hold.

        Raises:
            ValueTooLongToIndex: the texts of an index take more bytes than PostgreSQL can index.
        """
        for names in self._indexed:
            size_bytes = sum(
                len(value.encode()) for name in names if isinstance(value := row.get(name), str)
            )
            if size_bytes > limits.INDEXED_TEXT_BYTES:
                raise ValueTooLongToIndex(
                    f"{self._entity}.{names[-1]} is in an index, whose texts take "
                    f"{limits.INDEXED_TEXT_BYTES} bytes at most, and these have {size_bytes} "
                    "(INDEXED_TEXT_BYTES)", entity=self._entity, field=names[-1],
                )


def refuse_nul(entity: str, parameters: Sequence[bytes | None]) -> None:
    """Refuse a text with a NUL character. Values are checked before they come here.

    Raises:
        InvalidValue
    """
    if any(value is not None and b"\0" in value for value in parameters):
        raise InvalidValue(
            f"{entity} has a text with a NUL character, which PostgreSQL cannot store",
            entity=entity,
        )


def encode_values(values: Sequence[Any]) -> list[bytes | None]:
    """Return the texts of column values.

    Raises:
        TypeError: a value is of another type than columns have.
    """
    # PERF: 0.1 us for a value, `encode_parameters` takes 0.3; the caller looks for a NUL.
    try:
        return [_ENCODERS[type(value)](value) for value in values]
    except KeyError as error:
        raise TypeError(f"no column has a value of {error.args[0]}") from error


def decode_value(kind: FieldType, value: bytes | None) -> object:
    """Return the value of a column from its text in a result."""
    if value is None:
        return None
    if kind is FieldType.INT:
        return int(value)
    if kind is FieldType.FLOAT:
        return float(value)
    if kind is FieldType.BOOL:
        return value == b"t"
    return value.decode()
