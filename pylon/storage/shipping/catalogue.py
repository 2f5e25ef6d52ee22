"""Catalogue: what an archive has: generations, their snapshots and their segments.

Invariants: a snapshot counts once its `MANIFEST.json` is there, which is uploaded last. Of two
segments with one number, which a crash can leave, the longer one counts: it has the other one's
frames. Called by restores, the retention and `pylonctl backup`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from pylon.archive.interface import Archive, ArchivedObject
from pylon.storage.shipping.names import (
    SEGMENTS,
    SNAPSHOTS,
    SegmentName,
    SnapshotName,
    is_generation,
    parse_segment,
    parse_snapshot,
)

_COMPLETE: Final = ("MANIFEST.json", "bundle.tar.age")  # the last file of a bundle


@dataclass(frozen=True, slots=True)
class ArchivedSegment:
    """A segment of an archive."""

    name: SegmentName
    object: ArchivedObject


@dataclass(frozen=True, slots=True)
class ArchivedSnapshot:
    """A snapshot of an archive. `files`: the objects of its bundle."""

    name: SnapshotName
    files: tuple[ArchivedObject, ...]

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(each.size_bytes for each in self.files)


@dataclass(frozen=True, slots=True)
class Generation:
    """A chain of segments, ordered, and its complete snapshots, ordered. `unfinished`: objects of
    snapshots whose upload has not ended, and segments that a longer one replaces."""

    name: str
    segments: tuple[ArchivedSegment, ...]
    snapshots: tuple[ArchivedSnapshot, ...]
    unfinished: tuple[ArchivedObject, ...] = ()


def read_catalogue(archive: Archive) -> list[Generation]:
    """Return all generations, oldest first.

    Raises:
        ArchiveUnavailable
    """
    by_generation: dict[str, list[ArchivedObject]] = defaultdict(list)
    for each in archive.list_objects():
        generation, _, rest = each.name.partition("/")
        if rest and is_generation(generation):
            by_generation[generation].append(each)
    return [_sort(name, objects) for name, objects in sorted(by_generation.items())]


def _sort(generation: str, objects: list[ArchivedObject]) -> Generation:
    segments: dict[int, ArchivedSegment] = {}
    bundles: dict[SnapshotName, list[ArchivedObject]] = defaultdict(list)
    unfinished: list[ArchivedObject] = []
    for each in objects:
        parts = each.name.split("/")
        if len(parts) == 3 and parts[1] == SEGMENTS:
            name = parse_segment(parts[2])
            if name is None:
                continue
            other = segments.get(name.number)
            if other is None or other.name.end < name.end:
                segments[name.number] = ArchivedSegment(name, each)
            if other is not None:
                unfinished.append(other.object if other.name.end < name.end else each)
        elif len(parts) == 4 and parts[1] == SNAPSHOTS:
            snapshot = parse_snapshot(parts[2])
            if snapshot is not None:
                bundles[snapshot].append(each)
    complete: list[ArchivedSnapshot] = []
    for snapshot, files in bundles.items():
        if any(file.name.rsplit("/", 1)[1] in _COMPLETE for file in files):
            complete.append(ArchivedSnapshot(snapshot, tuple(files)))
        else:
            unfinished += files
    return Generation(
        generation,
        tuple(segments[number] for number in sorted(segments)),
        tuple(sorted(complete, key=lambda each: (each.name.position, each.name.at_ms))),
        tuple(unfinished),
    )
