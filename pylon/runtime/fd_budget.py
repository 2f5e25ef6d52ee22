"""File descriptor budget: the limit of a process's files and sockets, and a reserve below it.

The supervisor and the template raise their soft limit to the hard one at their start, and all
workers inherit the limit. A worker keeps `limits.DESCRIPTORS_RESERVED` descriptors free, because
the store's files and the bus need some too. Within this reserve it accepts no connection; new
clients wait in the kernel's backlog, or reach a sibling.

Log event: accept.paused. Called by `supervisor.main`, `workers.template`, `pylonctl check-config`
and `workers.net.listener`.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from pylon import limits, log

# Errors of `accept` for a connection that waits while descriptors or memory are missing.
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_LOG_PERIOD_S: Final = 60.0  # a process that stays full logs it this often
REMEDY: Final = "systemd: LimitNOFILE=131072; Docker: --ulimit nofile=131072"

_log = log.get_logger("descriptors")


def raise_limit() -> None:
    """Raise the soft limit of this process and its children to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def warnings() -> list[str]:
    """Return a warning if the hard limit is below `limits.HTTP_CONNECTIONS`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= limits.HTTP_CONNECTIONS:
        return []
    return [
        f"each process may open {hard} files (ulimit -Hn), so a worker takes about "
        f"{_first_reserved(hard)} connections; raise the limit ({REMEDY})"
    ]


class FdBudget:
    """The budget of one process: it decides whether the process may accept another connection."""

    __slots__ = ("_fd", "_first_reserved", "_limit", "_logged_s")

    def __init__(self, fd: int) -> None:
        """`fd`: any descriptor that stays open; `has_room` duplicates it for a test."""
        self._fd = fd
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._first_reserved = _first_reserved(self._limit)
        self._logged_s: float | None = None

    def reserves(self, fd: int) -> bool:
        """Return whether the newest descriptor lies in the reserve.

        The kernel gives the lowest free descriptor, so all descriptors below it are in use.
        """
        return fd >= self._first_reserved

    def has_room(self) -> bool:
        """Return whether a new descriptor would lie below the reserve."""
        try:
            fd = os.dup(self._fd)
        except OSError:
            return False
        os.close(fd)
        return not self.reserves(fd)

    def log_exhausted(self, now_s: float, error: str) -> None:
        """Log that the process accepts no connection, once a minute while it lasts."""
        if self._logged_s is None or now_s - self._logged_s >= _LOG_PERIOD_S:
            self._logged_s = now_s
            _log.error(
                "accept.paused", error=error, limit=self._limit,
                hint=f"new connections wait until others end; raise the limit ({REMEDY}), or "
                "start more workers of this role",
            )


def _first_reserved(limit: int) -> int:
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 30
    return limit - min(limits.DESCRIPTORS_RESERVED, limit // 4)
