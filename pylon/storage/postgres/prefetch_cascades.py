"""Prefetch of cascades: reads ahead the rows that refer to rows which a batch deletes.

It follows the references level by level, one round trip each: a delete may delete the referring
rows in turn. What it does not read, `table` asks under the lock.

Bounds: `limits.CASCADE_ROWS` rows of one batch. Called by `prefetch`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from psycopg.pq.abc import PGresult

from pylon import limits
from pylon.manifest.references import Reference
from pylon.schema.columns import JSON_COLUMN, SEQ_COLUMN
from pylon.storage.core.transaction import DocumentKey
from pylon.storage.postgres import documents
from pylon.storage.postgres.names import quote
from pylon.storage.postgres.overlay import NO_ROWS, Overlay, ReferenceRows
from pylon.storage.postgres.prefetch_answers import Read, Take, take_documents, take_row

_RESTRICTING_MAX: Final = 1_000  # ids of the rows that forbid one delete
_REFERRING: Final = (
    f"SELECT deleted.id, found.id, found.{SEQ_COLUMN}{{json}} "
    "FROM unnest($1::text[]) AS deleted (id), LATERAL "
    f"(SELECT id, {JSON_COLUMN}, {SEQ_COLUMN} FROM {{table}} WHERE {{field}} = deleted.id LIMIT $2)"
    " AS found LIMIT $3"
)
_JSON: Final = (
    f", CASE WHEN octet_length(found.{JSON_COLUMN}) <= {limits.JUDGED_FIRST_BYTES} "
    f"THEN found.{JSON_COLUMN} END"
)


class CascadeReads:
    """The rows that the deletes of one batch ask for."""

    __slots__ = ("_deleted", "_documents", "_left", "_next", "_referring", "_with_documents")

    def __init__(
        self, referring: Mapping[str, Collection[Reference]], with_documents: Collection[str]
    ) -> None:
        """
        Args:
            referring: the references to each entity.
            with_documents: the entities whose rows may have documents.
        """
        self._referring = referring
        self._with_documents = with_documents
        self._deleted: set[tuple[str, str]] = set()
        self._next: dict[str, list[str]] = {}  # of `_deleted`, whose references are not read yet
        self._documents: dict[DocumentKey, None] = {}  # of rows that are deleted or changed
        self._left = limits.CASCADE_ROWS + 2

    def add(self, entity: str, row_id: str) -> None:
        """Note a row that the batch deletes."""
        if entity in self._referring and (entity, row_id) not in self._deleted:
            self._deleted.add((entity, row_id))
            self._next.setdefault(entity, []).append(row_id)

    def reads(self, overlay: Overlay, *, locked: bool) -> list[Read]:
        """Return the statements of the next level; none if all is read."""
        found: list[Read] = []
        level, self._next = self._next, {}
        if self._left <= 0:
            return found
        for entity, ids in level.items():
            for reference in self._referring[entity]:
                found.append(self._read(overlay, reference, ids, locked=locked))
        if self._documents:
            keys, self._documents = list(self._documents), {}
            found.append((
                (documents.NUMBERS, ([key[0] for key in keys], [key[1] for key in keys])),
                take_documents(overlay, keys),
            ))
        return found

    def _read(
        self, overlay: Overlay, reference: Reference, ids: list[str], *, locked: bool
    ) -> Read:
        """Return the read of the rows that refer to others by one field."""
        restricts = reference.on_delete == "restrict"
        text = _REFERRING.format(
            json="" if restricts else _JSON, table=quote(reference.entity),
            field=quote(reference.field),
        )
        most = _RESTRICTING_MAX if restricts else limits.CASCADE_ROWS + 2
        total = limits.CASCADE_ROWS + 2
        return (text, (ids, most, total)), self._take(
            overlay, reference, ids, most, total, locked=locked
        )

    def _take(
        self, overlay: Overlay, reference: Reference, ids: Iterable[str], most: int, total: int,
        *, locked: bool,
    ) -> Take:
        def take(result: PGresult) -> None:
            if result.ntuples >= total:
                self._left = 0
                return
            name, has_rows = reference.entity, reference.on_delete != "restrict"
            found: dict[str, list[str]] = {row_id: [] for row_id in ids}
            for n in range(result.ntuples):
                child = (result.get_value(n, 1) or b"").decode()
                found[(result.get_value(n, 0) or b"").decode()].append(child)
                if has_rows:
                    seq = result.get_value(n, 2)
                    version = None if seq is None else int(seq)
                    row = result.get_value(n, 3), version
                    take_row(overlay, (name, child), row, locked=locked)
                    if name in self._with_documents:
                        self._documents[name, child] = None
                    if reference.on_delete == "cascade":
                        self.add(name, child)
            if has_rows:
                self._left -= result.ntuples
            for row_id, children in found.items():
                key = (name, reference.field, row_id)
                has_more = len(children) >= most
                overlay.referring[key] = (
                    ReferenceRows(tuple(children), has_more) if children else NO_ROWS
                )
                if not (locked or has_more):
                    overlay.read_referring[key] = len(children)

        return take
