"""Stream scope: which changes a socket receives, and how far it has received them.

``{"type":"scope","entities":["Room"],"filters":{"Message":{"roomId":{"$in":["r1"]}}}}`` gives an
open socket another scope (`pylon.changelog.scope`); without both members the socket receives
everything that it may read. The answer is ``{"type":"scoped","entities":[…],"seq":n}``: changes
above `seq` come by the new scope. Then the client pulls the rows that joined the scope, with
``since=0``, and drops those that left it.

``{"type":"ping","id":…}`` is answered by ``{"type":"pong","id":…,"seq":n}``: the socket has been
sent every change up to `seq` that it may see.

Invariant: no greenlet switch lies between `seq` and the answer. Bounds: those of a scope, and
`limits.PING_ID_CHARS`. A feature of `workers.ws.conversation`; `workers.ws.server` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pylon import limits
from pylon.changelog.scope import Scope, parse_scope
from pylon.errors import InvalidData
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws.conversation import send_json

ChangeScope = Callable[[Connection, Scope | None], None]

_NAMES: Final = ("entities", "filters")


class StreamScope:
    """`workers.ws.conversation.Feature` for ``scope`` and ``ping``."""

    message_types: tuple[str, ...] = ("scope", "ping")

    def __init__(
        self, hub: Hub, change_scope: ChangeScope, rules: RuleSet, manifest: Manifest
    ) -> None:
        """Args: `change_scope`: `SubscriberAdmission.change_scope`."""
        self._hub = hub
        self._change_scope = change_scope
        self._rules = rules
        self._manifest = manifest

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """Change the scope, or answer a ping.

        Raises:
            InvalidData: the id of a ping is neither a text nor a number.
            InvalidQuery, InvalidColumn, InvalidValue, LimitExceeded: as `parse_scope`; the scope
                stays as it was.
            ScopeDenied: as `SubscriberAdmission.change_scope`.
        """
        if message["type"] == "ping":
            send_json(connection, {
                "type": "pong", "id": _read_id(message), "seq": self._hub.delivered_seq(connection),
            })
            return
        scope = parse_scope(
            self._rules, self._manifest, message.get("entities"), message.get("filters"), _NAMES
        )
        self._change_scope(connection, scope)
        send_json(connection, {
            "type": "scoped",
            "entities": None if scope is None else scope.names,
            "filters": [] if scope is None else sorted(scope.filters),
            "seq": max(self._hub.head, connection.last_seq),
        })

    def drop_connection(self, connection: Connection) -> None:
        """Do nothing: the scope is part of the connection."""


def _read_id(message: dict[str, Any]) -> str | int | float | None:
    found = message.get("id")
    if found is None or (isinstance(found, int | float) and not isinstance(found, bool)):
        return found
    if isinstance(found, str) and len(found) <= limits.PING_ID_CHARS:
        return found
    raise InvalidData(
        f"The id of a ping is a text of {limits.PING_ID_CHARS} characters at most, or a number"
    )
