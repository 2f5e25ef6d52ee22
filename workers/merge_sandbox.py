"""The merge sandbox of a worker: processes that merge updates on trial (`pylon.crdt.sandbox`).

A process takes one update at a time. Callers wait in turn and have at most one process each
(`pylon.admission`), so a client whose updates take long delays only itself. If a process dies over
an update, or exceeds the CPU time (`limits.SANDBOX_CPU_S`), the update is refused with 400, and the
next update gets a new process. A process that does not start, or gives no verdict in time, means
503.

Invariant: a call ends in a verdict on its own update. A process whose answer was not awaited is
ended, so that a later call cannot take that answer for its own.

Bound: limits.TASTERS processes for each HTTP and ws worker, started when needed. Metrics:
pylon_document_merge_checks_total, pylon_admission_queue_length{queue="merge"}. Called by
`pylon.api.sync.documents`, and by `workers.ws.documents` for documents with hidden history.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import subprocess  # its pipes let other greenlets run

from pylon import limits, metrics
from pylon.admission import Admission
from pylon.crdt.redaction import Run
from pylon.crdt.sandbox import LENGTH_BYTES, MergeRequest, RedactRequest, frame, verdicts
from pylon.errors import CrdtDecodeFailed, Unavailable
from pylon.errors.wire import WireError
from pylon.storage.interface import StoredDocument

if TYPE_CHECKING:
    from subprocess import Popen

_COMMAND: Final = (sys.executable, "-P", "-m", "pylon.crdt.sandbox")


class MergeSandbox:
    """The processes of one worker. `close` them at the end."""

    def __init__(self) -> None:
        self._admission = Admission("merge", limits.TASTERS, 1)
        self._all = [_SandboxProcess() for _ in range(limits.TASTERS)]
        self._free = list(self._all)

    def check_merge(self, parts: Sequence[bytes], update: bytes, caller: str) -> bytes:
        """The update to merge into the document of `parts`: `update`, or its new part.

        Args:
            caller: the subject (`pylon.rates`) whose share of the processes the call takes.

        Raises:
            CrdtDecodeFailed: it cannot, or ended the process.
            LimitExceeded: the document would be too large.
            Unavailable: too many wait, or there is no verdict.
        """
        return self._ask(MergeRequest(list(parts), update), caller) or update

    def shown(self, stored: StoredDocument, runs: Sequence[Run], caller: str) -> bytes:
        """A document without its hidden history (`pylon.crdt.document.shown`).

        Raises:
            CrdtDecodeFailed: it cannot be read, or ended the process.
            Unavailable: as for `check_merge`.
        """
        document = self._ask(RedactRequest(list(stored.parts), list(runs)), caller)
        if document is None:
            raise CrdtDecodeFailed("The document cannot be prepared")
        return document

    def _ask(self, request: MergeRequest | RedactRequest, caller: str) -> bytes | None:
        if not self._admission.enter(caller, limits.CALL_TIMEOUT_S):
            raise Unavailable("Too many documents wait", hint="Try again in a moment")
        taster = self._free.pop()
        try:
            answer = taster.ask(request)
        finally:
            self._free.append(taster)
            self._admission.leave(caller)
        is_error = isinstance(answer, WireError)
        metrics.DOCUMENT_MERGE_CHECKS.labels("refused" if is_error else "good").inc()
        if isinstance(answer, WireError):
            raise answer.to_exception()
        return answer

    def close(self) -> None:
        """End the processes."""
        for taster in self._all:
            taster.close()


class _SandboxProcess:
    """One process, or none yet."""

    __slots__ = ("process",)

    def __init__(self) -> None:
        self.process: Popen[bytes] | None = None

    def ask(self, request: MergeRequest | RedactRequest) -> WireError | bytes | None:
        done = False
        try:
            with gevent.Timeout(limits.CALL_TIMEOUT_S, False):
                process = self._running()
                answer = _answer_of(process, request)
                done = True
        except (OSError, EOFError):
            metrics.DOCUMENT_MERGE_CHECKS.labels("died").inc()
            raise CrdtDecodeFailed("The update cannot be merged") from None
        finally:
            if not done:  # also when this greenlet is killed meanwhile
                self.close()
        if not done:
            metrics.DOCUMENT_MERGE_CHECKS.labels("silent").inc()
            raise _no_verdict()
        return answer

    def close(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _running(self) -> Popen[bytes]:
        """The process, ready for an update.

        Raises:
            Unavailable: it does not start.
        """
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.close()
        try:
            process: Popen[bytes] = subprocess.Popen(
                (*_COMMAND, str(limits.SANDBOX_CPU_S)),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
            self.process = process
            _read(process)
        except (OSError, EOFError) as ex:
            raise _no_verdict() from ex
        return process


def _answer_of(
    process: Popen[bytes], request: MergeRequest | RedactRequest
) -> WireError | bytes | None:
    stdin: Any = process.stdin
    stdin.write(frame(request))
    stdin.flush()
    return _read(process)


def _read(process: Popen[bytes]) -> WireError | bytes | None:
    stdout: Any = process.stdout
    head = _exactly(stdout, LENGTH_BYTES)
    answer: WireError | bytes | None = verdicts.decode(
        _exactly(stdout, int.from_bytes(head, "big"))
    )
    return answer


def _no_verdict() -> Unavailable:
    return Unavailable("The update could not be tried", hint="Try again in a moment")


def _exactly(stream: Any, size_bytes: int) -> bytes:
    data: bytes = stream.read(size_bytes)
    if len(data) < size_bytes:
        raise EOFError
    return data
