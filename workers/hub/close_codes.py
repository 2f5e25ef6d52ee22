"""Close codes of WebSockets (RFC 6455 §7.4) that the roles of sockets share.

Codes of one role alone stand in its module: `workers.shards.handler`, `workers.hub.sessions`. Codes
for breaches of the protocol stand in `workers.ws.frames`. Called by hub, ws, sse and shards.
"""

from __future__ import annotations

from typing import Final

NORMAL: Final = 1000
GOING_AWAY: Final = 1001  # the server ends, or the client is to connect again
NO_STATUS: Final = 1005  # a close frame without a code; never on the wire
ABNORMAL: Final = 1006  # the connection broke; never on the wire
POLICY: Final = 1008  # the client did something that the server does not allow
INTERNAL: Final = 1011
SERVICE_RESTART: Final = 1012  # the client must pull again
TRY_AGAIN_LATER: Final = 1013  # the next connection pulls what was missed
