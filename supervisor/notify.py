"""sd_notify: tells systemd that the supervisor is ready, alive or stopping, and its status.

`Notifier` sends datagrams to $NOTIFY_SOCKET (a path, or ``@name`` in the abstract namespace).
Without that variable every call does nothing. Invariant: the supervisor neither blocks nor fails
if systemd does not read. Called by the main loop and the drain.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Final

from pylon import log

_log = log.get_logger("notify")
_US_PER_S: Final = 1_000_000
_NS_PER_US: Final = 1_000

# Variables that workers must not get: with them a worker could notify systemd or take sockets.
SYSTEMD_NAMES: Final = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)


class Notifier:
    """The connection to the service manager that `environ` names."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._last_status = ""
        self.watchdog_period_s = _watchdog_period_s(environ, pid)

    @property
    def enabled(self) -> bool:
        return bool(self._address)

    def ready(self) -> None:
        """Tell systemd that every role is ready."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Send one line for `systemctl status`, if it has changed."""
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """Keep the watchdog from expiring. Call it every `watchdog_period_s` while all is well."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Tell systemd that a reload begins, and when; `ready` ends it."""
        now_us = time.monotonic_ns() // _NS_PER_US
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

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
            # The service manager is gone or does not read. The supervisor serves without it.
            _log.debug("notify.failed", error=str(ex))


def _watchdog_period_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Return half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.

    Returns:
        None if systemd watches nothing, or another process.
    """
    raw = environ.get("WATCHDOG_USEC", "")
    if not raw.isdigit() or int(raw) == 0 or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(raw) / _US_PER_S / 2
