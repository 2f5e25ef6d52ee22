"""Reads query parameters: whole numbers, flags, texts. An error names the parameter and its value.

Called by the resources.
"""

from __future__ import annotations

import re
from typing import Final

import falcon

from pylon.errors import SHOWN_CHARS, InvalidQuery

_WHOLE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


def read_number(req: falcon.Request, name: str, low: int = 0) -> int | None:
    """Return the parameter as a whole number of at least `low`; None if it is absent.

    Raises:
        InvalidQuery: it has another value.
    """
    raw = req.params.get(name)
    if raw is None:
        return None
    text = raw[-1] if isinstance(raw, list) else raw
    if _WHOLE.fullmatch(text) is None or int(text) < low:
        raise InvalidQuery(
            f'{name} is "{text[:SHOWN_CHARS]}": expected a whole number from {low} up'
        )
    return int(text)


def read_flag(req: falcon.Request, name: str) -> bool:
    """Return whether the parameter is true or 1; False if it is false, 0 or absent.

    Raises:
        InvalidQuery: it has another value.
    """
    text = read_text(req, name)
    if text is None or text in ("false", "0"):
        return False
    if text in ("true", "1"):
        return True
    raise InvalidQuery(f'{name} is "{text[:SHOWN_CHARS]}": expected true or false')


def read_text(req: falcon.Request, name: str) -> str | None:
    """Return the parameter as text, the last one of several; None if it is absent."""
    raw = req.params.get(name)
    return raw[-1] if isinstance(raw, list) else raw
