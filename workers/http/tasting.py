"""Has updates of documents tasted by a process that may die of them (`pylon.crdt.taster`).

One process for each HTTP worker, started with the first push, one update at a time. An update
over which it ends, or for which it takes longer than `limits.TASTE_S`, is refused: 400, and the
next one has a new process. At most `limits.TASTES_WAITING` wait; more are told to come again.
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
            CrdtDecodeFailed: it cannot, ended the process, or took too long.
            LimitExceeded: the document would be too large.
            Unavailable: too many wait.
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
        process = self._running()
        stdin: Any = process.stdin
        stdout: Any = process.stdout
        done = False
        try:
            with gevent.Timeout(limits.TASTE_S, False):
                stdin.write(frame(morsel))
                stdin.flush()
                head = _exactly(stdout, LENGTH_BYTES)
                body = _exactly(stdout, int.from_bytes(head, "big"))
                verdict: WriteError | None = verdicts.decode(body)
                done = True
        except (OSError, EOFError):
            metrics.DOCUMENT_TASTES.labels("died").inc()
            raise CrdtDecodeFailed("The update cannot be merged") from None
        finally:
            if not done:  # also when this greenlet is killed meanwhile
                self.close()
        if not done:
            metrics.DOCUMENT_TASTES.labels("slow").inc()
            raise CrdtDecodeFailed(
                f"Merging the update takes longer than {limits.TASTE_S:g} s",
                hint="Take a new copy of the document with crdt-subscribe, and push less at once",
            )
        return verdict

    def _running(self) -> Popen[bytes]:
        from gevent import subprocess  # its pipes let others run; loaded with the first push

        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process


def _exactly(stream: Any, size_bytes: int) -> bytes:
    data: bytes = stream.read(size_bytes)
    if len(data) < size_bytes:
        raise EOFError
    return data
