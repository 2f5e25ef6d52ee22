"""Pending work: what a start leaves for later, while all nodes serve.

- Indexes that are not unique, over large tables (`apply`).
- Rows that nodes with another manifest wrote during a migration and after it. Their JSON lacks the
  new fields, and their words and folded values are those of the manifest before. While such a node
  lives, `_pylon_meta` has a key `mixed:<Entity>`: the head before the migration. When the last of
  them has gone, the rows of later versions are looked at, and those with other values are written.

`finish_pending` may be called again and again, on any node; one at a time works. Called by
`manager`, and `note_mixed` by `apply`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from pylon.manifest.model import Manifest
from pylon.query.words import text_fields
from pylon.schema.columns import fold_fields
from pylon.schema.steps import Step
from pylon.storage.postgres import meta
from pylon.storage.postgres.registry import LIVING
from pylon.storage.postgres.schema.backfill import Goal, backfill
from pylon.storage.postgres.schema.catalogue import plan_for
from pylon.storage.postgres.schema.leader import alone
from pylon.storage.postgres.schema.online import OnlineSteps
from pylon.storage.postgres.schema.results import ask
from pylon.storage.postgres.wire import BlockingSession

_KEY: Final = "mixed:"
_MIXED: Final = "SELECT key, value FROM _pylon_meta WHERE starts_with(key, $1) ORDER BY key"
# The living nodes of another manifest than $1.
_OTHERS: Final = LIVING.replace("WHERE", "WHERE manifest <> $1 AND")


def may_wait(step: Step) -> bool:
    """Whether no answer depends on a step: it makes an index that is not unique."""
    return step.kind == "add_index" and step.sql.startswith("CREATE INDEX")


def note_mixed(session: BlockingSession, manifest: Manifest, entity: str, head: int) -> None:
    """Note before the rows of an entity are written anew that others still write them as before.

    Args:
        head: before the migration; an earlier note has an earlier head, and stays.
    """
    if _others(session, manifest) and meta.get(session, _KEY + entity) is None:
        meta.put(session, _KEY + entity, str(head))


def count_pending(session: BlockingSession, manifest: Manifest) -> int:
    """Return the number of indexes and entities that are left for later.

    Raises:
        psycopg.Error
    """
    steps = sum(map(may_wait, plan_for(session, manifest).steps))
    return steps + len(ask(session, _MIXED, (_KEY,)))


def finish_pending(session: BlockingSession, manifest: Manifest) -> int:
    """Do what can be done now. Return how much is left.

    Raises:
        SchemaRefused, StartDelayed, psycopg.Error: as `prepare_store`.
    """
    with alone(session, 0.0):
        steps = OnlineSteps(session)
        for step in plan_for(session, manifest).steps:
            if may_wait(step):
                steps.run(step)
        if not _others(session, manifest):
            for key, head in ask(session, _MIXED, (_KEY,)):
                _repair(session, manifest, str(key).removeprefix(_KEY), int(head or 0))
                meta.remove(session, str(key))
        return count_pending(session, manifest)


def _others(session: BlockingSession, manifest: Manifest) -> list[str]:
    digest = sha256(manifest.text.encode()).hexdigest()
    return [str(node) for (node,) in ask(session, _OTHERS, (digest,))]


def _repair(session: BlockingSession, manifest: Manifest, name: str, head: int) -> None:
    entity = manifest.by_name.get(name)
    if entity is not None:
        backfill(session, entity, Goal(
            f"mixed {head}", has_json=True, has_words=bool(text_fields(entity)),
            folds=tuple([field.name for field in fold_fields(entity)]), after_seq=head,
        ))
