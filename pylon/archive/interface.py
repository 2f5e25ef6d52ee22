"""The interface of an archive: named objects that appear complete or not at all.

A name has parts with slashes between, as `a/b/c.seg`. An object that is listed is complete: a
folder renames a synced temporary file, a bucket shows an object after its last part. Every call may
block for the time of the network, and raises `ArchiveUnavailable` when the place does not answer.

Implemented by `folder` and `bucket`, made by `url`. Called by the shipper and by `pylonctl backup`
and `restore`. An archive is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """One object of a listing."""

    name: str
    size_bytes: int


class Archive(Protocol):
    """See the module. `place` names it for people, without secrets."""

    place: str

    def put(self, name: str, source: Path) -> None:
        """Store the file `source` as `name`, in place of an object of that name.

        Raises:
            ArchiveUnavailable
        """

    def get(self, name: str, target: Path) -> None:
        """Write the object `name` to the file `target`, which must be missing.

        Raises:
            ArchiveUnavailable: also when there is no such object.
        """

    def list_objects(self, prefix: str = "") -> list[ArchivedObject]:
        """Return the objects whose names begin with `prefix`, which is empty or ends with a slash;
        ordered by name.

        Raises:
            ArchiveUnavailable
        """

    def delete(self, names: Sequence[str]) -> None:
        """Delete these objects; a missing one is no error.

        Raises:
            ArchiveUnavailable
        """
