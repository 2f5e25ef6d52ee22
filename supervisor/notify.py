"""sd_notify: tell systemd that we are ready, alive, stopping, and how we are.

Plain datagrams to $NOTIFY_SOCKET (a path, or ``@name`` in the abstract namespace); without
that variable every call does nothing. Invariant: a systemd that does not read never blocks
or fails the supervisor. Used by the main loop only.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from pylon import log

_log = log.get_logger("notify")
_US_PER_S: Final = 1_000_000

# What children must not inherit: they would speak for us, or take our sockets.
SYSTEMD_NAMES: Final = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)


class Notifier:
    """Speaks to the service manager named in `environ`."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._last_status = ""
        self.watchdog_period_s = _watchdog_period_s(environ, pid)

    @property
    def enabled(self) -> bool:
        return bool(self._address)

    def ready(self) -> None:
        """Every role answers."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it has changed."""
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """Still well. To be called every `watchdog_period_s` while every role answers."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for more time to stop, and keep the watchdog quiet meanwhile."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * _US_PER_S)}\nWATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(text.encode(), self._address)
        except OSError as ex:
            # The service manager is not there or does not read: we go on without it.
            _log.debug("notify.failed", error=str(ex))


def _watchdog_period_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises; None when it is not for us."""
    raw = environ.get("WATCHDOG_USEC", "")
    if not raw.isdigit() or int(raw) == 0 or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(raw) / _US_PER_S / 2
