"""Close codes of RFC 6455 that every role of sockets sends. Called by hub, ws, sse and shards."""

from __future__ import annotations

from typing import Final

GOING_AWAY: Final = 1001  # the server ends, or the client is to connect again
