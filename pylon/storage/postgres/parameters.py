"""Parameters: values of Python as the parameters of a statement, and results back into values.

Statements have marks `$1`, `$2`, …, and the server infers the type of each. Where it cannot, the
statement says it: `$1::text[]`.

| value | sent as |
|---|---|
| None | NULL |
| str | text |
| int, float, bool | their text; `Infinity`, `-Infinity` and `NaN` too |
| bytes | as it is: the bytes of a `bytea`, or a text that is already UTF-8 |
| list, tuple | an array; a `bytes` in it is a text. `bytea_text` makes a `bytea`'s text |

Results come as text (`PGresult.get_value`): `int(value)` decodes a number, `value == b"t"` a
boolean, `bytea_of` a `bytea`.

Invariant: no value reaches the server truncated. libpq ends a text at its first NUL, so a text with
a NUL is refused. Called by `wire`, `pipe` and the readers of results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from psycopg import errors

Item: TypeAlias = str | int | float | bool | bytes | None
Parameter: TypeAlias = Item | Sequence[Item]
Encoded: TypeAlias = tuple[list[bytes | None] | None, list[int] | None]


class EncodedParameters(list[Any]):
    """Parameters that are texts of libpq already, or None: they are sent as they are."""

    __slots__ = ()


_TEXT: Final = 0
_BINARY: Final = 1


def encode_parameters(parameters: Sequence[Parameter]) -> Encoded:
    """Return the values and the formats of a statement's parameters, as libpq takes them.

    Raises:
        psycopg.errors.CharacterNotInRepertoire: a text has a NUL or half a surrogate pair.
    """
    if type(parameters) is EncodedParameters:
        return parameters, None
    if not parameters:
        return None, None
    values: list[bytes | None] = []
    formats: list[int] | None = None
    for index, value in enumerate(parameters):
        if value is None:
            values.append(None)
        elif isinstance(value, bytes):
            values.append(value)
            if formats is None:
                formats = [_TEXT] * len(parameters)
            formats[index] = _BINARY
        elif isinstance(value, (list, tuple)):
            values.append(encode_array(value))
        else:
            values.append(_encode_item(value))
    return values, formats


def encode_array(items: Sequence[Item]) -> bytes:
    """Return the text of an array of one dimension.

    Raises: as `encode_parameters`.
    """
    return b"{" + b",".join([_quote_item(item) for item in items]) + b"}"


def is_sendable(text: object) -> bool:
    """Whether the server takes a value as a text."""
    if type(text) is not str or "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def bytea_text(value: bytes) -> str:
    """Return the text of a `bytea`, for an array of them."""
    return "\\x" + value.hex()


def bytea_of(value: bytes) -> bytes:
    """Return the bytes of a `bytea` from its text in a result."""
    return bytes.fromhex(value[2:].decode("ascii"))


def _encode_text(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise errors.CharacterNotInRepertoire("a text has half a surrogate pair") from error
    return _without_nul(encoded)


def _without_nul(encoded: bytes) -> bytes:
    if b"\0" in encoded:
        raise errors.CharacterNotInRepertoire("a text has a NUL character")
    return encoded


def _encode_float(number: float) -> bytes:
    if math.isfinite(number):
        return repr(number).encode()
    if math.isnan(number):
        return b"NaN"
    return b"Infinity" if number > 0 else b"-Infinity"


def _encode_bool(value: bool) -> bytes:
    return b"t" if value else b"f"


def _encode_int(value: int) -> bytes:
    return b"%d" % value


def _quote_text(encoded: bytes) -> bytes:
    return b'"' + encoded.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


_ENCODERS: Final[dict[type, Callable[..., bytes]]] = {
    str: _encode_text, int: _encode_int, bool: _encode_bool, float: _encode_float,
}


def _encode_item(value: object) -> bytes:
    encode = _ENCODERS.get(type(value))
    if encode is not None:
        return encode(value)
    for kind in (str, bool, int, float):  # a subclass, such as an enumeration of texts
        if isinstance(value, kind):
            return _ENCODERS[kind](value)
    raise TypeError(f"no parameter of a statement is a {type(value).__name__}")


def _quote_item(item: Item) -> bytes:
    if item is None:
        return b"NULL"
    if isinstance(item, bytes):
        return _quote_text(_without_nul(item))
    encoded = _encode_item(item)
    return _quote_text(encoded) if isinstance(item, str) else encoded
