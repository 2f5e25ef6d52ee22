"""Drain: ends the connections of an HTTP worker that stops.

A client may send its next request at the moment in which the worker closes the connection, and
then it would get no answer. HTTP/1.1 has no means against that (RFC 9112 §9.3.1 has clients repeat
idempotent requests). So the worker closes a connection only after it has been idle for
`limits.HTTP_DRAIN_IDLE_S`, and answers a request that comes before with ``Connection: close``.
While other workers serve, as in a reload, nobody waits for the end of the drain. Then it closes no
idle connection in the first PYLON_DRAIN_SPREAD_S. After the grace period the worker closes the
rest. A long drain logs why it waits.

Invariant: when `drain` returns, no connection is open. Log events: drain.waiting, drain.deadline.
Called by `loop`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import gevent

from pylon import limits, log
from workers.http.connection_limits import NAME_BY_KIND

if TYPE_CHECKING:
    from workers.http.connection import Connection
    from workers.http.loop import Loop

_STEP_S: Final = 0.05
_REPORT_S: Final = 2.0  # between two log lines

_log = log.get_logger("http")


def drain(
    loop: Loop, grace_s: float, spread_s: Callable[[], float], notify: Callable[[], None]
) -> None:
    """End all connections of `loop`, which accepts no more.

    Args:
        grace_s: after this time the remaining connections are closed.
        spread_s: returns for how long no idle connection is closed; asked again in each step.
        notify: called again and again meanwhile.
    """
    connections = loop.connections
    begun_s = loop.now_s
    deadline_s = begun_s + grace_s
    report_s = loop.now_s + _REPORT_S
    while connections:
        if loop.now_s >= begun_s + spread_s():
            _close_idle(loop)
        if loop.now_s >= deadline_s:
            _log.warning("drain.deadline", cut=len(connections), **_waits(loop))
            break
        if loop.now_s >= report_s:
            report_s = loop.now_s + _REPORT_S
            _log.info("drain.waiting", **_waits(loop))
        loop.sweep()
        notify()
        gevent.sleep(_STEP_S)
    for connection in list(connections.values()):
        connection.abort()


def _close_idle(loop: Loop) -> None:
    for connection in list(loop.connections.values()):
        if _is_quiet(connection, loop.now_s) and not connection.has_arrived():
            connection.abort()


def _is_quiet(connection: Connection, now_s: float) -> bool:
    """Return whether a connection is idle, and has been so for long enough to be closed."""
    if not connection.is_idle:
        return False
    waiting = connection.waiting_since()
    return waiting is None or now_s - waiting[1] >= limits.HTTP_DRAIN_IDLE_S


def _waits(loop: Loop) -> dict[str, Any]:
    """Return the log fields of a drain: connections by kind of wait, and the slowest one."""
    counts = {"app": 0, **dict.fromkeys(NAME_BY_KIND.values(), 0)}
    slowest: tuple[float, Connection, int] | None = None
    for connection in loop.connections.values():
        waiting = connection.waiting_since()
        counts["app" if waiting is None else NAME_BY_KIND[waiting[0]]] += 1
        if waiting is not None and (slowest is None or waiting[1] < slowest[0]):
            slowest = (waiting[1], connection, waiting[0])
    fields: dict[str, Any] = dict(counts)
    if slowest is not None:
        since_s, connection, kind = slowest
        fields |= {
            "slowest": NAME_BY_KIND[kind], "slowest_client": connection.client_network,
            "slowest_idle_s": round(loop.now_s - since_s, 1),
            "slowest_unsent_bytes": connection.outgoing_bytes,
        }
    return fields
