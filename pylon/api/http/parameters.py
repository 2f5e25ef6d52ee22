"""Query parameters: those that each route takes, and functions that read them.

`KNOWN` is the only list of the parameters of the API's routes; a test compares the OpenAPI document
with it. In dev mode a request with another one is refused, with the nearest known name; elsewhere
it is counted and ignored, because a client of another version may send it. An error about a value
names the parameter and the value.

Metric: pylon_http_unknown_parameters_total. The middleware calls `check_names`, the resources the
readers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final

import falcon

from pylon import metrics
from pylon.api.identity.routes import ROUTES
from pylon.errors import SHOWN_CHARS, InvalidQuery, UnknownParameter

# By the route's path in falcon's notation. All other routes of the API take none.
KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "/api/admin/auth/sessions": ("user_id",),
    "/api/auth/sessions": ("others",),
    "/api/entities/{entity}": ("limit", "offset", "count", "page", "per_page"),
    "/api/entities/{entity}/cursor": ("after", "limit"),
    "/api/files": ("owner", "type", "attached", "after", "limit"),
    "/api/files/{file_id}": ("download", "expires", "signature"),
    "/api/import": ("ids",),
    "/api/manifest": ("full",),
    "/api/matchmaking": ("player",),
    "/api/matchmaking/ack": ("player",),
    "/api/pubsub/history/{channel:path}": ("limit",),
    "/api/shards/{shard_id}/connect": ("sid",),
    "/api/shards/{shard_id}/input": ("sid",),
    "/api/sync/pull": ("entities", "since", "snapshot_after"),
    **{route.path: route.params for route in ROUTES if route.params},
}
_API: Final = "/api/"
# Others add parameters of their own: a provider to the page that it sends a browser back to.
_OPEN: Final = frozenset(route.path for route in ROUTES if route.takes_any_params)
# Its server reads them after it has taken the connection over.
_UPGRADED: Final = "/api/sync/ws"

_WHOLE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


def check_names(req: falcon.Request, *, refuses: bool) -> None:
    """Check the names of a request's query parameters.

    Args:
        refuses: whether an unknown one is refused; it is counted in any case.

    Raises:
        UnknownParameter: `refuses`, and the route does not take one of them.
    """
    route = req.uri_template
    if route is None or not route.startswith(_API) or route == _UPGRADED:
        return
    if route in _OPEN:
        return
    known = KNOWN.get(route, ())
    unknown = next((name for name in req.params if name not in known), None)
    if unknown is None:
        return
    metrics.HTTP_UNKNOWN_PARAMETERS.labels(route).inc()
    if not refuses:
        return
    near = difflib.get_close_matches(unknown, known, 1)
    raise UnknownParameter(
        f'Unknown query parameter "{unknown[:SHOWN_CHARS]}" (known: {", ".join(known) or "none"})',
        hint=f"did you mean {near[0]}?" if near else "leave it out; production ignores it",
    )


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
