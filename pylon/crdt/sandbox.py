"""The merge sandbox: a process that merges an untrusted update before the writer does.

It also prepares documents without their hidden history (`pylon.crdt.redaction`).

Loro may, very rarely, end its process over crafted bytes: Rust aborts on a panic during a panic.
The writer lives in the supervisor, so this process merges every update into the stored document
first. A slow or large merge would block every write there, so it runs here under CPU and memory
limits. If this process ends over an update, `workers.merge_sandbox` refuses the update and starts
another process for the next one.

Frames on stdin and stdout: four bytes of length (big-endian), then MessagePack. A request is a
`MergeRequest` or a `RedactRequest`. A reply is null, an error, or the bytes that replace the
update. A first reply without a request tells that the process is ready. The process ends with its
stdin, and by SIGPROF when a request exceeds its CPU time. The limit is CPU time, so that a busy
machine does not cause refusals. Loro prints its panics to stderr, which is /dev/null.

Bounds: the CPU seconds of the command line and `limits.SANDBOX_MEMORY_BYTES`. Run as
``python -m pylon.crdt.sandbox CPU_SECONDS`` by `workers.merge_sandbox`.
"""

from __future__ import annotations

import resource
import signal
import sys
from typing import BinaryIO, Final

import msgspec

from pylon import limits
from pylon.crdt.document import check, check_merge, find_new_changes, redact_document
from pylon.crdt.redaction import Run
from pylon.errors import CrdtDecodeFailed, PylonError
from pylon.errors.wire import WireError

LENGTH_BYTES: Final = 4


class MergeRequest(msgspec.Struct, frozen=True, array_like=True, tag="merge"):
    """A document's parts (a snapshot, then updates), and the update to merge into it."""

    parts: list[bytes]
    update: bytes


class RedactRequest(msgspec.Struct, frozen=True, array_like=True, tag="hidden"):
    """A document's parts, and the runs that were hidden from its reader (`redact_document`)."""

    parts: list[bytes]
    runs: list[Run]


def encode_frame(value: MergeRequest | RedactRequest | WireError | bytes | None) -> bytes:
    """Return a request or a reply as a frame."""
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


requests: Final = msgspec.msgpack.Decoder(MergeRequest | RedactRequest)
replies: Final = msgspec.msgpack.Decoder(WireError | bytes | None)


def _merged(request: MergeRequest) -> bytes | None:
    """Merge an update; return the update to use in its place, or None to use it as it is.

    Raises:
        CrdtDecodeFailed: Loro cannot merge it.
        LimitExceeded: the document would be too large.
    """
    check(request.update)
    if not request.parts:
        return None
    try:
        check_merge(request.parts, request.update)
    except CrdtDecodeFailed:
        # The client sent a whole history, with blanks for content that was hidden from it.
        new = find_new_changes(request.parts, request.update)
        check_merge(request.parts, new)
        return new
    return None


def serve(inbound: BinaryIO, outbound: BinaryIO, budget_s: float) -> None:
    """Serve requests until `inbound` ends. `budget_s` is the CPU time of each request."""
    outbound.write(encode_frame(None))
    outbound.flush()
    while head := inbound.read(LENGTH_BYTES):
        request = requests.decode(inbound.read(int.from_bytes(head, "big")))
        reply: WireError | bytes | None = None
        signal.setitimer(signal.ITIMER_PROF, budget_s)
        try:
            if isinstance(request, RedactRequest):
                reply = redact_document(request.parts, request.runs)
            else:
                reply = _merged(request)
        except PylonError as ex:
            reply = WireError.from_error(ex)
        signal.setitimer(signal.ITIMER_PROF, 0)
        outbound.write(encode_frame(reply))
        outbound.flush()


if __name__ == "__main__":
    memory_bytes = limits.SANDBOX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]))
