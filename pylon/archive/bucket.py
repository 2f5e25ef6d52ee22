"""An archive in an object store, `s3://bucket/prefix`: S3 and what speaks its protocol.

obstore (the extra `[s3]`) does the requests in its own threads, without Python's lock. The
credentials are where all tools of AWS look: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` in the
environment or the env file, a container or instance role, or a web identity. `AWS_ENDPOINT_URL` and
`AWS_REGION` name another place. So the URL has no secret.

Invariants: an object is listed after its last byte has arrived. Large files go in parts: memory
does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from pylon import limits
from pylon.archive.interface import ArchivedObject
from pylon.errors import ArchiveUnavailable

_ENDPOINT: Final = "AWS_ENDPOINT_URL"
_ACCESS: Final = (
    _ENDPOINT, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
_PART_BYTES: Final = 8 * 1024 * 1024
_DELETED_AT_ONCE: Final = 500
_MESSAGE_CHARS: Final = 300

T = TypeVar("T")


class BucketArchive:
    """See the module, and `Archive`."""

    def __init__(self, bucket: str, prefix: str, access: Mapping[str, str]) -> None:
        """
        Args:
            access: the variables `AWS_*`, of which `_ACCESS` count.

        Raises:
            ArchiveUnavailable: obstore is not installed, or its environment is not complete.
        """
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError:
            raise ArchiveUnavailable(
                "PYLON_BACKUP_URL names a bucket, and obstore is not installed",
                hint="pip install 'pylon-server[s3]'",
            ) from None
        self.place = f"s3://{bucket}/{prefix}".rstrip("/")
        self._obstore: Any = obstore
        self._prefix = prefix
        timeout = f"{limits.ARCHIVE_TIMEOUT_S}s"
        make_store: Any = S3Store  # its types want literals
        self._store: Any = self._attempt(lambda: make_store(
            bucket, prefix=prefix or None,
            client_options={
                "timeout": timeout, "connect_timeout": timeout,
                "allow_http": access.get(_ENDPOINT, "").startswith("http://"),
            },
            config={name.lower(): access[name] for name in _ACCESS if access.get(name)},
            retry_config={
                "max_retries": limits.ARCHIVE_RETRIES,
                "retry_timeout": timedelta(seconds=limits.ARCHIVE_TIMEOUT_S),
            },
        ))

    def put(self, name: str, source: Path) -> None:
        """See `Archive`."""
        self._attempt(lambda: self._obstore.put(
            self._store, name, source, chunk_size=_PART_BYTES, max_concurrency=2
        ))

    def get(self, name: str, target: Path) -> None:
        """See `Archive`."""

        def get() -> None:
            with target.open("xb") as file:
                for chunk in self._obstore.get(self._store, name).stream(_PART_BYTES):
                    file.write(chunk)

        self._attempt(get)

    def list_objects(self, prefix: str = "") -> list[ArchivedObject]:
        """See `Archive`."""

        def find() -> list[ArchivedObject]:
            found: list[ArchivedObject] = []
            for page in self._obstore.list(self._store, prefix or None):
                found += [ArchivedObject(each["path"], each["size"]) for each in page]
            return found

        return sorted(self._attempt(find), key=lambda each: each.name)

    def delete(self, names: Sequence[str]) -> None:
        """See `Archive`."""
        for begin in range(0, len(names), _DELETED_AT_ONCE):
            some = list(names[begin : begin + _DELETED_AT_ONCE])
            self._attempt(lambda some=some: self._delete_some(some))  # type: ignore[misc]

    def _delete_some(self, names: list[str]) -> None:
        try:
            self._obstore.delete(self._store, names)
        except FileNotFoundError:  # not of S3 itself, of some that speak its protocol
            return

    def _attempt(self, call: Callable[[], T]) -> T:
        """Call obstore. Its errors have one base, and some are Python's own."""
        from obstore.exceptions import BaseError

        try:
            return call()
        except (BaseError, OSError) as ex:
            text = " ".join(str(ex).split())[:_MESSAGE_CHARS]
            raise ArchiveUnavailable(f"the bucket {self.place} cannot be used: {text}") from ex
