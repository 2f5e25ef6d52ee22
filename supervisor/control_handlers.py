"""Handlers of control requests: ping, status, metrics, stop, indexes, rebuilding of search.

A backup is a dialogue: see `supervisor.backups`.

Invariant: handlers run in the threads of `supervisor.control`. So they read only what is safe to
read from any thread; for everything else they put an event into the main loop's queue.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

import pylon
from pylon import metrics
from pylon.errors import InvalidData
from pylon.metrics.processes import process_families
from pylon.metrics.render import (
    JSON_CONTENT_TYPE,
    OPENMETRICS_CONTENT_TYPE,
    TEXT_CONTENT_TYPE,
)
from pylon.storage.records import IndexSpec
from supervisor.components import Components
from supervisor.control import CommandHandler, Line, SendLine
from supervisor.events import Progress, StopAsked
from supervisor.loop import Loop

_PROGRESS_EVERY_S = 0.2
_SEARCH_PORTION_ROWS = 200  # others write in between


class _Indexes(msgspec.Struct, frozen=True):
    """The arguments of the command ``indexes``."""

    indexes: tuple[IndexSpec, ...]


class ControlHandlers:
    """`by_name` is what `ControlServer` takes."""

    def __init__(self, parts: Components, loop: Loop, pid: int, started_s: float) -> None:
        self._parts = parts
        self._loop = loop
        self._pid = pid
        self._started_s = started_s
        metrics.UPTIME.set_function(self._uptime_s)
        metrics.DB_BYTES.set_function(lambda: parts.engine.maintenance.sizes().data_bytes)
        metrics.DISK_FREE_BYTES.set_function(lambda: parts.engine.maintenance.sizes().free_bytes)

    def by_name(self) -> dict[str, CommandHandler]:
        return {
            "ping": self._ping, "status": self._status, "metrics": self._metrics,
            "stop": self._stop, "indexes": self._put_indexes,
            "search_rebuild": self._rebuild_search,
            "reload": self._reload, "scale": self._scale, "restart": self._restart,
        }

    def _uptime_s(self) -> float:
        return round(self._parts.clock.monotonic_s() - self._started_s, 3)

    def _ping(self, _request: Line, _send_line: SendLine) -> Line:
        return {"pid": self._pid, "version": pylon.__version__}

    def _status(self, _request: Line, _send_line: SendLine) -> Line:
        """The facts of `pylonctl status --json`."""
        parts = self._parts
        roles = {
            role: {"wanted": view.wanted, "ready": view.ready, "pids": view.pids,
                   "failing": view.failing,
                   "connections": sum(b.connections for b in parts.heartbeats.list_beats(role))}
            for role, view in parts.children.views().items()
        }
        sizes = parts.engine.maintenance.sizes()
        return {
            "pid": self._pid,
            "version": pylon.__version__,
            "uptime_s": self._uptime_s(),
            "ready": self._loop.is_ready() and not self._loop.draining,
            "draining": self._loop.draining,
            "roles": roles,
            "ports": parts.listeners.ports,
            "head_seq": parts.head,
            "oldest_seq": parts.flusher.oldest_seq,
            "db_bytes": sizes.data_bytes,
            "wal_bytes": sizes.wal_bytes,
            "disk_free_bytes": sizes.free_bytes,
            "sessions": parts.flusher.sessions,
            "converting_datetimes": parts.flusher.conversion.status,
            "write_queue_depth": parts.writer.depth,
            "restarts": parts.children.restarts,
            "generation": parts.generations.number,
            "reload": parts.generations.phase,
            "scaled": parts.generations.scaled,
            "store": parts.store.name,
            **({"db_path": parts.store.place} if parts.relay is None else
               {"database": parts.store.place, **self._node_facts()}),
        }

    def _node_facts(self) -> dict[str, Any]:
        """The place of this node among those that share its database."""
        parts = self._parts
        nodes = parts.nodes
        return {
            "node": parts.config.node,
            "other_nodes": [] if nodes is None else [facts.name for facts in nodes.others],
            "leads": nodes is not None and nodes.leads,
            "relay_lag_seqs": 0 if parts.relay is None else parts.relay.lag_seqs,
        }

    def _metrics(self, request: Line, _send_line: SendLine) -> Line:
        """The page: ``format`` is ``text`` (Prometheus), ``openmetrics`` or ``json`` (spec §7)."""
        families = self._parts.heartbeats.families(metrics.supervisor_snapshot())
        match request.get("format", "text"):
            case "text":
                families += process_families(self._processes())
                return {"content_type": TEXT_CONTENT_TYPE, "body": metrics.render_text(families)}
            case "openmetrics":
                families += process_families(self._processes())
                body = metrics.render_openmetrics(families)
                return {"content_type": OPENMETRICS_CONTENT_TYPE, "body": body}
            case "json":
                page: dict[str, Any] = metrics.render_json(families, self._uptime_s())
                return {"content_type": JSON_CONTENT_TYPE, "body": orjson.dumps(page).decode()}
            case other:
                raise InvalidData(f"format is {other!r}; expected text, openmetrics or json")

    def _processes(self) -> list[tuple[str, str, int]]:
        """Role, worker and pid of every process; gunicorn's arbiter is one of its role."""
        parts = self._parts
        beats = [
            beat for role in parts.children.views() for beat in parts.heartbeats.list_beats(role)
        ]
        return [
            ("supervisor", "", self._pid),
            *((role, "arbiter", pid) for role, pid in parts.children.list_arbiters()),
            *((beat.role, beat.worker, beat.pid) for beat in beats),
        ]

    def _stop(self, _request: Line, send_line: SendLine) -> Line:
        """Drain; every step is a line."""
        progress = self._parts.progress
        self._parts.events.put(StopAsked())
        return _follow(progress, send_line)

    def _reload(self, _request: Line, send_line: SendLine) -> Line:
        """Reload; every step is a line. `supervisor.generations` has the rules."""
        return _follow(self._parts.generations.prepare_reload().progress, send_line)

    def _restart(self, _request: Line, send_line: SendLine) -> Line:
        """Restart with the program on disk; the control socket closes with this run."""
        return _follow(self._parts.generations.prepare_restart().progress, send_line)

    def _scale(self, request: Line, send_line: SendLine) -> Line:
        """Change the numbers of workers to those of ``workers``, by role."""
        workers = request.get("workers")
        if not isinstance(workers, dict):
            raise InvalidData("workers: expected an object with a number for each role")
        return _follow(self._parts.generations.prepare_scale(workers).progress, send_line)

    def _put_indexes(self, request: Line, _send_line: SendLine) -> Line:
        """Make the manifest's indexes those of ``indexes``; ``count`` of operations done."""
        try:
            op = msgspec.convert({"indexes": request.get("indexes")}, _Indexes)
        except msgspec.ValidationError as ex:
            raise InvalidData(f"indexes: {ex}") from ex
        return {"count": self._parts.engine.maintenance.put_indexes(op.indexes)}

    def _rebuild_search(self, request: Line, send_line: SendLine) -> Line:
        """Renew the search indexes of ``entities``, with progress lines {entity, rows}.

        A client that goes away ends it; the next start then builds what was not finished.
        """
        names = request.get("entities")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidData("entities: expected a list of names")
        clock = self._parts.clock
        said_s = clock.monotonic_s()
        built = []
        maintenance = self._parts.engine.maintenance
        for name in names:
            rows, after_id = 0, ""
            while True:
                count, after_id = maintenance.renew_search(name, after_id, _SEARCH_PORTION_ROWS)
                rows += count
                if not after_id:
                    break
                now_s = clock.monotonic_s()
                if now_s - said_s >= _PROGRESS_EVERY_S:
                    said_s = now_s
                    send_line({"entity": name, "rows": rows})
            built.append({"entity": name, "rows": rows})
        return {"entities": built}


def _follow(progress: Progress, send_line: SendLine) -> Line:
    """Send each line of a progress, and return the last one."""
    lines = progress.listen()
    while True:
        line = lines.get()
        if line.get("done"):
            return line
        send_line(line)
