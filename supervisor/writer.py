"""The writer: the thread that owns the only read-write connection.

The writer takes the first message that comes and all messages that wait behind it, up to the bounds
of a batch. It commits them in one transaction, answers the workers, and publishes the changes. It
commits a lone write at once. Under load the batches grow, because messages gather while a commit
runs, and because the port lets the workers run before it takes a batch.

The engine may need milliseconds for each request about a large row. One transaction takes
`limits.BATCH_LARGE_BYTES` of large rows. The engine defers the other requests. Their calls wait
here and take turns, so that a long batch does not delay a single patch. While others write, large
rows rest after each turn as long as the turn took; so others have at least half of the time. The
writer refuses a call that has waited longer than its worker waits.

The writer publishes the changes of a commit (`supervisor.batch_publisher`), or hands them over to
the relay where several nodes write to one store.

Invariants: the writer answers and publishes nothing before its commit. It answers every request,
also when the engine raises an unforeseen error. Requests of one call keep their order. After
`limits.WRITER_FAILURES` unforeseen errors in a row the writer tells the supervisor to end. If the
store refuses a batch, the writer logs and counts the reason, and readiness reports it. A database
server that does not answer will be back: the writer keeps the calls and tries again, for `_HOLD_S`.
Metrics: pylon_write_queue_length, pylon_writes_deferred, pylon_writes_refused_total. Made by
`supervisor.main`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from itertools import chain, islice
from typing import Final, NamedTuple

from pylon import limits, log, metrics
from pylon.bus.messages import DocumentsChanged
from pylon.bus.runtime import Runtime
from pylon.bus.signals import PlainSignalSender
from pylon.bus.writer_port import LocalWriter, Peer, WriterPort
from pylon.clock import Clock, SystemClock
from pylon.errors import InternalError, PylonError, StoreUnavailable, WriterUnavailable
from pylon.errors.wire import WireError
from pylon.runtime import memory
from pylon.storage.events import ChangeBatch
from pylon.storage.interface import WriteEngine
from pylon.storage.ops import WriteReply, WriteRequest
from pylon.storage.public_rows import PublicRows
from pylon.storage.records import BatchRefusal, BatchResult
from supervisor.batch_publisher import BatchPublisher

Arrivals = list[tuple[Peer, list[WriteRequest]]]  # of one turn of the writer

_log = log.get_logger("writer")
_IDLE_S: Final = 10.0
_TRIM_IDLE_S: Final = 1.0  # without writes; then the memory of large rows goes back
_REST_MAX_S: Final = 0.25
_OTHERS_FRESH_S: Final = 1.0
_TRIM_PERIOD_S: Final = 1.0
_REFUSED_LOGGED_EVERY_S: Final = 10.0
_HOLD_S: Final = limits.WRITE_TIMEOUT_S - 5.0  # then the answer still reaches the worker in time
_HOLD_PAUSE_S: Final = 0.2
# Why a database refuses batches that it would take a moment later.
_PASSING_REASONS: Final = frozenset({"unavailable", "read_only", "busy"})
_REFUSED_FRESH_S: Final = 5.0  # then readiness is given again, so that writes are tried


class _Call(NamedTuple):
    """Requests of one call that are still to be carried out, in order."""

    peer: Peer
    requests: list[WriteRequest]
    since_s: float  # when they arrived, monotonic


class Writer:
    """The thread and its queues. `start` it first; `stop` it after the last worker has ended."""

    def __init__(
        self, runtime: Runtime, engine: WriteEngine, broken: Callable[[BaseException], None],
        rows: PublicRows, clock: Clock | None = None,
        hand_over: Callable[[ChangeBatch], None] | None = None,
        find_refusal: Callable[[], PylonError | None] = lambda: None,
    ) -> None:
        """
        Args:
            broken: called, in the thread, when the writer cannot go on.
            rows: removes the hidden fields from what is published.
            hand_over: takes the committed batches, where others write to the store too and a relay
                publishes the changes of all (`supervisor.relay`); None: the writer publishes.
            find_refusal: why no write is accepted now; asked before each batch.
        """
        self._clock = clock or SystemClock()
        self._runtime = runtime
        self._engine = engine
        self._broken = broken
        # PERF: on PostgreSQL a batch keeps the writers of other nodes out until its end. 8 MiB took
        # 1.2 to 2.2 s, 1 MiB 0.13 to 0.29, and 4 to 6 MB/s went through with both.
        self._port = WriterPort(
            runtime, limits.BATCH_BYTES if hand_over is None else limits.SHARED_BATCH_BYTES
        )
        self._publisher = (
            BatchPublisher(runtime, rows, self._clock) if hand_over is None else None
        )
        self._hand_over: Callable[[ChangeBatch], None] = hand_over or _no_batch
        self._find_refusal = find_refusal
        self._signals = PlainSignalSender(runtime)
        self._stopping = threading.Event()
        self._waker: LocalWriter | None = None  # from `start`
        self._failures = 0
        self._deferred: deque[_Call] = deque()
        self._rest_until_s = 0.0  # of the deferred
        self._held: deque[_Call] = deque()  # until the database answers again
        self._hold_until_s = 0.0
        self._others_at_s = float("-inf")  # when something else than large rows was changed
        self._trim_at_s = 0.0
        self._untrimmed_bytes = 0
        self._refusal: BatchRefusal | None = None  # the last one
        self._refused_at_s = float("-inf")  # unless a batch has been accepted since
        self._log_refused_at_s: dict[str, float] = {}  # by reason, not before
        self._gate = threading.Lock()  # held while a batch is applied
        self._closed_for: PylonError | None = None  # why every write is refused
        self.depth = 0  # requests taken and not yet answered
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        metrics.CHANGELOG_SEQ.set(engine.head)

    @property
    def head(self) -> int:
        """Return the newest committed seq."""
        return self._engine.head

    def start(self) -> None:
        # Connected now: when the writer is to stop, its socket may have vanished (`bus_watch`).
        self._waker = LocalWriter(self._runtime)
        self._thread.start()

    def stop(self) -> None:
        """Carry out what waits, then end the thread. The engine stays open. Idempotent."""
        if not self._thread.is_alive() or self._stopping.is_set():
            return
        self._stopping.set()
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(WriterUnavailable):  # it has seen that by itself, and ended
                waker.wake()
        self._thread.join()
        if waker is not None:
            waker.close()

    def refuse_writes(self, error: PylonError) -> None:
        """Refuse every write from now on; from any thread. No batch is under way on return."""
        with self._gate:
            self._closed_for = error

    def accept_writes(self) -> None:
        """Accept writes again."""
        with self._gate:
            self._closed_for = None

    def _run(self) -> None:
        while True:
            arrivals = self._port.receive(self._patience_s())
            if self._publisher is not None:
                self._publisher.publish_if_due()
            now_s = self._clock.monotonic_s()
            if self._held:
                self._held += _all_calls(arrivals, now_s)
                self._retry_held(now_s)
                continue
            is_resting = now_s < self._rest_until_s and not self._stopping.is_set()
            due = [] if is_resting else self._due(now_s)
            has_new = any(sent for _, sent in arrivals)
            if due or has_new:
                large_bytes = 0 if is_resting else limits.BATCH_LARGE_BYTES
                self._execute(due, arrivals, now_s, large_bytes)
            elif not arrivals and not self._deferred and self._stopping.is_set():
                break
            self._trim_memory(is_idle=not (due or has_new or self._deferred))
        self._port.close()
        if self._publisher is not None:
            self._publisher.close()
        self._signals.close()

    def _patience_s(self) -> float:
        """How long to wait for new requests."""
        if self._stopping.is_set():
            return 0.0
        wait_s = _TRIM_IDLE_S if self._untrimmed_bytes else _IDLE_S
        if self._held:
            wait_s = self._hold_until_s - self._clock.monotonic_s()
        elif self._deferred:
            wait_s = self._rest_until_s - self._clock.monotonic_s()
        publish_s = None if self._publisher is None else self._publisher.wait_s
        return max(0.0, wait_s if publish_s is None else min(wait_s, publish_s))

    def _due(self, now_s: float) -> list[_Call]:
        """The deferred call that goes into the next transaction, if there is one."""
        due: list[_Call] = []
        while self._deferred and not due:  # each may take the whole transaction's budget
            call = self._deferred.popleft()
            if now_s - call.since_s < limits.WRITE_TIMEOUT_S:
                due.append(call)
                continue
            self._refuse(call, WriterUnavailable(
                f"The writer did not come to this within {limits.WRITE_TIMEOUT_S:g} s",
                hint="Nothing was written: too many large rows are being changed",
            ))
        return due

    def _retry_held(self, now_s: float) -> None:
        """Try the held calls again if it is time, oldest first. Refuse those that have waited as
        long as a write may."""
        while self._held and now_s - self._held[0].since_s >= _HOLD_S:
            self._refuse(self._held.popleft(), StoreUnavailable(
                f"The database did not answer within {_HOLD_S:g} s; nothing was written",
                hint="Try again: the server goes on as soon as the database answers",
            ))
        if now_s < self._hold_until_s and not self._stopping.is_set():
            return
        due: list[_Call] = []
        count = 0
        while self._held and count < limits.BATCH_REQUESTS:
            due.append(self._held.popleft())
            count += len(due[-1].requests)
        if due:
            self._execute(due, [], now_s, limits.BATCH_LARGE_BYTES)

    def _must_hold(self, result: BatchResult) -> bool:
        """Whether a refused batch is to be tried again: nothing of it was written, and the database
        will be back."""
        if result.refusal is None or self._publisher is not None or self._stopping.is_set():
            return False
        error = result.replies[0].error if result.replies else None
        return (
            result.refusal.reason in _PASSING_REASONS
            and error is not None and error.code == StoreUnavailable.code
        )

    def _refuse(self, call: _Call, error: PylonError) -> None:
        refusal = WireError.from_error(error)
        self._port.reply(
            call.peer, [WriteReply(request.id, error=refusal) for request in call.requests]
        )

    def _execute(
        self, due: list[_Call], arrivals: Arrivals, now_s: float, large_bytes: int
    ) -> None:
        """Carry out the deferred requests and the new ones, in this order.

        Args:
            now_s: when the new ones arrived.
            large_bytes: how much of large rows the transaction takes.
        """
        requests = [request for call in due for request in call.requests]
        for _, sent in arrivals:
            requests += sent
        self._set_depth(len(requests))
        began_s = self._clock.monotonic_s()
        result = self._apply(requests, large_bytes)
        if self._must_hold(result):
            self._held.extendleft(reversed([*due, *_all_calls(arrivals, now_s)]))
            self._hold_until_s = self._clock.monotonic_s() + _HOLD_PAUSE_S
            metrics.WRITES_DEFERRED.set(len(self._held) + len(self._deferred))
            return
        if due or result.deferred:
            self._reply_to_calls(due, _all_calls(arrivals, now_s), result)
        else:
            self._reply(arrivals, result.replies)
        if result.batch is not None:  # who wrote need not wait for this
            metrics.CHANGELOG_SEQ.set(self._engine.head)
            if self._publisher is None:
                self._hand_over(result.batch)
            else:
                self._publisher.put(result.batch, is_large=result.large_bytes > 0)
        if result.documents:
            self._signals.send(DocumentsChanged())
        now_s = self._clock.monotonic_s()
        if len(result.replies) > result.large_rows:
            self._others_at_s = now_s
        if result.large_bytes:
            self._untrimmed_bytes += result.large_bytes
            if now_s - self._others_at_s < _OTHERS_FRESH_S:
                self._rest_until_s = now_s + min(now_s - began_s, _REST_MAX_S)
        metrics.WRITES_DEFERRED.set(len(self._deferred) + len(self._held))
        self._set_depth(0)

    def _reply(self, arrivals: Arrivals, replies: list[WriteReply]) -> None:
        """Answer requests of which none was deferred, in one message for each peer."""
        # PERF: without calls, which nearly no batch needs: they cost an insert 1 to 2 of 25 us.
        by_peer: dict[Peer, list[WriteReply]] = {}
        begin = 0
        for peer, sent in arrivals:
            end = begin + len(sent)
            if end > begin:
                by_peer.setdefault(peer, []).extend(replies[begin:end])
            begin = end
        for peer, own in by_peer.items():
            self._port.reply(peer, own)

    def _reply_to_calls(self, due: list[_Call], new: list[_Call], result: BatchResult) -> None:
        """Answer the finished requests, in one message for each peer. Queue the deferred ones: a
        call that had its turn, or is new, behind the waiting ones, and any other in front."""
        deferred_ids = {id(request) for request in result.deferred}
        replies = iter(result.replies)
        by_peer: dict[Peer, list[WriteReply]] = {}
        again: list[list[_Call]] = [[], []]
        for position, call in enumerate(chain(due, new)):
            left = [r for r in call.requests if id(r) in deferred_ids] if deferred_ids else []
            done = len(call.requests) - len(left)
            if done:
                by_peer.setdefault(call.peer, []).extend(islice(replies, done))
            if left:
                had_turn = done > 0 or position >= len(due)
                again[had_turn].append(_Call(call.peer, left, call.since_s))
        for peer, own in by_peer.items():
            self._port.reply(peer, own)
        self._deferred.extendleft(reversed(again[False]))
        self._deferred += again[True]

    def _trim_memory(self, *, is_idle: bool) -> None:
        """Give free memory back to the kernel after large rows: at once when idle, else not more
        often than once in a second."""
        if self._untrimmed_bytes < limits.MEMORY_TRIM_BYTES and not (
            is_idle and self._untrimmed_bytes
        ):
            return
        now_s = self._clock.monotonic_s()
        if is_idle or now_s >= self._trim_at_s:
            memory.give_back()
            self._untrimmed_bytes = 0
            self._trim_at_s = now_s + _TRIM_PERIOD_S

    def _set_depth(self, depth: int) -> None:
        self.depth = depth
        metrics.WRITE_QUEUE_DEPTH.set(depth)

    def _apply(self, requests: list[WriteRequest], large_bytes: int) -> BatchResult:
        try:
            with self._gate:
                error = self._closed_for
                if error is None and (error := self._find_refusal()) is not None:
                    metrics.WRITES_REFUSED.labels(error.code.lower()).inc(len(requests))
                if error is not None:
                    refusal = WireError.from_error(error)
                    return BatchResult(
                        [WriteReply(request.id, error=refusal) for request in requests], None, 0.0
                    )
                result = self._engine.apply(requests, large_bytes=large_bytes)
        except Exception as ex:  # noqa: BLE001  whatever it is, every caller must be answered
            return BatchResult(self._failed(ex, requests), None, 0.0)
        self._failures = 0
        if result.refusal is not None:
            self._note_refused(result.refusal, len(result.replies))
            return result
        self._refused_at_s = float("-inf")
        metrics.COMMIT.observe(result.commit_s)
        metrics.BATCH_SIZE.observe(len(result.replies))
        return result

    def _note_refused(self, refusal: BatchRefusal, count: int) -> None:
        """The store refused a batch: count it, and log it, each reason once in a while."""
        metrics.WRITES_REFUSED.labels(refusal.reason).inc(count)
        self._refusal = refusal
        now_s = self._refused_at_s = self._clock.monotonic_s()
        if now_s >= self._log_refused_at_s.get(refusal.reason, 0.0):
            self._log_refused_at_s[refusal.reason] = now_s + _REFUSED_LOGGED_EVERY_S
            _log.error("writes.refused", reason=refusal.reason, requests=count,
                       message=refusal.message)

    def find_problem(self) -> str | None:
        """Why the store refused the last batch, if that was just now; from any thread. Without
        the path, since /readyz shows it to everybody."""
        if self._closed_for is not None:
            return "writes are refused: the data are being moved to another database"
        refusal = self._refusal
        if refusal is None or self._clock.monotonic_s() - self._refused_at_s > _REFUSED_FRESH_S:
            return None
        return f"writes are refused ({refusal.reason}); the server's log says what to do"

    def _failed(self, error: Exception, requests: list[WriteRequest]) -> list[WriteReply]:
        self._failures += 1
        _log.exception("writer.failed", error=error, requests=len(requests),
                       failures_in_a_row=self._failures)
        if self._failures == limits.WRITER_FAILURES:
            self._broken(error)
        refusal = WireError.from_error(InternalError("The write failed; the server's log says why"))
        return [WriteReply(request.id, error=refusal) for request in requests]


def _no_batch(batch: ChangeBatch) -> None:
    raise AssertionError("a writer that publishes hands nothing over")


def _all_calls(arrivals: Arrivals, now_s: float) -> list[_Call]:
    return [call for peer, sent in arrivals for call in _calls_of(peer, sent, now_s)]


def _calls_of(peer: Peer, requests: list[WriteRequest], now_s: float) -> list[_Call]:
    """The calls of a message."""
    calls: list[_Call] = []
    begin = 0
    for position, request in enumerate(requests, 1):
        if not request.has_more:
            calls.append(_Call(peer, requests[begin:position], now_s))
            begin = position
    if begin < len(requests):
        calls.append(_Call(peer, requests[begin:], now_s))
    return calls
