"""JSON values: what a field of type `json` takes, and the value at a path of one.

The store keeps the JSON text, with sorted keys. A number has 64 bits, and no text a NUL character.
A path is a tuple of member names; an empty one is the whole value. Bounds:
`limits.JSON_VALUE_DEPTH` levels and `limits.JSON_VALUE_BYTES` of text. Called by the checks of
field types, by the evaluators of `pylon.query`, and by stores.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final, Literal

import orjson

from pylon import limits

ElementKind = Literal["any", "text", "number", "boolean"]
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1


def json_text_of(value: object) -> str | None:
    """Return the stored text of a value, or None if a field does not take it."""
    if not _is_kept(value, limits.JSON_VALUE_DEPTH):
        return None
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return text.decode() if len(text) <= limits.JSON_VALUE_BYTES else None


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is no JSON.
    """
    return orjson.loads(text)


def _is_kept(value: object, depth: int) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, int):
        return _INT_MIN <= value <= _INT_MAX
    if isinstance(value, float):
        return isfinite(value)
    if depth == 0:
        return False
    if isinstance(value, list):
        return all(_is_kept(item, depth - 1) for item in value)
    return isinstance(value, dict) and all(
        "\0" not in key and _is_kept(item, depth - 1) for key, item in value.items()
    )


def element_at(value: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path; None if there is none."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def element_of_kind(value: Any, kind: ElementKind) -> Any:
    """Return the value if it is of a kind, else None. Of `any` it is True for all but null."""
    if kind == "any":
        return None if value is None else True
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if kind == "text":
        return value if isinstance(value, str) else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def kind_of(value: str | int | float | bool) -> ElementKind:
    """Return the kind of a scalar."""
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def has_member(value: Any, item: str | int | float | bool) -> bool:
    """Whether the value is a list that has the scalar as a member."""
    if not isinstance(value, list):
        return False
    kind = kind_of(item)
    return any(element_of_kind(member, kind) == item for member in value)
