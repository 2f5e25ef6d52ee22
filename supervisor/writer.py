"""The writer: the thread that owns the only read-write connection.

It takes the first message that comes, then all that wait (up to the bounds of a batch),
carries them out in one transaction, publishes the changes, and answers everyone. It never
waits for more to come: a lone write is committed at once, and under load the batches grow by
themselves while a commit runs.

Invariants: nothing is answered or published before its commit; every request is answered,
also when the engine fails in a way that nobody foresaw. After `limits.WRITER_FAILURES` such
failures in a row the supervisor is told to end rather than to limp.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from pylon import limits, log, metrics
from pylon.bus.changes import ChangesPublisher
from pylon.bus.messages import DocumentsChanged, WriteError, WriteReply, WriteRequest
from pylon.bus.runtime import Runtime
from pylon.bus.signals import PlainSignalSender
from pylon.bus.writer_port import LocalWriter, Peer, WriterPort
from pylon.changelog.event import ChangeBatch
from pylon.errors import InternalError
from pylon.storage.contract import WriteEngine

_log = log.get_logger("writer")
_IDLE_S: Final = 1.0


class Writer:
    """`start` it, let others write, `stop` it when nobody writes any more."""

    def __init__(
        self, runtime: Runtime, engine: WriteEngine, broken: Callable[[BaseException], None]
    ) -> None:
        """Args: `broken` is told, from the thread, that the writer cannot go on."""
        self._runtime = runtime
        self._engine = engine
        self._broken = broken
        self._port = WriterPort(runtime)
        self._publisher = ChangesPublisher(runtime)
        self._signals = PlainSignalSender(runtime)
        self._stopping = threading.Event()
        self._failures = 0
        self.depth = 0  # requests taken and not yet answered
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        metrics.CHANGELOG_SEQ.set(engine.head)

    @property
    def head(self) -> int:
        """The newest seq that was committed."""
        return self._engine.head

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Carry out what waits, then end the thread. The engine stays open. Idempotent."""
        if not self._thread.is_alive() or self._stopping.is_set():
            return
        self._stopping.set()
        local = LocalWriter(self._runtime)
        local.wake()
        self._thread.join()
        local.close()

    def _run(self) -> None:
        while True:
            arrivals = self._port.receive(0.0 if self._stopping.is_set() else _IDLE_S)
            if arrivals:
                self._carry_out(arrivals)
            elif self._stopping.is_set():
                break
        self._port.close()
        self._publisher.close()
        self._signals.close()

    def _carry_out(self, arrivals: Sequence[tuple[Peer, list[WriteRequest]]]) -> None:
        requests = [request for _, sent in arrivals for request in sent]
        if not requests:
            return  # only a call to look around
        self._set_depth(len(requests))
        replies, batch, documents = self._apply(requests)
        begin = 0
        for peer, sent in arrivals:
            end = begin + len(sent)
            if sent:
                self._port.reply(peer, replies[begin:end])
            begin = end
        if batch is not None:  # who wrote need not wait for this
            metrics.CHANGELOG_SEQ.set(self._engine.head)
            self._publisher.publish(batch)
        if documents:
            self._signals.send(DocumentsChanged())
        self._set_depth(0)

    def _set_depth(self, depth: int) -> None:
        self.depth = depth
        metrics.WRITE_QUEUE_DEPTH.set(depth)

    def _apply(
        self, requests: list[WriteRequest]
    ) -> tuple[list[WriteReply], ChangeBatch | None, bool]:
        try:
            result = self._engine.apply(requests)
        except Exception as ex:  # noqa: BLE001  whatever it is, every caller must be answered
            return self._failed(ex, requests), None, False
        self._failures = 0
        metrics.COMMIT.observe(result.commit_s)
        metrics.BATCH_SIZE.observe(len(requests))
        return result.replies, result.batch, result.documents

    def _failed(self, error: Exception, requests: list[WriteRequest]) -> list[WriteReply]:
        self._failures += 1
        _log.exception("writer.failed", error=error, requests=len(requests),
                       failures_in_a_row=self._failures)
        if self._failures == limits.WRITER_FAILURES:
            self._broken(error)
        refusal = WriteError.of(InternalError("The write failed; the server's log says why"))
        return [WriteReply(request.id, error=refusal) for request in requests]
