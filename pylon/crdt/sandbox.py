"""The merge sandbox: a process that merges a client's update on trial, before the writer does.

It also prepares documents without their hidden history (`pylon.crdt.redaction`).

Loro may, very rarely, end its process over bytes that were made to do so: a panic during a panic
cannot be caught. The writer lives in the supervisor, so whatever reaches it has been merged here
before, into the document as it is stored; and what takes too long or too much memory here would
hold up all writes there. If this process ends over an update, that is refused
(`workers.merge_sandbox`), and the next one starts another.

Frames on stdin and stdout: four bytes of length (big-endian), then MessagePack. A request is a
`MergeRequest` or a `RedactRequest`; a reply is null, an error, or the bytes to go on with. A first
reply without a request says that it is ready. It ends with its stdin, and by SIGPROF when a request
takes more CPU time than it may: on a busy machine no update is to blame for the time that passes.
What Loro prints of its panics goes nowhere. Run as ``python -m pylon.crdt.sandbox CPU_SECONDS``.
"""

from __future__ import annotations

import resource
import signal
import sys
from typing import BinaryIO, Final

import msgspec

from pylon import limits
from pylon.crdt.document import check, check_merge, shown, without_known
from pylon.crdt.redaction import Run
from pylon.errors import CrdtDecodeFailed, PylonError
from pylon.errors.wire import WireError

LENGTH_BYTES: Final = 4


class MergeRequest(msgspec.Struct, frozen=True, array_like=True, tag="merge"):
    """A document's parts (a snapshot, then updates), and the update to merge into it."""

    parts: list[bytes]
    update: bytes


class RedactRequest(msgspec.Struct, frozen=True, array_like=True, tag="hidden"):
    """A document's parts, and what was hidden of it from its reader: see `document.shown`."""

    parts: list[bytes]
    runs: list[Run]


def frame(value: MergeRequest | RedactRequest | WireError | bytes | None) -> bytes:
    """A request or a reply as it travels."""
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


morsels: Final = msgspec.msgpack.Decoder(MergeRequest | RedactRequest)
verdicts: Final = msgspec.msgpack.Decoder(WireError | bytes | None)


def _merged(morsel: MergeRequest) -> bytes | None:
    """Merge an update on trial; what is to be merged in its place, if it cannot be as it is.

    Raises:
        CrdtDecodeFailed, LimitExceeded
    """
    check(morsel.update)
    if not morsel.parts:
        return None
    try:
        check_merge(morsel.parts, morsel.update)
    except CrdtDecodeFailed:
        # A whole history in which something is blank that its client was never shown.
        new = without_known(morsel.parts, morsel.update)
        check_merge(morsel.parts, new)
        return new
    return None


def serve(inbound: BinaryIO, outbound: BinaryIO, budget_s: float) -> None:
    """Taste until the other end is closed. `budget_s` is CPU time for each update."""
    outbound.write(frame(None))
    outbound.flush()
    while head := inbound.read(LENGTH_BYTES):
        morsel = morsels.decode(inbound.read(int.from_bytes(head, "big")))
        verdict: WireError | bytes | None = None
        signal.setitimer(signal.ITIMER_PROF, budget_s)
        try:
            if isinstance(morsel, RedactRequest):
                verdict = shown(morsel.parts, morsel.runs)
            else:
                verdict = _merged(morsel)
        except PylonError as ex:
            verdict = WireError.of(ex)
        signal.setitimer(signal.ITIMER_PROF, 0)
        outbound.write(frame(verdict))
        outbound.flush()


if __name__ == "__main__":
    memory_bytes = limits.SANDBOX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]))
