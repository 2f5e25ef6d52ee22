"""The merge sandbox of a worker: processes that merge untrusted updates (`pylon.crdt.sandbox`).

A process serves one request at a time. Callers wait in turn and have at most one process each
(`pylon.admission`), so a client with slow updates delays only itself. If a process dies over an
update, or exceeds its CPU time (`limits.SANDBOX_CPU_S`), the call refuses the update with 400, and
the next call starts a new process. A process that does not start, or does not reply in time, means
503.

Invariant: a call returns the reply to its own request. A call that gives up ends its process, so
that no later call reads that reply.

Bound: `limits.SANDBOX_PROCESSES` processes for each HTTP and ws worker, started on demand. Metrics:
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
from pylon.crdt.sandbox import LENGTH_BYTES, MergeRequest, RedactRequest, encode_frame, replies
from pylon.errors import CrdtDecodeFailed, Unavailable
from pylon.errors.wire import WireError
from pylon.storage.records import StoredDocument

if TYPE_CHECKING:
    from subprocess import Popen

_COMMAND: Final = (sys.executable, "-P", "-m", "pylon.crdt.sandbox")


class MergeSandbox:
    """The sandbox processes of one worker. Call `close` at the end."""

    def __init__(self) -> None:
        self._admission = Admission("merge", limits.SANDBOX_PROCESSES, 1)
        self._all = [_SandboxProcess() for _ in range(limits.SANDBOX_PROCESSES)]
        self._free = list(self._all)

    def check_merge(self, parts: Sequence[bytes], update: bytes, caller: str) -> bytes:
        """Check an update against the document of `parts`; return the update to merge.

        That is `update`, or only its new changes.

        Args:
            caller: the subject (`pylon.rates`) whose share of the processes the call takes.

        Raises:
            CrdtDecodeFailed: Loro cannot merge the update, or it ended the process.
            LimitExceeded: the document would be too large.
            Unavailable: too many calls wait, or the process did not reply.
        """
        return self._ask(MergeRequest(list(parts), update), caller) or update

    def redact(self, stored: StoredDocument, runs: Sequence[Run], caller: str) -> bytes:
        """Return a document without its hidden history (`pylon.crdt.document.redact_document`).

        Raises:
            CrdtDecodeFailed: Loro cannot read the document, or it ended the process.
            Unavailable: as for `check_merge`.
        """
        document = self._ask(RedactRequest(list(stored.parts), list(runs)), caller)
        if document is None:
            raise CrdtDecodeFailed("The document cannot be prepared")
        return document

    def _ask(self, request: MergeRequest | RedactRequest, caller: str) -> bytes | None:
        if not self._admission.enter(caller, limits.CALL_TIMEOUT_S):
            raise Unavailable("Too many documents wait", hint="Try again in a moment")
        process = self._free.pop()
        try:
            answer = process.ask(request)
        finally:
            self._free.append(process)
            self._admission.leave(caller)
        is_error = isinstance(answer, WireError)
        metrics.DOCUMENT_MERGE_CHECKS.labels("refused" if is_error else "good").inc()
        if isinstance(answer, WireError):
            raise answer.to_exception()
        return answer

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.close()


class _SandboxProcess:
    """One process, which the first request starts."""

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
            if not done:  # also if this greenlet was killed
                self.close()
        if not done:
            metrics.DOCUMENT_MERGE_CHECKS.labels("silent").inc()
            raise _no_reply()
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
        """Return the process, started and ready for a request.

        Raises:
            Unavailable: the process does not start.
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
            raise _no_reply() from ex
        return process


def _answer_of(
    process: Popen[bytes], request: MergeRequest | RedactRequest
) -> WireError | bytes | None:
    stdin: Any = process.stdin
    stdin.write(encode_frame(request))
    stdin.flush()
    return _read(process)


def _read(process: Popen[bytes]) -> WireError | bytes | None:
    stdout: Any = process.stdout
    head = _exactly(stdout, LENGTH_BYTES)
    answer: WireError | bytes | None = replies.decode(
        _exactly(stdout, int.from_bytes(head, "big"))
    )
    return answer


def _no_reply() -> Unavailable:
    return Unavailable("The update could not be tried", hint="Try again in a moment")


def _exactly(stream: Any, size_bytes: int) -> bytes:
    data: bytes = stream.read(size_bytes)
    if len(data) < size_bytes:
        raise EOFError
    return data
