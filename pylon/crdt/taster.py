"""The taster: a process that merges a client's update before the writer does.

Loro may, very rarely, end its process over bytes that were made to do so: a panic during a panic
cannot be caught. The writer lives in the supervisor, so whatever reaches it has been merged here
before, into the document as it is stored; and what takes too long or too much memory here would
hold up all writes there. If this process ends over an update, that is refused
(`workers.http.tasting`), and the next one starts another.

Frames on stdin and stdout: four bytes of length (big-endian), then MessagePack. A request is the
stored document's parts and the update, a reply is null or an error; a first reply without a
request says that it is ready. It ends with its stdin, and by SIGPROF when an update takes more
CPU time than it may: on a busy machine no update is to blame for the time that passes. What Loro
prints of its panics goes nowhere. Run as ``python -m pylon.crdt.taster CPU_SECONDS``.
"""

from __future__ import annotations

import resource
import signal
import sys
from typing import BinaryIO, Final

import msgspec

from pylon import limits
from pylon.bus.messages import WriteError
from pylon.crdt.document import check, check_merge
from pylon.errors import PylonError

LENGTH_BYTES: Final = 4


class Morsel(msgspec.Struct, frozen=True, array_like=True):
    """A document's parts (a snapshot, then updates), and the update to merge into it."""

    parts: list[bytes]
    update: bytes


def frame(value: Morsel | WriteError | None) -> bytes:
    """A request or a reply as it travels."""
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


morsels: Final = msgspec.msgpack.Decoder(Morsel)
verdicts: Final = msgspec.msgpack.Decoder(WriteError | None)


def serve(inbound: BinaryIO, outbound: BinaryIO, budget_s: float) -> None:
    """Taste until the other end is closed. `budget_s` is CPU time for each update."""
    outbound.write(frame(None))
    outbound.flush()
    while head := inbound.read(LENGTH_BYTES):
        morsel = morsels.decode(inbound.read(int.from_bytes(head, "big")))
        verdict: WriteError | None = None
        signal.setitimer(signal.ITIMER_PROF, budget_s)
        try:
            check(morsel.update)
            if morsel.parts:
                check_merge(morsel.parts, morsel.update)
        except PylonError as ex:
            verdict = WriteError.of(ex)
        signal.setitimer(signal.ITIMER_PROF, 0)
        outbound.write(frame(verdict))
        outbound.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (limits.TASTER_BYTES, limits.TASTER_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]))
