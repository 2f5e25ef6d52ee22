"""Document cache: the writer's set of rows with documents, and its recently used documents.

`RowSet` is a bitmap indexed by a hash: 2 MiB for any number of documents, allocated with the first.
A false positive costs a look-up (with 100,000 documents one row in 170 is one). There are no false
negatives. For entities without any document the set is not consulted
(`EntityWrites.has_documents`).

Invariant: a cached document equals the stored one, with the uncommitted changes of the open
transaction. `undo` drops the documents that the transaction touched. Bounds:
`limits.DOCUMENTS_DECODED` documents, and `limits.DOCUMENTS_DECODED_BYTES` by estimate. Called by
`stored_documents` and `documents`, by one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pylon import limits, metrics
from pylon.crdt.document import Document, Version
from pylon.storage.core.transaction import DocumentKey
from pylon.values import encode_row

_BITS: Final = 1 << 24
_DECODED_FACTOR: Final = 5  # memory of a decoded document per stored byte (measured: 2 to 5)
_DECODED_BYTES: Final = 18_000  # memory of an almost empty document (measured)


class RowSet:
    """A set of rows with false positives and without false negatives."""

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


class CachedDocument(msgspec.Struct):
    """A decoded document, and the sizes of its stored parts."""

    document: Document
    version: Version | None  # the stored version; None: nothing readable is stored
    number: int  # of its newest stored update
    snapshot_bytes: int
    pending: int = 0  # stored updates that are not in the snapshot
    pending_bytes: int = 0
    begun: bytes = b""  # the first version, made from the row, until something is stored
    unreadable: bool = False  # the stored document cannot be read: store it as a whole
    # The fields that decide who may read the row, before and after a change that is not stored yet.
    view: tuple[str, str] | None = None

    def note_view(
        self, fields: frozenset[str], before: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> None:
        """Note a patch of the row that changes one of `fields`, which decide who may read it."""
        if any(name in fields and before.get(name) != value for name, value in patch.items()):
            earlier = facts_of(fields, before) if self.view is None else self.view[0]
            self.view = (earlier, facts_of(fields, {**before, **patch}))

    @property
    def stored_bytes(self) -> int:
        return self.snapshot_bytes + self.pending_bytes

    @property
    def changed(self) -> bool:
        """Whether the document has changes that are not stored."""
        return self.version is None or self.document.version != self.version


def facts_of(fields: frozenset[str], row: Mapping[str, Any]) -> str:
    """Return the values of `fields` in a row, as JSON."""
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
        """Add a document or update its size. Evicts the least recently used beyond the bounds."""
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
        """Drop a document from the cache."""
        if self._documents.pop(key, None) is not None:
            self._bytes -= self._sizes.pop(key)
            self._publish_metrics()

    def drop_entity(self, entity: str) -> None:
        for key in [key for key in self._documents if key[0] == entity]:
            self.drop(key)

    def touch(self, key: DocumentKey) -> None:
        """Note that the open transaction changes the document."""
        self._touched.add(key)

    def is_touched(self, key: DocumentKey) -> bool:
        """Whether the open transaction changes the document."""
        return key in self._touched

    def commit(self) -> None:
        """Note that the touched documents are stored."""
        if self._touched:
            self._touched.clear()

    def undo(self) -> None:
        """Drop the touched documents: the transaction, or a part of it, was rolled back."""
        for key in self._touched:
            self.drop(key)

    def _publish_metrics(self) -> None:
        metrics.DOCUMENTS_DECODED.set(len(self._documents))
        metrics.DOCUMENTS_DECODED_BYTES.set(self._bytes)
