"""Descriptors: how many files and sockets a process may have open, and what to do near the end.

The supervisor raises its soft limit to the hard one before it starts anything; its children
inherit that. A worker that accepts keeps `limits.DESCRIPTORS_RESERVED` back, because the store's
files and the links between processes need some too: it accepts no more until others have gone,
and those who knock wait in the kernel's backlog, or go to a sibling.

Called by `supervisor.main`, `pylonctl check-config` and the accepting loops of the workers.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from pylon import limits, log

# Of `accept`: the connection is there, the means to take it are not.
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_TOLD_S: Final = 60.0  # a process that stays full says so this often
_REMEDY: Final = "systemd: LimitNOFILE=131072; Docker: --ulimit nofile=131072"

_log = log.get_logger("descriptors")


def raise_limit() -> None:
    """Allow this process and its children what the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def warnings() -> list[str]:
    """What to tell the operator if the hard limit is below what one worker is made for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= limits.HTTP_CONNECTIONS:
        return []
    return [
        f"each process may open {hard} files (ulimit -Hn), so a worker takes about "
        f"{_first_reserved(hard)} connections; raise the limit ({_REMEDY})"
    ]


class FdBudget:
    """Whether one process may accept yet another connection."""

    __slots__ = ("_fd", "_first_reserved", "_limit", "_told_s")

    def __init__(self, fd: int) -> None:
        """`fd`: any descriptor that stays open, to ask the kernel with."""
        self._fd = fd
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._first_reserved = _first_reserved(self._limit)
        self._told_s: float | None = None

    def reserves(self, fd: int) -> bool:
        """Whether the newest descriptor is one of the reserve. The kernel gives the lowest that
        is free, so then all below are taken."""
        return fd >= self._first_reserved

    def has_room(self) -> bool:
        """Whether a new descriptor would be below the reserve."""
        try:
            fd = os.dup(self._fd)
        except OSError:
            return False
        os.close(fd)
        return not self.reserves(fd)

    def log_exhausted(self, now_s: float, error: str) -> None:
        """Log that nobody is accepted for now; once a minute, while it stays so."""
        if self._told_s is None or now_s - self._told_s >= _TOLD_S:
            self._told_s = now_s
            _log.error(
                "accept.paused", error=error, limit=self._limit,
                hint=f"new connections wait until others end; raise the limit ({_REMEDY}), or "
                "start more workers of this role",
            )


def _first_reserved(limit: int) -> int:
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 30
    return limit - min(limits.DESCRIPTORS_RESERVED, limit // 4)
