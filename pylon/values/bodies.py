"""JSON bodies: decodes the body of a request, within the bounds of its depth and size.

The bounds are `limits.JSON_DEPTH` and the number of values. Called by the API, seeds and imports.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
import orjson

from pylon import limits
from pylon.errors import InvalidJson
from pylon.json_text import check_bounds

_LONG_INTEGER: Final = re.compile(rb"[0-9]{19}")


def decode_body(raw: bytes, nodes: int = limits.JSON_NODES) -> Any:
    """Decode a request body.

    Args:
        nodes: the largest number of values.

    Raises:
        InvalidJson: the body is not JSON in UTF-8 (spec/http.md §3.0), or has more levels than
            `limits.JSON_DEPTH`.
        LimitExceeded: the body has more than `nodes` values.
    """
    check_bounds(raw, nodes)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidJson("Invalid request body") from None


def decode_query(raw: bytes) -> Any:
    """Decode the body of a query: as `decode_body`, but keep integers beyond 64 bits exact.

    orjson turns such an integer into a float, which may equal a row's number although the integer
    does not.

    Raises:
        InvalidJson, LimitExceeded: as `decode_body`.
    """
    body = decode_body(raw)
    return body if _LONG_INTEGER.search(raw) is None else msgspec.json.decode(raw)
