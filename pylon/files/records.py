"""Records of files: the table `files`, as values and as operations of the writer.

A record is *pending* from the beginning of an upload that takes several requests until its bytes
are complete, and *ready* afterwards. A pending record has the size that its client has declared, so
it counts for the quota of its owner; it expires. A ready one never changes but for its name,
`is_public`, and the row that it is attached to.

Invariant: each change names the state that it expects, so of two requests one is refused. Called by
`pylon.api.files` and `pylonctl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Final

from pylon.errors import FileQuotaExceeded, PylonError
from pylon.files.names import key_of
from pylon.storage.auth_ops import (
    Condition,
    DropRecords,
    LimitRecords,
    PutRecord,
    RecordOp,
    SetRecords,
)
from pylon.storage.auth_tables import Value
from pylon.storage.interface import Store
from pylon.storage.ops import Transact, WriteReply

TABLE: Final = "files"
PENDING: Final = "pending"
READY: Final = "ready"
_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file. `size_bytes` of a pending one: as declared, 0 if the client did not say.

    `entity`, `row_id` and `field` name the row that it is attached to. `meta`: JSON text.
    """

    id: str
    owner: str | None
    tenant_id: str | None
    name: str
    type: str
    size_bytes: int
    sha256: str | None
    state: str
    is_public: bool
    created_at_s: int
    expires_at_s: int | None = None
    entity: str | None = None
    row_id: str | None = None
    field: str | None = None
    attached_at_s: int | None = None
    meta: str | None = None

    @property
    def etag(self) -> str:
        """Return the ETag of the bytes."""
        return f'"sha256-{self.sha256}"'


def record_of(values: dict[str, Value]) -> FileRecord:
    """Return a record from its columns."""
    found: dict[str, Any] = values
    return FileRecord(
        found["id"], found["owner"], found["tenant_id"], found["name"], found["type"],
        found["size"], found["sha256"], found["state"], bool(found["public"]),
        found["created_at"], found["expires_at"], found["entity"], found["row_id"],
        found["field"], found["attached_at"], found["meta"],
    )


def find_record(store: Store, file_id: str) -> FileRecord | None:
    """Return the record of a file, or None."""
    where = [Condition("id", "=", file_id)]
    found = store.point(lambda reader: reader.records(TABLE, where, (), 1))
    return record_of(found[0]) if found else None


def keys_of_owner(store: Store, owner: str) -> Iterator[str]:
    """Yield the keys of all files of a user, complete or not."""
    last = ""
    while True:
        where = [Condition("owner", "=", owner), Condition("id", ">", last)]
        found = store.point(methodcaller("records", TABLE, where, (), _PAGE))
        for values in found:
            last = str(values["id"])
            yield key_of(last) or ""
        if len(found) < _PAGE:
            return


def put(record: FileRecord, quota_bytes: int) -> Transact:
    """Return the operation that stores a new record.

    Args:
        quota_bytes: of the owner; 0: none. See `raise_refused`.
    """
    steps: list[RecordOp] = [PutRecord(TABLE, {
        "id": record.id, "owner": record.owner, "tenant_id": record.tenant_id,
        "name": record.name, "type": record.type, "size": record.size_bytes,
        "sha256": record.sha256, "state": record.state, "public": record.is_public,
        "entity": record.entity, "row_id": record.row_id, "field": record.field,
        "created_at": record.created_at_s, "attached_at": record.attached_at_s,
        "expires_at": record.expires_at_s, "meta": record.meta,
    })]
    return Transact([*steps, *_within(record.owner, quota_bytes)])


def complete(
    record: FileRecord, kind: str, size_bytes: int, sha256: str, quota_bytes: int
) -> Transact:
    """Return the operation that makes a pending record ready."""
    steps: list[RecordOp] = [SetRecords(
        TABLE, [Condition("id", "=", record.id), Condition("state", "=", PENDING)],
        {
            "state": READY, "type": kind, "size": size_bytes, "sha256": sha256,
            "expires_at": None,
        }, 1,
    )]
    return Transact([*steps, *_within(record.owner, quota_bytes)])


def change(file_id: str, values: dict[str, Any]) -> SetRecords:
    """Return the operation that changes a ready record."""
    return SetRecords(
        TABLE, [Condition("id", "=", file_id), Condition("state", "=", READY)], values, 1
    )


def drop(file_id: str) -> DropRecords:
    """Return the operation that deletes a record."""
    return DropRecords(TABLE, [Condition("id", "=", file_id)])


def raise_refused(reply: WriteReply, quota_bytes: int) -> None:
    """Raise the error of a `Transact` of this module, if it was refused.

    Raises:
        FileQuotaExceeded: the owner would have more than `quota_bytes`.
        PylonError: as the writer says.
    """
    for position, result in enumerate(reply.results or ()):
        if result.error is None:
            continue
        error: PylonError = result.error.to_exception()
        if position:
            raise FileQuotaExceeded(
                f"Your files would take more than {quota_bytes} bytes (PYLON_FILES_QUOTA_BYTES)",
                hint="Delete files that you no longer need", limit=quota_bytes,
            )
        raise error


def _within(owner: str | None, quota_bytes: int) -> list[LimitRecords]:
    if not quota_bytes or owner is None:
        return []
    return [LimitRecords(TABLE, "size", [Condition("owner", "=", owner)], quota_bytes)]
