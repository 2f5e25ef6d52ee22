"""Live indexes: makes and drops indexes of the manifest while the nodes serve.

Indexes are built CONCURRENTLY, so nobody waits for them. Each node keeps its manifest; a restart
with the old manifest drops the new indexes again.

Called by `pylon.storage.postgres.maintenance`, for `pylonctl schema apply --indexes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pylon.clock import Clock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Manifest
from pylon.schema.history import own_after
from pylon.schema.steps import Step
from pylon.storage.core.index_specs import with_indexes
from pylon.storage.postgres.schema import history
from pylon.storage.postgres.schema.catalogue import PostgresCatalogue, plan_for
from pylon.storage.postgres.schema.leader import alone
from pylon.storage.postgres.schema.online import OnlineSteps
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.records import IndexSpec

_WAIT_S: Final = 10.0  # for a start or a command that changes the schema


def put_indexes(
    session: BlockingSession, manifest: Manifest, wanted: Sequence[IndexSpec], clock: Clock
) -> int:
    """Replace the indexes of the entities of `manifest` by the `wanted` ones, outside of a
    transaction.

    Returns: the number of indexes made or dropped.

    Raises:
        SchemaRefused: an index has an unknown entity or field, or rows violate its uniqueness. The
            indexes are as they were; if a row broke it while the index was built, without those
            that were to be replaced.
        StartDelayed: another session changes the schema. psycopg.Error
    """
    changed = with_indexes(manifest, wanted)
    with alone(session, _WAIT_S):
        plan = plan_for(session, changed)
        plan.check()
        if not plan.steps:
            return 0
        steps = OnlineSteps(session)
        made: list[Step] = []
        try:
            for step in _in_order(plan.steps):
                steps.run(step)
                if step.kind == "add_index":
                    made.append(step)
        except SchemaRefused:
            for step in made:
                steps.drop_index(step.name)
            raise
        own = own_after(PostgresCatalogue(session), changed, plan)
        history.note_own_indexes(session, own)
        history.record(session, changed, "indexes", [s.render() for s in plan.steps], clock)
        return len(plan.steps)


def _in_order(steps: Sequence[Step]) -> list[Step]:
    """Return the steps; indexes that nothing replaces go last."""
    added = {step.name for step in steps if step.kind == "add_index"}
    gone = [s for s in steps if s.kind == "remove_index" and s.name not in added]
    return [*(step for step in steps if step not in gone), *gone]
