"""Pending work: what a start leaves for later, while all nodes serve.

- Indexes that are not unique, over large tables (`apply`).
- Indexes that left the manifest, while nodes with another manifest may still use them.
- Rows of entities whose fields differ between the manifests of living nodes (a rolling upgrade).
  Triggers complete their JSON meanwhile (`fill`). Their words and folded values are those of the
  node that wrote them. `_pylon_meta` has a key `mixed:<Entity>`: the head before the migration.

When all living nodes have this node's manifest, the rows are brought to it: those of later
versions than the key's head, or all where rows of the table may be in the form of another manifest.
Only rows with other values are written. Rows of which a node sent events without the value of a
field get one more event, since clients of that node have not seen the value.

`finish_pending` may be called again and again, on any node; one at a time works. Called by
`manager`, and the notes by `apply`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import orjson

from pylon.clock import NS_PER_S, Clock, SystemClock
from pylon.log import get_logger
from pylon.manifest.model import Entity, Manifest
from pylon.query.words import text_fields
from pylon.schema.columns import JSON_COLUMN, SEQ_COLUMN, fold_fields
from pylon.schema.convert import shape_of
from pylon.schema.history import own_after
from pylon.schema.steps import Plan, Step
from pylon.storage.postgres import meta, sequences
from pylon.storage.postgres.channels import CHANGES, channel_name, payload
from pylon.storage.postgres.locks import WRITER, lock_key
from pylon.storage.postgres.names import SEQ_SEQUENCE, quote
from pylon.storage.postgres.registry import LIVING
from pylon.storage.postgres.schema import history, search
from pylon.storage.postgres.schema.backfill import Goal, backfill
from pylon.storage.postgres.schema.catalogue import PostgresCatalogue, plan_for
from pylon.storage.postgres.schema.fill import (
    TOLD_LATER,
    add_fill,
    earlier_fields,
    filled_fields,
    forget_fill,
    remove_fill,
)
from pylon.storage.postgres.schema.leader import alone
from pylon.storage.postgres.schema.online import OnlineSteps
from pylon.storage.postgres.schema.results import ask
from pylon.storage.postgres.wire import BlockingSession

_KEY: Final = "mixed:"
_ANNOUNCED: Final = 200  # rows in one transaction
_MIXED: Final = "SELECT key, value FROM _pylon_meta WHERE starts_with(key, $1) ORDER BY key"
# The living nodes of another manifest than $1.
_OTHERS: Final = LIVING.replace("WHERE", "WHERE manifest <> $1 AND")
_WRITER_ID: Final = "schema"  # of the notifications; no node's, so that all of them read the log
# New versions of rows $1, and their events. `_pylon_seq` has the last of their seqs.
_RENUMBER: Final = (
    f"UPDATE %(table)s AS t SET {SEQ_COLUMN} = currval('{SEQ_SEQUENCE}') - $2 + n.place "
    "FROM unnest($1::text[]) WITH ORDINALITY AS n (id, place) WHERE t.id = n.id"
)
_EVENTS: Final = (
    "INSERT INTO _pylon_change_log (seq, entity, row_id, kind, data, prev_data, timestamp) "
    f"SELECT {SEQ_COLUMN}, $2, id, 'update', {JSON_COLUMN}, {JSON_COLUMN}, $3 "
    "FROM %(table)s WHERE id = ANY($1::text[])"
)
_TOLD: Final = f"DELETE FROM {TOLD_LATER} WHERE row_id = ANY($1::text[]) AND entity = $2"

_log = get_logger("schema")


def may_wait(step: Step) -> bool:
    """Whether no answer depends on a step: it makes an index that is not unique."""
    return step.kind == "add_index" and step.sql.startswith("CREATE INDEX")


def leaves(step: Step) -> bool:
    """Whether a step drops what left the manifest: other nodes may still use it."""
    return step.kind in ("remove_index", "remove_fold")


def find_others(session: BlockingSession, manifest: Manifest) -> list[str]:
    """Return the living nodes that have another manifest."""
    digest = sha256(manifest.text.encode()).hexdigest()
    return [str(node) for (node,) in ask(session, _OTHERS, (digest,))]


def note_mixed(session: BlockingSession, entity: str, head: int) -> None:
    """Note before the rows of an entity are written anew that others still write them otherwise.

    Args:
        head: before the migration; an earlier note has an earlier head, and stays.
    """
    if meta.get(session, _KEY + entity) is None:
        meta.put(session, _KEY + entity, str(head))


def join_mixed(
    session: BlockingSession, entity: Entity, head: int, steps: OnlineSteps
) -> bool:
    """Prepare an entity for nodes that have it with other fields; they live. Return whether this
    node must write the JSON of the rows anew.

    It must not if the rows have all fields of its manifest: it is the older one, or a field has
    left; or if triggers have kept its fields while an older node wrote the rows anew.

    Raises:
        StartDelayed, psycopg.Error: as `add_fill`.
    """
    stored = _fields_of(meta.get(session, f"shape:{entity.name}"))
    own = _fields_of(shape_of(entity))
    differing = {
        name: kind for name, kind in (stored | own).items() if name not in stored.keys() & own
    }
    if not differing:
        return stored != own
    kept = filled_fields(session, entity.name)
    add_fill(session, entity.name, differing, steps)
    note_mixed(session, entity.name, head)
    return not own.keys() <= stored.keys() | kept.keys()


def _fields_of(shape: str | None) -> dict[str, str]:
    """Return the types of a stored shape by field; none for a table that Pylon has not written."""
    return {} if shape is None else {
        str(name): str(kind) for name, kind in orjson.loads(shape) if name
    }


def count_pending(session: BlockingSession, manifest: Manifest) -> int:
    """Return the number of indexes and entities that are left for later.

    Raises:
        psycopg.Error
    """
    steps = [s for s in plan_for(session, manifest).steps if may_wait(s) or leaves(s)]
    return len(steps) + len(ask(session, _MIXED, (_KEY,)))


def finish_pending(
    session: BlockingSession, manifest: Manifest, clock: Clock | None = None
) -> int:
    """Do what can be done now. Return how much is left.

    Args:
        clock: of the events' times.

    Raises:
        SchemaRefused, StartDelayed, psycopg.Error: as `prepare_store`.
    """
    with alone(session, 0.0):
        finish_alone(session, manifest, clock or SystemClock())
        return count_pending(session, manifest)


def finish_alone(session: BlockingSession, manifest: Manifest, clock: Clock) -> None:
    """As `finish_pending`, under the lock of those who change the schema."""
    steps = OnlineSteps(session)
    others = find_others(session, manifest)
    planned = plan_for(session, manifest).steps
    wanted = [s for s in planned if may_wait(s) or (not others and leaves(s))]
    for step in wanted:
        steps.run(step)
    if wanted:
        catalogue = PostgresCatalogue(session)
        history.note_own_indexes(
            session, own_after(catalogue, manifest, Plan(tuple(wanted), (), ()))
        )
    if others:
        _keep_fields(session, manifest, steps)
        return
    remove_fill(session, steps)
    for key, head in ask(session, _MIXED, (_KEY,)):
        name = str(key).removeprefix(_KEY)
        if name in manifest.by_name:
            _repair(session, manifest.by_name[name], int(head or 0), clock)
        if earlier_fields(session, name):
            forget_fill(session, name)
        meta.remove(session, str(key))
    search.forget_left(session, manifest, steps)


def _keep_fields(session: BlockingSession, manifest: Manifest, steps: OnlineSteps) -> None:
    """Complete the rows that an older node has written anew at its start, after this one's."""
    for entity in manifest.entities:
        shape = meta.get(session, f"shape:{entity.name}")
        if shape is None or shape == shape_of(entity):
            continue
        if join_mixed(session, entity, 0, steps):
            rows = backfill(session, entity, Goal("kept", has_json=True, after_seq=0))
            _log.info("schema.rows.kept", entity=entity.name, rows=rows)
            meta.put(session, f"shape:{entity.name}", shape_of(entity))


def _repair(session: BlockingSession, entity: Entity, head: int, clock: Clock) -> None:
    filled = earlier_fields(session, entity.name)
    shape, key = shape_of(entity), f"shape:{entity.name}"
    is_whole = (
        meta.get(session, key) == shape and search.is_current(session, entity)
        and entity.by_name.keys() >= set(filled)
    )
    after = head if is_whole else 0
    rows = backfill(session, entity, Goal(
        f"mixed {after}", has_json=True, has_words=bool(text_fields(entity)),
        folds=tuple([field.name for field in fold_fields(entity)]), after_seq=after,
    ))
    meta.put(session, key, shape)
    search.note_current(session, entity)
    is_known = any(name in entity.by_name for name in filled)
    told = _announce(session, entity, clock) if is_known else 0
    _log.info("schema.rows.mended", entity=entity.name, rows=rows, announced=told)


def _announce(session: BlockingSession, entity: Entity, clock: Clock) -> int:
    """Log an event for each row that some clients may know without a value. Return their number."""
    table = quote(entity.name)
    ids = [row_id for (row_id,) in ask(
        session, f"SELECT t.id FROM {table} AS t JOIN {TOLD_LATER} AS l ON l.row_id = t.id "
        "WHERE l.entity = $1 ORDER BY t.id", (entity.name,),
    )]
    lock, channel = lock_key(session, WRITER), channel_name(session, CHANGES)
    told = 0
    for place in range(0, len(ids), _ANNOUNCED):
        page = ids[place:place + _ANNOUNCED]
        results = session.pipeline([
            ("BEGIN", ()), ("SELECT pg_advisory_xact_lock($1)", (lock,)),
            (sequences.TAKE, (len(page), channel, payload(0, _WRITER_ID)[1:])),
            (_RENUMBER % {"table": table}, (page, len(page))),
            (_EVENTS % {"table": table}, (page, entity.name, clock.wall_ns() // NS_PER_S)),
            (_TOLD, (page, entity.name)),
            ("COMMIT", ()),
        ])
        told += results[4].command_tuples or 0
    return told
