"""Names of the objects of a continuous backup: they tell order, place, seq and time.

    <generation>/segments/<number>-<wal>-<first>-<last>-<seq>-<at_ms>.seg
    <generation>/snapshots/<number>-<wal>-<frame>-<seq>-<at_ms>/<file of a bundle>

A generation's name begins with its time, so that names order generations. `number` counts the
segments of a generation from 1; of a snapshot it is that of the first segment to replay. `wal`
counts the lives of the write-ahead log: it begins anew after a restart. `first` and `last` are
frames in that life, from 1. `seq` and `at_ms` (Unix time in ms) are those of the last commit of a
segment, and of the moment of a snapshot. `.age` at the end: encrypted.

Invariants: names order objects as the chain does. A name that another program made is no object of
a backup, and is never deleted. Called by the modules of this package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

SEGMENTS: Final = "segments"
SNAPSHOTS: Final = "snapshots"
_GENERATION: Final = re.compile(r"\d{8}T\d{9}Z-[0-9a-f]{8}")
_SEGMENT: Final = re.compile(r"(\d{10})-(\d{6})-(\d{10})-(\d{10})-(\d+)-(\d+)\.seg(\.age)?")
_SNAPSHOT: Final = re.compile(r"(\d{10})-(\d{6})-(\d{10})-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the chain: the life of the log, and the frame in it."""

    wal: int
    frame: int


@dataclass(frozen=True, slots=True)
class SegmentName:
    """The name of a segment; see the module."""

    number: int
    wal: int
    first: int
    last: int
    seq: int
    at_ms: int
    is_encrypted: bool = False

    def __str__(self) -> str:
        return (
            f"{self.number:010d}-{self.wal:06d}-{self.first:010d}-{self.last:010d}-{self.seq}-"
            f"{self.at_ms}.seg" + (".age" if self.is_encrypted else "")
        )

    @property
    def end(self) -> Position:
        """Return the place of its last frame."""
        return Position(self.wal, self.last)


@dataclass(frozen=True, slots=True)
class SnapshotName:
    """The name of a snapshot; see the module."""

    number: int
    wal: int
    frame: int
    seq: int
    at_ms: int

    def __str__(self) -> str:
        return (
            f"{self.number:010d}-{self.wal:06d}-{self.frame:010d}-{self.seq}-{self.at_ms}"
        )

    @property
    def position(self) -> Position:
        """Return the earliest place that it can be brought to."""
        return Position(self.wal, self.frame)


def parse_segment(text: str) -> SegmentName | None:
    """Return the parts of a segment's name; None: it is none."""
    found = _SEGMENT.fullmatch(text)
    if found is None:
        return None
    number, wal, first, last, seq, at_ms = (int(part) for part in found.groups()[:6])
    return SegmentName(number, wal, first, last, seq, at_ms, found.group(7) is not None)


def parse_snapshot(text: str) -> SnapshotName | None:
    """Return the parts of a snapshot's name; None: it is none."""
    found = _SNAPSHOT.fullmatch(text)
    return None if found is None else SnapshotName(*(int(part) for part in found.groups()))


def is_generation(text: str) -> bool:
    """Whether a folder is a generation."""
    return _GENERATION.fullmatch(text) is not None


def make_generation(wall_ns: int, token: str, before: str) -> str:
    """Return the name of a new generation.

    Args:
        token: eight random hex digits.
        before: the name of the generation before, or ""; the new one is ordered behind it, also
            when the clock was set back.
    """
    ms = wall_ns // 1_000_000
    if before:
        ms = max(ms, _parse_ms(before) + 1)
    at = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{at:%Y%m%dT%H%M%S}{ms % 1000:03d}Z-{token}"


def show_time(at_ms: int) -> str:
    """Return a Unix time in ms as ISO 8601 in UTC."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def _parse_ms(generation: str) -> int:
    stamp = generation.partition("Z")[0]
    at = datetime.strptime(stamp[:-3], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return int(at.timestamp()) * 1000 + int(stamp[-3:])
