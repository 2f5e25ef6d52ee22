"""Decodes lists of changes of which some cannot be stored, so that the others are carried out.

A client that cuts a text between the halves of a surrogate pair sends `"\\ud83d"`: valid JSON, but
a text that UTF-8, and so the store, cannot hold. Another client sends a tree of a hundred levels.
One such change must not make the whole list unreadable, because official clients send a refused
list again for ever.

Invariant: a change for which `problem_of` returns None can be encoded by orjson, and has at most
limits.JSON_DEPTH levels. Bounds: limits.JSON_REPAIR_BYTES, limits.JSON_REPAIR_DEPTH; any other
body is refused as a whole. Called by push, batch and import, and by the hub for WebSockets.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

import orjson

from pylon import limits
from pylon.errors import InvalidJson, InvalidValue
from pylon.json_text import check_bounds

_HALF: Final = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_TEXT: Final = "text without half surrogate pairs"


def decode_changes(raw: bytes) -> tuple[Any, bool]:
    """Return the decoded body, and whether its changes have to be checked with `problem_of`.

    Raises:
        InvalidJson, LimitExceeded: as `decode_body`.
    """
    is_deep = False
    try:
        check_bounds(raw)
    except InvalidJson as error:
        try:
            check_bounds(raw, depth=limits.JSON_REPAIR_DEPTH)
        except InvalidJson:
            raise error from None
        if len(raw) > limits.JSON_REPAIR_BYTES:
            raise
        is_deep = True
    try:
        return orjson.loads(raw), is_deep
    except orjson.JSONDecodeError:
        pass
    if len(raw) <= limits.JSON_REPAIR_BYTES and _ESCAPED_HALF.search(raw) is not None:
        try:
            return json.loads(raw, parse_constant=refuse_constant), True
        except (ValueError, RecursionError):  # ValueError: also what is no UTF-8
            pass
    raise InvalidJson("Invalid request body")


def problem_of(entry: Any) -> InvalidValue | None:
    """Return why an entry of the list cannot be executed; None if it can be read."""
    if _is_deep(entry):
        return InvalidValue(
            f"The change is nested deeper than {limits.JSON_DEPTH} levels (JSON_DEPTH)",
            expected=f"{limits.JSON_DEPTH} levels at most",
        )
    try:
        orjson.dumps(entry)
    except (TypeError, ValueError):
        pass
    else:
        return None
    found = _find_half(entry, "")
    if found is None:
        return InvalidValue("The change holds a number beyond 64 bits", expected="64 bits")
    name, value = found
    return InvalidValue(
        f"{name or 'The change'} holds half of a surrogate pair, which is no text in UTF-8",
        field=name, value=replace_halves(value), expected=_TEXT,
        hint="Cut texts between characters: [...text] in JavaScript, not text.slice",
    )


def _is_deep(value: object) -> bool:
    """Return whether a value is nested deeper than a change may be."""
    level = [value]
    for _ in range(limits.JSON_DEPTH + 1):
        level = [
            inner for outer in level if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def replace_halves(value: object) -> object:
    """Return a value that can be encoded: each half of a pair in a text becomes U+FFFD."""
    return _HALF.sub("\ufffd", value) if isinstance(value, str) else value


def _find_half(value: Any, name: str) -> tuple[str, str] | None:
    """Return the member that holds the first text with a half, and the text."""
    if isinstance(value, str):
        return (name, value[:100]) if _HALF.search(value) else None
    if isinstance(value, dict):
        for key, inner in value.items():
            shown = str(replace_halves(key))
            found = _find_half(key, shown) or _find_half(inner, shown)
            if found is not None:
                return found
    elif isinstance(value, list):
        for inner in value:
            found = _find_half(inner, name)
            if found is not None:
                return found
    return None


def refuse_constant(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which `json.loads` accepts although they are no JSON."""
    raise ValueError(f"{constant} is no JSON")
