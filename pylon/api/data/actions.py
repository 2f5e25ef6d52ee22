"""Actions (spec/http.md §3.8): check a caller and the inputs of an action, and no more.

The wire's response says ``executed: true``, but no server of this wire runs anything: an action of
the manifest names inputs and policies, and no code. Clients use the response as a check of both.
"""

from __future__ import annotations

from typing import Any

import falcon

from pylon.api.http.body import read_json
from pylon.api.http.callers import caller_of
from pylon.api.http.responses import send_json
from pylon.api.services import DataServices
from pylon.errors import (
    SHOWN_CHARS,
    ActionMissingInput,
    ActionNotFound,
    InvalidData,
    InvalidJson,
    InvalidValue,
)
from pylon.manifest.model import Operation
from pylon.storage.related import StoredRelated
from pylon.values import expected, fits, shown


class Action:
    """``POST /api/actions/{name}``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services
        self._by_name = {action.name: action for action in services.app.manifest.actions}

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        auth = caller_of(req, self._services.requests).auth
        body = read_json(req, self._services.requests)
        if not isinstance(body, dict):
            raise InvalidJson("Invalid request body", hint="Send the inputs as an object")
        action = self._by_name.get(name)
        given = {} if action is None else _typed_inputs(action, body)
        rules, related = self._services.app.rules, StoredRelated(self._services.store.point)
        # A caller whom the policies refuse learns nothing, not even whether the action exists.
        if not rules.may_act(name, auth, given, related):
            raise rules.denied_action(name, auth, given, related)
        if action is None:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise ActionNotFound(
                f'Action "{name[:SHOWN_CHARS]}" not found', hint=f"Known actions: {known}"
            )
        _check_inputs(action, body)
        send_json(resp, {"action": name, "input": body, "executed": True})


def _typed_inputs(action: Operation, body: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs that are of their types; a policy sees the others as null."""
    return {
        field.name: body[field.name]
        for field in action.input
        if field.name in body and fits(field, body[field.name])
    }


def _check_inputs(action: Operation, body: dict[str, Any]) -> None:
    """Pass if all required inputs are there and each is of its type.

    Raises:
        ActionMissingInput, InvalidData, InvalidValue: an input is missing, unknown or wrong.
    """
    required = [field.name for field in action.input if not field.optional]
    for name in required:
        if body.get(name) is None:
            raise ActionMissingInput(
                f'Missing required input "{name}" for action "{action.name}"',
                hint=f"Required fields: {', '.join(required)}",
            )
    by_name = {field.name: field for field in action.input}
    for name, value in body.items():
        field = by_name.get(name)
        if field is None:
            known = ", ".join(by_name) or "none"
            raise InvalidData(
                f'Action "{action.name}" has no input "{name[:SHOWN_CHARS]}" '
                f"-- valid inputs: {known}"
            )
        if value is not None and not fits(field, value):
            raise InvalidValue(
                f"{action.name}.{name} must be {expected(field)}",
                field=name, value=shown(value), expected=expected(field),
            )
