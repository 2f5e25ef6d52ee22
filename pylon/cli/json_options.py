"""Options of `pylonctl` that take a JSON object, such as ``--row`` and ``--filter``."""

from __future__ import annotations

from typing import Any

import orjson

from pylon.errors import InvalidJson


def read_object(option: str, text: str) -> dict[str, Any]:
    """Return the object that an option has.

    Args:
        option: its name, for the error.

    Raises:
        InvalidJson: the text is no JSON object.
    """
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as ex:
        raise InvalidJson(f"{option} is no JSON: {ex}") from None
    if not isinstance(found, dict):
        raise InvalidJson(f"{option} must be a JSON object, for example {{}}")
    return found
