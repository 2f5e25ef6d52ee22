"""Public rows: the readers and events of a worker, whose rows lack the hidden fields.

A hidden field (`Field.server_only`) is stored as any other, in its column and in the row's JSON.
`public_store` wraps the readers of a worker, and `PublicRows.batch` the changes that the supervisor
publishes. So a hidden value never enters the code that answers clients: no route, stream, live
query or cache can send it, and none has to know of it. Policies and queries cannot name a hidden
field (`pylon.policy.scope`, `pylon.query.operands`), so they judge the same without it.

The writer and the copies of operators (backups, `pylonctl export`) have whole rows. An export of an
administrator reads `whole_store`.

Invariants: no reader that `public_store` returns gives a hidden value, of the present or of the
log, also if the field was not hidden when the log was written. A manifest without hidden fields
costs nothing: `public_store` returns the store itself. Called by the backends (`open_readers`),
the publisher of changes and the export.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import orjson
from msgspec.structs import replace

from pylon.manifest.model import Entity, Manifest
from pylon.query.graph import GraphNode
from pylon.query.predicate import TRUE, Predicate, Scalar
from pylon.query.rows import Query
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.interface import SERVER, Reader, Store
from pylon.values.errors import unknown_column

T = TypeVar("T")

_READERS_KEPT: Final = 64  # more than a process has connections


class PublicRows:
    """Removes the hidden fields from rows of some entities. Immutable."""

    __slots__ = ("_hidden", "_keys", "entities")

    def __init__(self, entities: Iterable[Entity]) -> None:
        self.entities = {e.name: e for e in entities if e.hidden}
        self._hidden = {name: tuple(entity.hidden) for name, entity in self.entities.items()}
        self._keys = {
            name: tuple(orjson.dumps(field) + b":" for field in hidden)
            for name, hidden in self._hidden.items()
        }

    def __bool__(self) -> bool:
        """Whether any entity has hidden fields."""
        return bool(self._hidden)

    def text(self, entity: str, row_json: bytes) -> bytes:
        """Return the JSON of a row without the hidden fields."""
        keys = self._keys.get(entity)
        if keys is None or not any(key in row_json for key in keys):
            return row_json
        row = orjson.loads(row_json)
        self._strip(entity, row)
        return orjson.dumps(row)

    def texts(self, entity: str, rows: list[bytes]) -> list[bytes]:
        """Return the JSON of each row without the hidden fields."""
        return rows if entity not in self._keys else [self.text(entity, row) for row in rows]

    def array(self, entity: str, rows_json: bytes) -> bytes:
        """Return a JSON array of rows without the hidden fields."""
        keys = self._keys.get(entity)
        if keys is None or not any(key in rows_json for key in keys):
            return rows_json
        rows = orjson.loads(rows_json)
        for row in rows:
            self._strip(entity, row)
        return orjson.dumps(rows)

    def graph(self, nodes: Sequence[GraphNode], answer: bytes) -> bytes:
        """Return the answer to a graph query without the hidden fields, in includes too."""
        if not any(self._concerns(node) for node in nodes):
            return answer
        decoded = orjson.loads(answer)
        for node in nodes:
            for row in decoded[node.entity.name]:
                self._strip_node(node, row)
        return orjson.dumps(decoded)

    def event(self, event: ChangeEvent) -> ChangeEvent:
        """Return an event whose images lack the hidden fields."""
        name = event.entity
        if name not in self._keys:
            return event
        data, before = event.data, event.prev_data
        return replace(
            event, data=None if data is None else self.text(name, data),
            prev_data=None if before is None else self.text(name, before),
        )

    def events(self, events: list[ChangeEvent]) -> list[ChangeEvent]:
        """Return events whose images lack the hidden fields."""
        return [self.event(event) for event in events]

    def batch(self, batch: ChangeBatch) -> ChangeBatch:
        """Return a batch whose images lack the hidden fields."""
        if not any(event.entity in self._keys for event in batch.events):
            return batch
        return ChangeBatch(batch.prev_seq, self.events(batch.events), batch.committed_s)

    def _concerns(self, node: GraphNode) -> bool:
        return node.entity.name in self._keys or any(
            self._concerns(include.node) for include in node.includes
        )

    def _strip_node(self, node: GraphNode, row: dict[str, Any]) -> None:
        # An include takes the place of a field of its name.
        self._strip(
            node.entity.name, row, {include.relation.name for include in node.includes}
        )
        for include in node.includes:
            found = row.get(include.relation.name)
            if isinstance(found, dict):
                self._strip_node(include.node, found)
            else:
                for each in found or ():
                    self._strip_node(include.node, each)

    def _strip(
        self, entity: str, row: dict[str, Any], replaced: Collection[str] = ()
    ) -> None:
        for name in self._hidden.get(entity, ()):
            if name not in replaced:
                row.pop(name, None)


class PublicReader:
    """A reader whose rows and events lack the hidden fields. It forwards all other calls."""

    __slots__ = ("_reader", "_rows", "data_version", "head_seq")

    def __init__(self, reader: Reader, rows: PublicRows) -> None:
        self._reader = reader
        self._rows = rows
        self.data_version = reader.data_version  # PERF: asked before each answer from memory
        self.head_seq = reader.head_seq

    if not TYPE_CHECKING:  # mypy checks the calls against `Reader`

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

    def get(self, entity: str, row_id: str) -> bytes | None:
        """See `Reader.get`."""
        found = self._reader.get(entity, row_id)
        return None if found is None else self._rows.text(entity, found)

    def get_version(
        self, entity: str, row_id: str, allowed: Predicate = TRUE
    ) -> tuple[bytes, int | None] | None:
        """See `Reader.get_version`."""
        found = self._reader.get_version(entity, row_id, allowed)
        return None if found is None else (self._rows.text(entity, found[0]), found[1])

    def lookup(
        self, entity: str, field: str, value: Scalar, allowed: Predicate = TRUE
    ) -> bytes | None:
        """See `Reader.lookup`.

        Raises:
            InvalidColumn: the field is hidden, too: the answer would tell its value.
        """
        known: Entity | None = self._rows.entities.get(entity)
        if known is not None and field in known.hidden:
            raise unknown_column(known, field)
        found = self._reader.lookup(entity, field, value, allowed)
        return None if found is None else self._rows.text(entity, found)

    def rows(self, entity: str, query: Query) -> list[bytes]:
        """See `Reader.rows`."""
        return self._rows.texts(entity, self._reader.rows(entity, query))

    def rows_within(
        self, entity: str, query: Query, size_bytes: int
    ) -> tuple[list[bytes], bool]:
        """See `Reader.rows_within`."""
        found, has_more = self._reader.rows_within(entity, query, size_bytes)
        return self._rows.texts(entity, found), has_more

    def page(self, entity: str, query: Query) -> tuple[int, bytes]:
        """See `Reader.page`."""
        count, found = self._reader.page(entity, query)
        return count, self._rows.array(entity, found)

    def graph(self, nodes: Sequence[GraphNode]) -> bytes:
        """See `Reader.graph`."""
        return self._rows.graph(nodes, self._reader.graph(nodes))

    def events_after(self, seq: int, limit: int) -> list[ChangeEvent]:
        """See `Reader.events_after`."""
        return self._rows.events(self._reader.events_after(seq, limit))

    def events_of(self, entities: Collection[str], seq: int, limit: int) -> list[ChangeEvent]:
        """See `Reader.events_of`."""
        return self._rows.events(self._reader.events_of(entities, seq, limit))

    def newest_events(self, limit: int) -> list[ChangeEvent]:
        """See `Reader.newest_events`."""
        return self._rows.events(self._reader.newest_events(limit))


class PublicStore:
    """A store whose readers are `PublicReader`s. It forwards all other calls."""

    __slots__ = ("_rows", "_wrapped", "whole")

    def __init__(self, whole: Store, rows: PublicRows) -> None:
        self.whole = whole
        self._rows = rows
        self._wrapped: dict[Reader, Reader] = {}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return getattr(self.whole, name)

    def point(self, read: Callable[[Reader], T], /) -> T:
        """See `Store.point`."""
        return self.whole.point(lambda reader: read(self._public(reader)))

    def point_inline(self, read: Callable[[Reader], T], /) -> T:
        """See `Store.point_inline`."""
        return self.whole.point_inline(lambda reader: read(self._public(reader)))

    def scan(
        self, read: Callable[[Reader], T], inline: bool = True, caller: str = SERVER
    ) -> T:
        """See `Store.scan`."""
        return self.whole.scan(
            lambda reader: read(self._public(reader)), inline=inline, caller=caller
        )

    def _public(self, reader: Reader) -> Reader:
        made = self._wrapped.get(reader)
        if made is None:
            if len(self._wrapped) >= _READERS_KEPT:  # those of closed connections
                self._wrapped.clear()
            made = cast(Reader, PublicReader(reader, self._rows))
            self._wrapped[reader] = made
        return made


def public_store(store: Store, manifest: Manifest) -> Store:
    """Return a store that gives no hidden field: `store` itself if there is none."""
    rows = PublicRows(manifest.entities)
    return cast(Store, PublicStore(store, rows)) if rows else store


def whole_store(store: Store) -> Store:
    """Return the store below, whose rows have their hidden fields: for an administrator's export.
    """
    return store.whole if isinstance(store, PublicStore) else store
