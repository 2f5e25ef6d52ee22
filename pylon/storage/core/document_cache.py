"""What the writer keeps in memory of documents: which rows may have one, and the newest, decoded.

Which rows have one is a bitmap under a hash: two mebibytes for any number of documents, made
with the first. It may err on the side of yes (with 100,000 documents for one row in 170), which
costs a look-up; never on the side of no. Entities without any document are not even looked up
there (`EntityWrites.has_documents`).

Invariant: a decoded document that is here says what the database says, uncommitted changes of
the transaction that is open included; `undo` throws out what that transaction touched. Used by
`documents`, one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pylon import limits, metrics
from pylon.crdt.document import Document, Version
from pylon.storage.core.transaction import DocumentKey
from pylon.values import encode_row

_BITS: Final = 1 << 24
_DECODED_FACTOR: Final = 5  # memory of a decoded document by its stored size (measured: 2 to 5)
_DECODED_BYTES: Final = 18_000  # and of one with next to nothing in it (measured)


class RowSet:
    """A set of rows that may say yes to a row that is not in it."""

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, key: DocumentKey) -> None:
        if not self._bits:
            self._bits = bytearray(_BITS // 8)
        place = hash(key) & (_BITS - 1)
        self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, key: DocumentKey) -> bool:
        if not self._bits:
            return False
        place = hash(key) & (_BITS - 1)
        return bool(self._bits[place >> 3] & 1 << (place & 7))


@dataclass(slots=True)
class CachedDocument:
    """A decoded document, and what is stored of it."""

    document: Document
    version: Version | None  # as stored; None: nothing is, or nothing that can be read
    number: int  # of its newest stored update
    snapshot_bytes: int
    pending: int = 0  # updates beside the snapshot
    pending_bytes: int = 0
    begun: bytes = b""  # the version that was made of the row, until something is stored
    unreadable: bool = False  # what is stored cannot be read: write all of it anew
    # The fields that decide who may read the row, before and after a change that is not stored yet.
    view: tuple[str, str] | None = None

    def note_view(
        self, fields: frozenset[str], before: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> None:
        """Note if a patch of the row changes one of `fields`, which decide who may read it."""
        if any(name in fields and before.get(name) != value for name, value in patch.items()):
            earlier = facts_of(fields, before) if self.view is None else self.view[0]
            self.view = (earlier, facts_of(fields, {**before, **patch}))

    @property
    def stored_bytes(self) -> int:
        return self.snapshot_bytes + self.pending_bytes

    @property
    def changed(self) -> bool:
        """Whether it has something that is not stored."""
        return self.version is None or self.document.version != self.version


def facts_of(fields: frozenset[str], row: Mapping[str, Any]) -> str:
    """The values of `fields` in a row, as JSON."""
    return encode_row({name: row.get(name) for name in fields}).decode()


class DocumentCache:
    """The most recently used decoded documents, bounded in number and in estimated bytes."""

    __slots__ = ("_bytes", "_documents", "_sizes", "_touched")

    def __init__(self) -> None:
        self._documents: OrderedDict[DocumentKey, CachedDocument] = OrderedDict()
        self._sizes: dict[DocumentKey, int] = {}
        self._bytes = 0
        self._touched: set[DocumentKey] = set()

    def find(self, key: DocumentKey) -> CachedDocument | None:
        cached = self._documents.get(key)
        if cached is not None:
            self._documents.move_to_end(key)
        return cached

    def put(self, key: DocumentKey, cached: CachedDocument) -> None:
        """Keep it, or note its size anew; others may have to go."""
        size_bytes = _DECODED_BYTES + _DECODED_FACTOR * cached.stored_bytes
        self._bytes += size_bytes - self._sizes.get(key, 0)
        self._sizes[key] = size_bytes
        self._documents[key] = cached
        self._documents.move_to_end(key)
        while len(self._documents) > 1 and (
            len(self._documents) > limits.DOCUMENTS_DECODED
            or self._bytes > limits.DOCUMENTS_DECODED_BYTES
        ):
            self.drop(next(iter(self._documents)))
        self._publish_metrics()

    def drop(self, key: DocumentKey) -> None:
        """Forget it; the database has it."""
        if self._documents.pop(key, None) is not None:
            self._bytes -= self._sizes.pop(key)
            self._publish_metrics()

    def drop_entity(self, entity: str) -> None:
        for key in [key for key in self._documents if key[0] == entity]:
            self.drop(key)

    def touch(self, key: DocumentKey) -> None:
        """The transaction that is open changes it."""
        self._touched.add(key)

    def commit(self) -> None:
        """Note that the touched documents are stored."""
        if self._touched:
            self._touched.clear()

    def undo(self) -> None:
        """Forget the touched documents: the transaction, or a part of it, was rolled back."""
        for key in self._touched:
            self.drop(key)

    def _publish_metrics(self) -> None:
        metrics.DOCUMENTS_DECODED.set(len(self._documents))
        metrics.DOCUMENTS_DECODED_BYTES.set(self._bytes)
