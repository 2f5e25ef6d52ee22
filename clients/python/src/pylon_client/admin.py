"""Operations of administrators: users, sessions, API keys, export and import.

The server has no route for backups: ``pylonctl backup`` makes them on the server's machine.
Called by both shells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlencode

from pylon_client.effects import EffectFailed, Receive, Request, Send, Shut, StartStream, Steps
from pylon_client.entities import plain
from pylon_client.errors import APIConnectionError, status_error
from pylon_client.requests import Core, current_token, decode, headers_of, send_json

USERS: Final = "/api/admin/auth/users"
SESSIONS: Final = "/api/admin/auth/sessions"
PURGE: Final = "/api/admin/sessions/purge"
_LINES: Final = {"Accept": "application/x-ndjson"}


def call(
    core: Core, method: str, path: str, body: Any = None,
    parameters: Mapping[str, Any] | None = None,
) -> Steps[Any]:
    """Send a request of an administrator, and return the decoded answer."""
    query = urlencode({k: v for k, v in (parameters or {}).items() if v is not None})
    answer = yield from send_json(
        core, method, f"{path}?{query}" if query else path,
        None if body is None else plain(body), is_repeatable=method in ("GET", "DELETE"),
    )
    return decode(answer)


def user_path(user_id: str, action: str | None = None) -> str:
    """Return the path of a user, or of an action on one."""
    path = f"{USERS}/{quote(user_id, safe='')}"
    return path if action is None else f"{path}/{action}"


def session_path(session_id: str) -> str:
    """Return the path of a session."""
    return f"{SESSIONS}/{quote(session_id, safe='')}"


def export(core: Core, entity: str | None, sink: BinaryIO) -> Steps[int]:
    """Write rows as JSON lines to a sink while they arrive. Return the number of bytes.

    Raises:
        APIConnectionError: the answer was cut off; the sink has a part of it.
    """
    path = "/api/export" if entity is None else f"/api/export/{quote(entity, safe='')}"
    token = yield from current_token(core)
    request = Request("GET", path, headers=_LINES)
    send = Send(
        "GET", core.options.url + path, headers_of(core.options, request, token), None,
        core.options.timeout_s,
    )
    written = 0
    try:
        answer, channel = yield StartStream(send)
        try:
            if answer.status >= 400:
                raise status_error(answer.status, answer.headers, answer.content, f"GET {path}")
            while piece := (yield Receive(channel, core.options.timeout_s)):
                sink.write(piece)
                written += len(piece)
        finally:
            yield Shut(channel)
    except EffectFailed as failed:
        raise APIConnectionError(f"GET {path}: {failed}") from failed
    return written
