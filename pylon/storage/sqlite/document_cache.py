"""What the writer keeps in memory of documents: which rows may have one, and the newest, decoded.

Which rows have one is a bitmap under a hash: two mebibytes for any number of documents, made
with the first. It may err on the side of yes (with 100,000 documents for one row in 170), which
costs a look-up; never on the side of no. Entities without any document are not even looked up
there (`Table.has_documents`).

Invariant: a decoded document that is here says what the database says, uncommitted changes of
the transaction that is open included; `undone` throws out what that transaction touched. Used
by `pylon.storage.sqlite.document_writes`, one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import loro

from pylon import limits, metrics
from pylon.crdt.document import Document
from pylon.values import encode_row

Key = tuple[str, str]  # entity, row id

_BITS: Final = 1 << 24
_DECODED_FACTOR: Final = 5  # memory of a decoded document by its stored size (measured: 2 to 5)
_DECODED_BYTES: Final = 18_000  # and of one with next to nothing in it (measured)


class RowSet:
    """A set of rows that may say yes to a row that is not in it."""

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, key: Key) -> None:
        if not self._bits:
            self._bits = bytearray(_BITS // 8)
        place = hash(key) & (_BITS - 1)
        self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, key: Key) -> bool:
        if not self._bits:
            return False
        place = hash(key) & (_BITS - 1)
        return bool(self._bits[place >> 3] & 1 << (place & 7))


@dataclass(slots=True)
class CachedDocument:
    """A decoded document, and what is stored of it."""

    document: Document
    version: loro.VersionVector | None  # as stored; None: nothing is, or nothing that can be read
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

    __slots__ = ("_bytes", "_kept", "_sizes", "_touched")

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, CachedDocument] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._bytes = 0
        self._touched: set[Key] = set()

    def find(self, key: Key) -> CachedDocument | None:
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, kept: CachedDocument) -> None:
        """Keep it, or note its size anew; others may have to go."""
        size_bytes = _DECODED_BYTES + _DECODED_FACTOR * kept.stored_bytes
        self._bytes += size_bytes - self._sizes.get(key, 0)
        self._sizes[key] = size_bytes
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and (
            len(self._kept) > limits.DOCUMENTS_DECODED
            or self._bytes > limits.DOCUMENTS_DECODED_BYTES
        ):
            self.drop(next(iter(self._kept)))
        self._tell()

    def drop(self, key: Key) -> None:
        """Forget it; the database has it."""
        if self._kept.pop(key, None) is not None:
            self._bytes -= self._sizes.pop(key)
            self._tell()

    def drop_entity(self, entity: str) -> None:
        for key in [key for key in self._kept if key[0] == entity]:
            self.drop(key)

    def touch(self, key: Key) -> None:
        """The transaction that is open changes it."""
        self._touched.add(key)

    def committed(self) -> None:
        """What was touched is stored."""
        if self._touched:
            self._touched.clear()

    def undone(self) -> None:
        """The transaction, or a part of it, was rolled back."""
        for key in self._touched:
            self.drop(key)

    def _tell(self) -> None:
        metrics.DOCUMENTS_DECODED.set(len(self._kept))
        metrics.DOCUMENTS_DECODED_BYTES.set(self._bytes)
