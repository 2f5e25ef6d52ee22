"""Drain: ends a supervisor step by step, without losing an accepted request (design.md §8).

The steps, in this order:

1. /readyz answers 503, so that load balancers choose other servers. Other nodes place no shard on
   this one.
2. No worker accepts new connections.
3. The HTTP workers end, then the shards and identity workers, then the ws and sse workers.
4. The rooms and the writer end, which have no clients by then.
5. A running backup ends, and the flusher flushes the WAL of a database that is a file. The shipper
   uploads the rest of a continuous backup.

When the next run takes the listeners over (a reload of the whole server), the ws and sse workers
end first. So their clients come back at different times, and requests wait as shortly as possible:
they are answered until all sockets are closed, and then wait in the backlog. Sockets are closed
with 1012.

`Progress` gives each step to control clients and the log.

A second SIGTERM, or the deadline (PYLON_DRAIN_DELAY_S + PYLON_DRAIN_SECS +
`limits.DRAIN_GRACE_S`), cuts the drain short: the supervisor kills the remaining workers and
cancels a backup, which has `limits.BACKUP_CANCEL_S` to end. The writer still commits all requests
that it has accepted, and the flusher still flushes the WAL. It waits `limits.FLUSH_WAIT_S` for
readers of the database file, and logs those that stay.

Invariant: acknowledged writes are safe in every case. The exit code is 0 after a complete drain,
and 75 if it was cut short or the WAL could not be flushed. Called by `supervisor.main`.
"""

from __future__ import annotations

import signal
from typing import Final

from pylon import limits, log
from pylon.disk_errors import describe_os_error
from pylon.errors import PylonError
from pylon.roles import ROLES, drain_stages
from supervisor.components import Components
from supervisor.loop import Loop

EXIT_COMPLETE: Final = 0
EXIT_CUT_SHORT: Final = 75  # EX_TEMPFAIL

_POLL_S: Final = 0.05
_HANDSHAKE_S: Final = 0.05  # for handshakes that have begun, before the listeners close
_ARBITER_GRACE_S: Final = 2.0  # for an arbiter to end after its last worker
# gunicorn's arbiter stops accepting and ends with one signal, other roles with a port take two.
_ARBITERS: Final = tuple(role.name for role in ROLES if role.is_arbiter)
_SOCKET_ROLES: Final = tuple(
    role.name for role in ROLES if role.port is not None and not role.is_arbiter
)
_STREAM_ROLES: Final = tuple(
    role.name for role in ROLES if role.name in _SOCKET_ROLES and not role.is_exclusive
)

_log = log.get_logger("drain")


class Drain:
    """One drain. `run` blocks the main thread, and calls the loop's `pump` while it waits."""

    def __init__(self, parts: Components, loop: Loop, *, keeps_ports: bool = False) -> None:
        """`keeps_ports`: the listeners stay open, for the run that follows."""
        self._keeps_ports = keeps_ports
        self._parts = parts
        self._loop = loop
        self._started_s = parts.clock.monotonic_s()
        config = parts.config
        self._deadline_s = (
            self._started_s + config.drain_delay_s + config.drain_s + limits.DRAIN_GRACE_S
        )
        self._complete = True

    def run(self) -> int:
        """Run all steps in order, and return the exit code."""
        self._announce()
        if self._keeps_ports:
            self._parts.children.draining = True
            self._end(_STREAM_ROLES)
        self._stop_accepting()
        for roles in drain_stages():
            if self._keeps_ports and roles == _STREAM_ROLES:
                continue
            if roles == _ARBITERS:
                patience_s = self._parts.config.drain_s + _ARBITER_GRACE_S
                self._end(roles, patience_s, already_asked=True)
            else:
                self._end(roles)
        self._stop_writing()
        code = EXIT_COMPLETE if self._complete else EXIT_CUT_SHORT
        self._publish_step("ended", exit_code=code, done=True, ok=code == EXIT_COMPLETE)
        return code

    def _announce(self) -> None:
        delay_s = 0.0 if self._keeps_ports else self._parts.config.drain_delay_s
        self._publish_step("announced", delay_s=delay_s)
        self._loop.draining = True
        self._parts.generations.abandon()
        if self._parts.nodes is not None:
            self._parts.nodes.withdraw()
        if not self._keeps_ports:
            self._parts.notifier.stopping()
        self._parts.notifier.status("draining")
        self._loop.report()
        self._wait(delay_s)

    def _stop_accepting(self) -> None:
        children = self._parts.children
        children.draining = True
        if not self._keeps_ports and self._parts.listeners.refuse_handshakes():
            self._wait(_HANDSHAKE_S)
        children.send(_ARBITERS, signal.SIGTERM)
        children.send(_SOCKET_ROLES, signal.SIGUSR1)
        if not self._keeps_ports:
            self._parts.listeners.close()
        self._publish_step("not accepting", ports=list(self._parts.listeners.by_role))

    def _end(
        self, roles: tuple[str, ...], wait_s: float = float("inf"), *, already_asked: bool = False
    ) -> None:
        """Send SIGTERM to the workers of the roles, wait, and kill those that remain."""
        children = self._parts.children
        if not already_asked:
            with_code = [role for role in roles if self._keeps_ports and role in _SOCKET_ROLES]
            children.send(tuple(with_code), signal.SIGUSR2)
            children.send(tuple(set(roles) - set(with_code)), signal.SIGTERM)
        until_s = min(self._now_s() + wait_s, self._deadline_s)
        tell_at_s = self._now_s() + limits.DRAIN_REPORT_S
        while children.alive(roles) and self._now_s() < until_s and not self._hurried():
            self._loop.pump(_POLL_S)
            if self._now_s() >= tell_at_s:
                tell_at_s += limits.DRAIN_REPORT_S
                self._tell_waiting(roles, until_s)
        left = children.alive(roles)
        if left:
            # A drain that was cut short, or has passed its deadline, gives no role more time.
            if self._hurried():
                children.kill_all()
            else:
                children.kill(roles)
            self._complete = False
        self._publish_step(f"{' and '.join(roles)} ended", killed=left)

    def _tell_waiting(self, roles: tuple[str, ...], until_s: float) -> None:
        """Report which workers the drain waits for, and how many clients each still serves."""
        beats = [beat for role in roles for beat in self._parts.heartbeats.list_beats(role)]
        self._publish_step(
            f"waiting for {' and '.join(roles)}",
            connections={f"{b.role}/{b.worker}": b.connections for b in beats},
            longest_s=round(until_s - self._now_s(), 1),
        )

    def _stop_writing(self) -> None:
        parts = self._parts
        parts.rooms.stop()
        if parts.nodes is not None:
            parts.nodes.stop()
        parts.flusher.stop()
        try:
            parts.engine.maintenance.end_run()
        except PylonError as ex:
            # The disk may be full. Without the mark the next start assumes a crash, which is safe.
            _log.error("drain.not_marked", code=ex.code, message=ex.message)
        parts.writer.stop()
        if parts.relay is not None:
            parts.relay.stop()
        self._publish_step("writer stopped", head_seq=parts.head)
        self._end_backup()
        if parts.shipper is not None:  # it may be reading the database for a snapshot
            parts.shipper.stop()
        self._flush()
        self._finish_shipping()

    def _end_backup(self) -> None:
        """Cancel a backup that still reads the database, and wait until it has closed the file."""
        pid = self._parts.backups.end_copy(0.0)
        if pid is None:
            return
        until_s = self._now_s() + limits.BACKUP_CANCEL_S
        while pid is not None and self._now_s() < until_s:
            self._loop.pump(0.0)
            pid = self._parts.backups.end_copy(_POLL_S)
        if pid is not None:
            _log.error("drain.backup_left", pid=pid, waited_s=limits.BACKUP_CANCEL_S)
        self._publish_step("backup cancelled", left=int(pid is not None))

    def _flush(self) -> None:
        parts = self._parts
        flushed = False
        until_s = self._now_s() + limits.FLUSH_WAIT_S
        try:
            while not (flushed := parts.flusher.flush_all()) and self._now_s() < until_s:
                self._loop.pump(_POLL_S)
            readers = [] if flushed else parts.engine.maintenance.list_blockers()
            sizes = parts.engine.maintenance.sizes()
            parts.engine.close()
            parts.store.sync()
        except (PylonError, OSError) as ex:
            # Everything acknowledged is in the WAL, which the next start reads: report it.
            text = describe_os_error(ex) if isinstance(ex, OSError) else ex.message
            _log.error("drain.not_flushed", error=text, database=parts.store.place,
                       hint="nothing is lost: the next start reads the WAL beside the database; "
                       "make the disk writable, and do not copy the file without its -wal")
            flushed = False
        else:
            if not flushed:
                _log.error(
                    "drain.wal_held", readers=readers,
                    waited_s=limits.FLUSH_WAIT_S, wal_bytes=sizes.wal_bytes,
                    hint="these processes read the database file; nothing is lost, the next "
                    "start reads the WAL, but the file must not be copied without its -wal",
                )
        self._complete = self._complete and flushed
        if parts.relay is None:
            self._publish_step("flushed", wal_truncated=flushed)
        else:
            self._publish_step("database closed")

    def _finish_shipping(self) -> None:
        """Upload what the last checkpoint has captured. What still waits, the next start uploads:
        it does not make the drain incomplete."""
        parts = self._parts
        if parts.capture is None or parts.shipper is None:
            return
        parts.capture.close()
        self._publish_step("backup shipped", waiting=parts.shipper.finish())

    def _wait(self, delay_s: float) -> None:
        until_s = self._now_s() + delay_s
        while self._now_s() < until_s and not self._hurried():
            self._loop.pump(min(_POLL_S, max(0.0, until_s - self._now_s())))

    def _hurried(self) -> bool:
        return self._loop.cut_short or self._now_s() >= self._deadline_s

    def _now_s(self) -> float:
        return self._parts.clock.monotonic_s()

    def _publish_step(self, step: str, **keys: object) -> None:
        at_s = round(self._now_s() - self._started_s, 3)
        _log.info("drain", step=step, at_s=at_s, **{k: v for k, v in keys.items() if k != "done"})
        self._parts.progress.publish(step=step, at_s=at_s, **keys)
