"""Query parameters: numbers within bounds, and an error that names the parameter and its value."""

from __future__ import annotations

import re
from typing import Final

import falcon

from pylon.errors import InvalidQuery

_WHOLE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_SHOWN_CHARS: Final = 100


def whole_number(req: falcon.Request, name: str, low: int = 0) -> int | None:
    """The parameter as a whole number of at least `low`; None where it is not given.

    Raises:
        InvalidQuery: it is something else.
    """
    raw = req.params.get(name)
    if raw is None:
        return None
    text = raw[-1] if isinstance(raw, list) else raw
    if _WHOLE.fullmatch(text) is None or int(text) < low:
        raise InvalidQuery(
            f'{name} is "{text[:_SHOWN_CHARS]}": expected a whole number from {low} up'
        )
    return int(text)


def text_value(req: falcon.Request, name: str) -> str | None:
    """The parameter as text, the last one if it is given several times; None if it is not."""
    raw = req.params.get(name)
    return raw[-1] if isinstance(raw, list) else raw
