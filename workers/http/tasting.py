"""Has updates of documents tasted by a process that may die of them (`pylon.crdt.taster`).

One process for each HTTP worker, started with the first push, one update at a time. An update
over which it ends, also for the CPU time that it takes (`limits.TASTE_S`), is refused: 400, and
the next one has a new process. A process that does not start, or gives no verdict in time, is
the machine's fault: 503. At most `limits.TASTES_WAITING` wait; more are told to come again.
Metric: pylon_document_tastes_total.

Invariant: a call ends in a verdict on its own update; a process whose answer was not waited for
is ended, so that its answer cannot be taken for another's. Called by `pylon.api.crdt`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.lock import BoundedSemaphore

from pylon import limits, metrics
from pylon.bus.messages import WriteError
from pylon.crdt.taster import LENGTH_BYTES, Morsel, frame, verdicts
from pylon.errors import CrdtDecodeFailed, Unavailable

if TYPE_CHECKING:
    from subprocess import Popen

_COMMAND: Final = (sys.executable, "-P", "-m", "pylon.crdt.taster")


class Tasting:
    """The taster of one process. `close` it at the end."""

    def __init__(self) -> None:
        self._process: Popen[bytes] | None = None
        self._turn = BoundedSemaphore(1)
        self._waiting = 0

    def taste(self, parts: Sequence[bytes], update: bytes) -> None:
        """Pass if `update` can be merged into the document of `parts`.

        Raises:
            CrdtDecodeFailed: it cannot, or ended the process.
            LimitExceeded: the document would be too large.
            Unavailable: too many wait, or there is no verdict.
        """
        if self._waiting >= limits.TASTES_WAITING:
            raise Unavailable("Too many document updates wait", hint="Try again in a moment")
        self._waiting += 1
        try:
            with self._turn:
                verdict = self._taste(Morsel(list(parts), update))
        finally:
            self._waiting -= 1
        metrics.DOCUMENT_TASTES.labels("good" if verdict is None else "refused").inc()
        if verdict is not None:
            raise verdict.to_exception()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _taste(self, morsel: Morsel) -> WriteError | None:
        done = False
        try:
            with gevent.Timeout(limits.CALL_TIMEOUT_S, False):
                process = self._running()
                verdict = _verdict_of(process, morsel)
                done = True
        except (OSError, EOFError):
            metrics.DOCUMENT_TASTES.labels("died").inc()
            raise CrdtDecodeFailed("The update cannot be merged") from None
        finally:
            if not done:  # also when this greenlet is killed meanwhile
                self.close()
        if not done:
            metrics.DOCUMENT_TASTES.labels("silent").inc()
            raise _no_verdict()
        return verdict

    def _running(self) -> Popen[bytes]:
        """The process, ready for an update.

        Raises:
            Unavailable: it does not start.
        """
        from gevent import subprocess  # its pipes let others run; loaded with the first push

        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        try:
            process: Popen[bytes] = subprocess.Popen(
                (*_COMMAND, str(limits.TASTE_S)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._process = process
            _read(process)
        except (OSError, EOFError) as ex:
            raise _no_verdict() from ex
        return process


def _verdict_of(process: Popen[bytes], morsel: Morsel) -> WriteError | None:
    stdin: Any = process.stdin
    stdin.write(frame(morsel))
    stdin.flush()
    return _read(process)


def _read(process: Popen[bytes]) -> WriteError | None:
    stdout: Any = process.stdout
    head = _exactly(stdout, LENGTH_BYTES)
    verdict: WriteError | None = verdicts.decode(
        _exactly(stdout, int.from_bytes(head, "big"))
    )
    return verdict


def _no_verdict() -> Unavailable:
    return Unavailable("The update could not be tried", hint="Try again in a moment")


def _exactly(stream: Any, size_bytes: int) -> bytes:
    data: bytes = stream.read(size_bytes)
    if len(data) < size_bytes:
        raise EOFError
    return data
