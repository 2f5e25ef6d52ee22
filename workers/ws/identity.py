"""Identity: changes the caller of a socket without a reconnect (``{"type":"auth","token":"…"}``).

The answer is ``{"type":"auth","ok":true,"user_id":…,"last_seq":n}``. The socket receives events up
to `last_seq` as the old identity may read them, and later events as the new identity may. A client
pulls with the new token to read earlier events that only the new identity may read.
``"token":null`` makes the socket anonymous. An unknown token gets an error, and the identity stays.
The admin token is no session: it counts in the header of the handshake only.

Invariants: the hub checks each event against the read policies for exactly one of the two
identities. The state of the other features of a socket (rooms, live queries, documents, matches)
belongs to the old identity and ends with it; the client subscribes again. `workers.ws.conversation`
calls this feature; `workers.ws.server` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.auth.tokens import UnprivilegedToken
from pylon.errors import InvalidData, Unauthorized
from workers.hub.admission import SubscriberAdmission
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws.conversation import Feature, send_json


class Identity:
    """`workers.ws.conversation.Feature` for ``auth``."""

    message_types: tuple[str, ...] = ("auth",)

    def __init__(self, hub: Hub, admission: SubscriberAdmission, others: Iterable[Feature]) -> None:
        """Args: `others` are the features that store state for a socket."""
        self._hub = hub
        self._admission = admission
        self._others = tuple(others)

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """Change the identity.

        Raises:
            InvalidData: `token` is neither a string nor null.
            Unauthorized: the token is unknown or has expired.
            StoreUnavailable: the session cannot be read.
        """
        token = message.get("token")
        if token is not None and not isinstance(token, str):
            raise InvalidData("auth needs a token, a string or null")
        caller, error = self._admission.caller_of(token and UnprivilegedToken(token))
        if error is not None:
            raise error
        if token and caller is ANONYMOUS_CALLER:
            raise Unauthorized("The token is unknown or has expired; the identity stays as it was")
        # A new token of the same family changes nothing.
        if (caller.auth, caller.family) != (connection.caller.auth, connection.caller.family):
            for feature in self._others:
                feature.drop_connection(connection)
            self._admission.change_caller(connection, caller)
        send_json(connection, {
            "type": "auth", "ok": True, "user_id": caller.auth.user_id,
            "last_seq": self._hub.head,
        })

    def drop_connection(self, connection: Connection) -> None:
        """Do nothing: this feature stores no state for a socket."""
