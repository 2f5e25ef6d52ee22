"""Identity: ``{"type":"auth","token":"…"}`` changes who a socket speaks for, without reconnect.

The answer is ``{"type":"auth","ok":true,"user_id":…,"last_seq":n}``. Up to `last_seq` the socket
has had what the old identity may see, from there on it gets what the new one may; a client pulls
with the new token to see what the new identity could see before. ``"token":null`` makes the
socket anonymous. An unknown token is answered with an error, and the identity stays.

Invariants: between the last event for the old identity and the first for the new there is none
that neither was judged for, and none judged for both. Everything that other features keep for
the socket (rooms, live queries, documents) was granted to the old identity and ends with it; the
client asks for it again. Called by `workers.ws.conversation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.errors import InvalidData, Unauthorized
from workers.hub.admission import SubscriberAdmission
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws.conversation import Feature, say


class Identity:
    """`workers.ws.conversation.Feature` for ``auth``."""

    message_types: tuple[str, ...] = ("auth",)

    def __init__(self, hub: Hub, admission: SubscriberAdmission, others: Iterable[Feature]) -> None:
        """`others`: the features that keep something for a socket."""
        self._hub = hub
        self._admission = admission
        self._others = tuple(others)

    def take(self, connection: Connection, message: dict[str, Any]) -> None:
        """Change the identity.

        Raises:
            InvalidData: `token` is neither a string nor null.
            Unauthorized: the token stands for nobody.
            StoreUnavailable: it could not be looked up.
        """
        token = message.get("token")
        if token is not None and not isinstance(token, str):
            raise InvalidData("auth needs a token, a string or null")
        caller, error = self._admission.caller_of(token)
        if error is not None:
            raise error
        if token and caller is ANONYMOUS_CALLER:
            raise Unauthorized("The token is unknown or has expired; the identity stays as it was")
        if caller != connection.caller:
            for feature in self._others:
                feature.gone(connection)
            self._hub.change_caller(connection, caller)
        say(connection, {
            "type": "auth", "ok": True, "user_id": caller.auth.user_id,
            "last_seq": self._hub.head,
        })

    def gone(self, connection: Connection) -> None:
        """Nothing is kept."""
