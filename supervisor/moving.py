"""Moving: refuses all writes while `pylonctl migrate --online` takes the last changes over.

`pylonctl` reads the database itself. It holds a dialogue meanwhile:

    pylonctl     {"cmd": "move"}
    supervisor   {"held": true}            no write is under way, and none is accepted
    pylonctl     {"moved": true}           the other database has all data
    supervisor   {"done": true}

Writes get 503 with Retry-After; reads and sockets go on. If `pylonctl` leaves before it has said
`moved`, the writer accepts writes again. Afterwards it does not: nobody would find them in the
other database. pylonctl then stops this server.

Called by the threads of `supervisor.control`.
"""

from __future__ import annotations

import threading
from typing import Final

from pylon import log
from pylon.errors import InvalidData, Unavailable
from supervisor.control import ClientLeft, Dialogue, Line
from supervisor.writer import Writer

_POLL_S: Final = 0.5

_log = log.get_logger("moving")


class Moving:
    """`converse` is the dialogue of the command ``move``."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._one = threading.Lock()

    def converse(self, _request: Line, dialogue: Dialogue) -> Line:
        """Refuse writes until the client has moved the data, or leaves."""
        if not self._one.acquire(blocking=False):
            raise Unavailable("The data are being moved already")
        has_moved = False
        try:
            self._writer.refuse_writes(Unavailable(
                "The data are being moved to another database",
                hint="Nothing was written; try again in a moment, the server starts on the other "
                "database then",
            ))
            _log.warning("moving.writes_refused", pid=dialogue.peer_pid)
            dialogue.send_line({"held": True})
            while not has_moved:
                line = dialogue.read_line(_POLL_S)
                if line is not None and not line.get("moved"):
                    raise InvalidData(f"Unknown line {line!r}; known: moved")
                has_moved = line is not None
            return {"held": True}
        except ClientLeft:
            _log.warning("moving.abandoned", hint="the server accepts writes again")
            return {"held": False}
        finally:
            if not has_moved:
                self._writer.accept_writes()
            self._one.release()
