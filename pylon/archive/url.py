"""URLs of archives: `file:///folder` and `s3://bucket/prefix`.

Called by the supervisor (PYLON_BACKUP_URL) and by `pylonctl backup` and `pylonctl restore`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pylon.archive.interface import Archive
from pylon.errors import BackupRefused
from pylon.setting_values import archive_url


def is_archive_url(text: str) -> bool:
    """Whether a command's argument names an archive, and not a folder with a bundle."""
    return text.startswith(("file://", "s3://"))


def open_archive(url: str, access: Mapping[str, str]) -> Archive:
    """Return the archive at a URL. A folder is made with the first object.

    Args:
        access: the variables by which a bucket is reached (`Config.bucket_access`).

    Raises:
        BackupRefused: the URL names none.
        ArchiveUnavailable: a bucket without obstore, or without credentials.
    """
    try:
        parts = urlsplit(archive_url(url))
    except ValueError as ex:
        raise BackupRefused(f"{url} is no archive: {ex}") from None
    if parts.scheme == "file":
        from pylon.archive.folder import FolderArchive

        return FolderArchive(Path(unquote(parts.path)))
    from pylon.archive.bucket import BucketArchive

    return BucketArchive(parts.netloc, unquote(parts.path).strip("/"), access)
