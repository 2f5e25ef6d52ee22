"""The responses of ``GET /api/sync/pull`` (spec/realtime.md §1.4), as JSON bytes.

`build_delta` returns the changes after a cursor. `stream_snapshot` (since=0) streams every readable
row in one response, page by page from the store, because published clients know no continued
snapshots.

Invariants: every event and row passes the caller's read policy, for its image and for the present
row. `cursor.last_seq` advances over every examined event, also over those that the caller may not
see. `has_more` is true only if the cursor is above `since`. The first `limits.SNAPSHOT_PAGE_ROWS`
rows of a snapshot are read at the commit that its cursor names; for most apps these are all rows.
Holding one commit for longer would hold back the WAL, so later rows may be newer. The client then
gets their changes again after the cursor, which is harmless, and misses none. Called by
`pylon.api.sync.pull`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Final

import msgspec
import orjson

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change, encode_for
from pylon.changelog.feed import Feed
from pylon.changelog.readable_changes import ReadableChanges, read_changes
from pylon.changelog.scope import Scope
from pylon.changelog.snapshot_plan import SnapshotPart, plan_snapshot
from pylon.manifest.model import Entity, Manifest
from pylon.policy.entity_rules import EntityRules
from pylon.policy.routing import Everyone
from pylon.policy.rules import RuleSet
from pylon.query.rows import Query
from pylon.storage.interface import SERVER, Reader, Store

Page = tuple[Entity, list[bytes]]

_ID_KEY: Final = b'"id":'
_PIECE_BYTES: Final = 64 * 1024
_TRUTH: Final = {True: b"true", False: b"false"}


class Pulled(msgspec.Struct, frozen=True):
    """A response body, the client's cursor after it, and whether the client pulls once more
    before it connects."""

    body: bytes
    cursor: int
    has_more: bool


def build_delta(feed: Feed, rules: RuleSet, auth: AuthContext, since: int) -> Pulled:
    """Return the response for a cursor above 0.

    Raises:
        ResyncRequired: see `Feed.changes_after`.
    """
    if rules.related and not auth.is_admin:
        return _build_readable(feed.store, rules, auth, since)
    changes, head = feed.changes_after(since, limits.PULL_PAGE_EVENTS)
    last_seq = changes[-1].seq if changes else since
    shown = _visible_texts(feed, changes, rules, auth)
    return _pulled(shown, last_seq, has_more=bool(changes) and last_seq < head)


def _build_readable(store: Store, rules: RuleSet, auth: AuthContext, since: int) -> Pulled:
    """Return the response for a caller whose read rules ask other rows."""

    def read(reader: Reader) -> ReadableChanges:
        return reader.at_one_commit(
            lambda: read_changes(reader, rules, auth, since, limits.PULL_PAGE_EVENTS)
        )

    found = store.scan(read)
    return _pulled(
        [change.wire for change in found.changes], max(found.cursor, since),
        has_more=since < found.cursor < found.head,
    )


def _pulled(texts: list[bytes], last_seq: int, *, has_more: bool) -> Pulled:
    body = b'{"changes":[%s],"cursor":{"last_seq":%d},"has_more":%s}' % (
        b",".join(texts), last_seq, _TRUTH[has_more],
    )
    return Pulled(body, last_seq, has_more)


def _visible_texts(
    feed: Feed, changes: list[Change], rules: RuleSet, auth: AuthContext
) -> list[bytes]:
    if auth.is_admin and not rules.is_part:
        return [c.known_wire or c.wire for c in changes]
    by_entity = {e: _rules_of(rules, e) for e in {c.event.entity for c in changes}}
    restricted = {
        entity for entity, policy in by_entity.items()
        if policy is None or not isinstance(policy.routing, Everyone)
    }
    if not restricted:
        return [c.known_wire or c.wire for c in changes]
    feed.relate(changes, {entity for entity in restricted if by_entity[entity] is not None})
    shown = []
    for change in changes:
        entity = change.event.entity
        if entity not in restricted:
            shown.append(change.known_wire or change.wire)
            continue
        policy = by_entity[entity]
        if policy is not None and (text := encode_for(change, policy, auth)) is not None:
            shown.append(text)
    return shown


def _rules_of(rules: RuleSet, entity: str) -> EntityRules | None:
    """Return the rules; None for an entity that only the log knows, and only admins may read."""
    try:
        return rules.for_entity(entity)
    except KeyError:
        return None


def stream_snapshot(
    store: Store, manifest: Manifest, rules: RuleSet, auth: AuthContext, caller: str = SERVER,
    scope: Scope | None = None,
) -> Iterator[bytes]:
    """Yield the response body for since=0, in pieces of about a page of rows.

    Rows are inserts with the head's seq. At head 0 there are no rows, because a database with rows
    has an epoch (`pylon.storage.sqlite.schema.apply`). So no client gets a seq of 0.

    Args:
        caller: the subject (`pylon.rates`) whose share of scans the pages take.
        scope: the part of the data that the client asks for; `rules` are those of the app.

    Raises:
        QueryTimeout, StoreUnavailable: from the store, also in the middle of the stream.
    """
    parts = plan_snapshot(manifest, rules, auth, scope)
    first = store.scan(
        lambda reader: reader.at_one_commit(lambda: _begin(reader, parts)), caller=caller
    )
    head = first.head
    piece = b'{"changes":['
    separator = b""
    for entity, page in chain(first.pages, _remaining(store, first, caller)):
        name = orjson.dumps(entity.name)
        piece += separator + b",".join([_as_insert(row, name, head) for row in page])
        separator = b","
        if len(piece) > _PIECE_BYTES:
            yield piece
            piece = b""
    yield piece + b'],"cursor":{"last_seq":%d},"has_more":%s,"snapshot_after":null}' % (
        head, _TRUTH[0 < head < store.point(_head)],
    )


class _Beginning(msgspec.Struct, frozen=True):
    """The head and the first rows, all read at one commit. `rest` has the parts whose rows
    are not read yet; the rows of the first one up to `last_row` are."""

    head: int
    pages: list[Page]
    rest: list[SnapshotPart]
    last_row: bytes | None


def _begin(reader: Reader, parts: list[SnapshotPart]) -> _Beginning:
    head = reader.head_seq()
    pages: list[Page] = []
    wanted, left_bytes = limits.SNAPSHOT_PAGE_ROWS, limits.SNAPSHOT_PAGE_BYTES
    for place, part in enumerate(parts if head else ()):
        if wanted <= 0 or left_bytes <= 0:
            return _Beginning(head, pages, parts[place:], None)
        page, has_more = reader.rows_within(
            part.entity.name, part.query(wanted, None), left_bytes
        )
        if page:
            pages.append((part.entity, page))
        wanted -= len(page)
        left_bytes -= sum(map(len, page))
        if has_more:
            return _Beginning(head, pages, parts[place:], page[-1])
    return _Beginning(head, pages, [], None)


def _remaining(store: Store, first: _Beginning, caller: str) -> Iterator[Page]:
    last_row = first.last_row
    for part in first.rest:
        while True:
            query = part.query(limits.SNAPSHOT_PAGE_ROWS, last_row)
            page, has_more = store.scan(
                partial(read_page, entity=part.entity.name, query=query), caller=caller
            )
            if page:
                yield part.entity, page
            if not has_more:
                break
            last_row = page[-1]
        last_row = None


def _head(reader: Reader) -> int:
    return reader.head_seq()


def read_page(reader: Reader, entity: str, query: Query) -> tuple[list[bytes], bool]:
    """Return a page of a long response, and whether more rows may follow."""
    return reader.rows_within(entity, query, limits.SNAPSHOT_PAGE_BYTES)


def _as_insert(row: bytes, entity_json: bytes, seq: int) -> bytes:
    return b'{"seq":%d,"entity":%s,"row_id":%s,"kind":"insert","data":%s,"timestamp":""}' % (
        seq, entity_json, _id_json(row), row,
    )


def _id_json(row: bytes) -> bytes:
    """Return the JSON text of the row's id, without decoding the row.

    A quote inside a JSON string is always escaped, so `"id":` occurs as a key only, and once.
    """
    start = row.index(_ID_KEY) + len(_ID_KEY)
    end = row.index(b'"', start + 1) + 1
    if b"\\" in row[start:end]:  # an id of another server's row, which may contain quotes
        return orjson.dumps(orjson.loads(row)["id"])
    return row[start:end]
