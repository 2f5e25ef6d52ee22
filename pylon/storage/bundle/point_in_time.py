"""Bundles of a point in time: makes a bundle of one commit from the archive of a continuous backup.

It downloads the snapshot before the commit, checks it, replays the segments up to the commit, runs
the integrity check, and writes a bundle, which `restore` and `verify` take like any other.

Invariants: the archive is only read. Memory does not grow with the database: one segment at a time.
Called by `pylonctl restore`, `pylonctl backup verify` and `pylonctl backup drill`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pylon.archive.interface import Archive
from pylon.errors import BackupInvalid, BackupRefused
from pylon.private_folders import collect_dead_folders, make_private_folder, remove_private_folder
from pylon.storage.backups import BackupManager
from pylon.storage.bundle.contents import SQLITE
from pylon.storage.bundle.encrypted import ARCHIVE, Decryption, open_encrypted
from pylon.storage.bundle.sealed import open_sealed
from pylon.storage.bundle.verify import check_bundle
from pylon.storage.shipping.catalogue import ArchivedSegment, Generation, read_catalogue
from pylon.storage.shipping.segment import Commit, Segment, decode_segment
from pylon.storage.shipping.target import RestorePoint, Target, find_target

_PREFIX: Final = "pylon-restore-"
_PATTERNS: Final = ("*/*", "*")


class PointInTime(msgspec.Struct, frozen=True):
    """A bundle in clear, the commit that it is of, and the segments that were replayed."""

    bundle: Path
    target: Target
    seq: int  # as the database says


@contextmanager
def restore_workspace(parent: Path | None) -> Iterator[Path]:
    """Make a private folder for a bundle, and remove it after the block. The next one removes those
    of killed processes.

    Args:
        parent: where to make it; None: where temporary files are.
    """
    collect_dead_folders(_PREFIX, _PATTERNS, parent)
    folder = make_private_folder(_PREFIX, parent)
    try:
        yield folder
    finally:
        remove_private_folder(folder, _PATTERNS)


class PointInTimeReader:
    """Makes bundles from one archive. `identities`: age identities, for an encrypted one."""

    def __init__(self, archive: Archive, folder: Path, identities: tuple[str, ...] = ()) -> None:
        """`folder`: an empty one, for everything that is downloaded."""
        self._archive = archive
        self._folder = folder
        self._identities = identities

    def make_bundle(
        self, point: RestorePoint, backups: BackupManager, *, allow_gap: bool = False
    ) -> PointInTime:
        """Make the bundle of a commit.

        Args:
            backups: of the store that the archive is of.
            allow_gap: take the last commit before a gap in the chain.

        Raises:
            BackupRefused: the archive has no such commit, or needs an identity.
            BackupInvalid: something of it is missing or damaged; the text says what.
            ArchiveUnavailable
            OSError: the disk refused.
        """
        target = find_target(
            read_catalogue(self._archive), point, self._read_commits, allow_gap=allow_gap
        )
        plain = self._fetch_snapshot(target)
        contents = check_bundle(plain, SQLITE)
        if not target.segments:
            return PointInTime(plain, target, contents.seq)
        segments = (self._read(target.generation, each) for each in target.segments)
        made = self._folder / "bundle"
        report = backups.replay(plain, segments, target.last_frame, made)
        return PointInTime(made, target, report.seq)

    def _fetch_snapshot(self, target: Target) -> Path:
        folder = self._folder / "snapshot"
        folder.mkdir(mode=0o700)
        for each in target.snapshot.files:
            self._archive.get(each.name, folder / each.name.rsplit("/", 1)[1])
        if not (folder / ARCHIVE).is_file():
            return folder
        self._require_identities(target.snapshot.files[0].name)
        plain = self._folder / "plain"
        open_encrypted(folder, Decryption(identities=self._identities), plain)
        return plain

    def _read_commits(self, generation: Generation, segment: ArchivedSegment) -> list[Commit]:
        return self._read(generation.name, segment).head.commits

    def _read(self, generation: str, segment: ArchivedSegment) -> Segment:
        """Download a segment, and check that it is the one that its name says."""
        name = segment.object.name
        path = self._folder / "segment"
        path.unlink(missing_ok=True)
        self._archive.get(name, path)
        data = path.read_bytes()
        path.unlink()
        if segment.name.is_encrypted:
            self._require_identities(name)
            data = open_sealed(data, self._identities, name)
        read = decode_segment(data, name)
        head, said = read.head, segment.name
        if (head.generation, head.number, head.wal, head.first, head.last) != (
            generation, said.number, said.wal, said.first, said.last
        ):
            raise BackupInvalid(f"{name} is segment {head.number} of {head.generation}, renamed")
        return read

    def _require_identities(self, name: str) -> None:
        if not self._identities:
            raise BackupRefused(
                f"{name} was encrypted for age recipients: give an identity file (--identity)"
            )
