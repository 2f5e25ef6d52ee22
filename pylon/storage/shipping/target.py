"""Target: which commit a restore brings back, and what it needs from the archive for that.

The newest commit at or before a time, or with a seq not above one. Names of objects tell the last
commit of a segment; only the segment in which the target lies is read.

Invariants: the target is a prefix of the history: it has every commit before it, and none after it.
A gap in the chain is never passed over: a target behind it needs `allow_gap`, and becomes the last
commit before it. Called by `materialize`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.shipping.catalogue import ArchivedSegment, ArchivedSnapshot, Generation
from pylon.storage.shipping.names import Position, show_time
from pylon.storage.shipping.segment import Commit

ReadCommits = Callable[[Generation, ArchivedSegment], list[Commit]]


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """What the operator asks for: a time (Unix, ms), or a seq, or neither: the newest commit."""

    at_ms: int | None = None
    seq: int | None = None

    def admits(self, seq: int, at_ms: int) -> bool:
        """Whether a commit is not after what is asked for."""
        if self.at_ms is not None and at_ms > self.at_ms:
            return False
        return self.seq is None or seq <= self.seq

    def __str__(self) -> str:
        if self.at_ms is not None:
            return f"at or before {show_time(self.at_ms)}"
        return "at all" if self.seq is None else f"with a seq up to {self.seq}"


@dataclass(frozen=True, slots=True)
class Target:
    """A commit: the snapshot to begin with, the segments to replay, and the last frame of the last
    one; without segments the snapshot itself. `gap`: why newer commits were left out, or ""."""

    generation: str
    snapshot: ArchivedSnapshot
    segments: tuple[ArchivedSegment, ...]
    last_frame: int
    seq: int
    at_ms: int
    gap: str = ""


def find_target(
    generations: Sequence[Generation], point: RestorePoint, read_commits: ReadCommits, *,
    allow_gap: bool = False,
) -> Target:
    """Choose.

    Args:
        read_commits: reads the commits of a segment.
        allow_gap: take the last commit before a gap.

    Raises:
        BackupRefused: the archive has no such commit.
        BackupInvalid: segments before it are missing; the text says which.
    """
    for generation in reversed(generations):
        snapshots = [
            each for each in generation.snapshots
            if point.admits(each.name.seq, each.name.at_ms)
        ]
        if snapshots:
            return _find_in(generation, snapshots[-1], point, read_commits, allow_gap=allow_gap)
    known = [each for generation in generations for each in generation.snapshots]
    if not known:
        raise BackupRefused("the archive has no complete snapshot, so that nothing can be restored")
    oldest = known[0].name
    raise BackupRefused(
        f"the archive has no commit {point}: its oldest is of {show_time(oldest.at_ms)}, seq "
        f"{oldest.seq}"
    )


def _find_in(
    generation: Generation, snapshot: ArchivedSnapshot, point: RestorePoint,
    read_commits: ReadCommits, *, allow_gap: bool,
) -> Target:
    chain, rest = _follow_chain(generation, snapshot)
    base = snapshot.name
    found = _last_commit(generation, chain, point, base.position, read_commits)
    last, seq, at_ms = -1, base.seq, base.at_ms
    if found is not None:
        last, seq, at_ms = found[0], found[1].seq, found[1].at_ms
    gap = ""
    # A missing segment may have what is asked for, unless the chain goes beyond that.
    is_open = not chain or point.admits(chain[-1].name.seq, chain[-1].name.at_ms)
    if is_open and any(each.name.end > base.position for each in rest):
        number = base.number + len(chain)
        gap = (
            f"segment {number} of generation {generation.name} is missing, and {len(rest)} newer "
            f"ones are there: commits after {show_time(at_ms)} (seq {seq}) cannot be restored"
        )
        if not allow_gap:
            raise BackupInvalid(gap, hint="--allow-gap restores the last commit before it")
    return Target(
        generation.name, snapshot, tuple(chain[: last + 1]),
        0 if found is None else found[1].frame, seq, at_ms, gap,
    )


def _follow_chain(
    generation: Generation, snapshot: ArchivedSnapshot
) -> tuple[list[ArchivedSegment], list[ArchivedSegment]]:
    """Return the segments from the snapshot on without a gap, and those behind the first gap."""
    later = [each for each in generation.segments if each.name.number >= snapshot.name.number]
    for index, segment in enumerate(later):
        name = segment.name
        before = later[index - 1].name if index else None
        fits = name.number == snapshot.name.number + index and (
            name.first == 1 if before is None or name.wal != before.wal
            else name.first == before.last + 1
        )
        if not fits:
            return later[:index], later[index:]
    return later, []


def _last_commit(
    generation: Generation, chain: Sequence[ArchivedSegment], point: RestorePoint, after: Position,
    read_commits: ReadCommits,
) -> tuple[int, Commit] | None:
    """Return the last commit that is asked for, behind the snapshot, and its segment's index.

    Only segments are read that may have it: from the one after the last that ends before the point,
    backwards. A large transaction leaves segments without a commit.
    """
    before = [i for i, each in enumerate(chain) if point.admits(each.name.seq, each.name.at_ms)]
    begin = min(len(chain) - 1, (before[-1] if before else -1) + 1)
    for index in range(begin, -1, -1):
        segment = chain[index]
        if segment.name.end <= after:
            break
        for commit in reversed(read_commits(generation, segment)):
            is_behind = Position(segment.name.wal, commit.frame) > after
            if is_behind and point.admits(commit.seq, commit.at_ms):
                return index, commit
    return None
