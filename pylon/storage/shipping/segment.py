"""Segments: the file format of shipped frames.

    magic       12 bytes
    length      4 bytes, big-endian: of the head
    head        JSON, see `SegmentHead`
    frames      zstd
    digest      32 bytes: SHA-256 of all before

Invariant: a file that was cut or changed anywhere is found out (`read_segment`). Called by the
capture of a store and by restores.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pylon import limits
from pylon.errors import BackupInvalid

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAGIC: Final = b"PYLONSEGMT1\n"
_LENGTH_BYTES: Final = 4
_DIGEST_BYTES: Final = 32
_LEVEL: Final = 1
_MIN_BYTES: Final = len(_MAGIC) + _LENGTH_BYTES + _DIGEST_BYTES


class Commit(msgspec.Struct, frozen=True, array_like=True):
    """A commit: its last frame, the head of the change log, its Unix time in ms."""

    frame: int
    seq: int
    at_ms: int


class SegmentHead(msgspec.Struct, frozen=True):
    """The facts of a segment. `log_header` is the first 32 bytes of the log file, in hex."""

    generation: str
    number: int
    wal: int
    first: int
    last: int
    log_header: str
    size_bytes: int  # of the frames, not compressed
    commits: list[Commit]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment with its frames."""

    head: SegmentHead
    frames: bytes


def encode_segment(segment: Segment) -> bytes:
    """Return the bytes of the file."""
    head = msgspec.json.encode(segment.head)
    body = b"".join((
        _MAGIC, len(head).to_bytes(_LENGTH_BYTES, "big"), head,
        zstd.compress(segment.frames, level=_LEVEL),
    ))
    return body + hashlib.sha256(body).digest()


def decode_segment(data: bytes, name: str) -> Segment:
    """Parse the bytes of a file.

    Args:
        name: of the file, for the error.

    Raises:
        BackupInvalid: it was cut, changed, or is no segment.
    """
    if len(data) < _MIN_BYTES or not data.startswith(_MAGIC):
        raise BackupInvalid(f"{name} is no segment: it is cut short, or another file")
    body, digest = memoryview(data)[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise BackupInvalid(f"{name} is damaged: its SHA-256 differs from the one in the file")
    begin = len(_MAGIC) + _LENGTH_BYTES
    end = begin + int.from_bytes(body[len(_MAGIC) : begin], "big")
    try:
        head = msgspec.json.decode(body[begin:end], type=SegmentHead)
        if head.size_bytes > limits.SEGMENT_BYTES + limits.SEGMENT_SLACK_BYTES:
            raise BackupInvalid(f"{name} says that it has {head.size_bytes} bytes, too many")
        frames = zstd.decompress(body[end:])
    except (msgspec.MsgspecError, zstd.ZstdError) as ex:
        raise BackupInvalid(f"{name} cannot be read: {ex}") from None
    if len(frames) != head.size_bytes:
        raise BackupInvalid(f"{name} has {len(frames)} bytes of frames, not {head.size_bytes}")
    return Segment(head, frames)


def read_segment(path: Path, name: str) -> Segment:
    """Read and parse a file; see `decode_segment`."""
    return decode_segment(path.read_bytes(), name)
