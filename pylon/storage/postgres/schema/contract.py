"""Contract: the end of a rolling upgrade, once every living node has the new manifest.

It brings what waits to an end (`pending`), and makes the database as narrow as the manifest:

- NOT NULL for required fields, without a pause: a CHECK that is NOT VALID holds for new rows at
  once, VALIDATE looks through the table while others write, SET NOT NULL then needs no look.
- Columns that left the manifest and still demand a value no longer do.
- Columns and tables that the operator wants to be dropped. A column that running writers still fill
  has to wait until each node has started again.

Invariants: no statement of others waits longer than for `online.LOCK_WAIT_MS` and the moment that
a change of the catalogue takes. A killed run leaves a CHECK at most, which the next one takes up.
`_pylon_meta` has a key `freed:<Entity>`: columns that no longer demand a value, and since when.
Called by `manager`, for `pylonctl schema finish`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import orjson
import psycopg

from pylon.clock import Clock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Entity, Field, Manifest
from pylon.schema.live import LiveColumn, LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.plan import columns_to_fill
from pylon.schema.steps import Plan, Step
from pylon.storage.postgres import meta
from pylon.storage.postgres.documents import DROP_ENTITY
from pylon.storage.postgres.names import fitting_name, quote
from pylon.storage.postgres.schema import ddl, history
from pylon.storage.postgres.schema.catalogue import PostgresCatalogue
from pylon.storage.postgres.schema.leader import alone
from pylon.storage.postgres.schema.online import FAULTS, OnlineSteps, refusal_text
from pylon.storage.postgres.schema.pending import count_pending, find_others, finish_alone
from pylon.storage.postgres.schema.results import ask, ask_number, ask_one
from pylon.storage.postgres.schema.rewrite import drop_facts
from pylon.storage.postgres.wire import BlockingSession

_WAIT_S: Final = 10.0  # for a start or another command that changes the schema
_NOT_NULL: Final = "NOT NULL"
_FREE: Final = "may be null"
_FREED_KEY: Final = "freed:"
_NOW: Final = "SELECT extract(epoch FROM clock_timestamp())::bigint"
_STARTED_BEFORE: Final = (
    "SELECT node FROM _pylon_nodes WHERE started_at <= to_timestamp($1) ORDER BY node"
)
_CHECK: Final = (
    "SELECT convalidated FROM pg_constraint WHERE conrelid = $1::regclass AND conname = $2"
)


def plan_contract(
    session: BlockingSession, manifest: Manifest, asked: MigrationOptions
) -> Plan:
    """Return what `finish_contract` would do; its removals are `rewrites`.

    Args:
        asked: columns and tables to drop; nothing else of it is read.
    """
    catalogue = PostgresCatalogue(session)
    live = catalogue.introspect([*(e.name for e in manifest.entities), *asked.drop_entities])
    refusals: list[str] = []
    others = find_others(session, manifest)
    if others:
        refusals.append(
            f"nodes with another manifest live: {', '.join(others)} (start them with this one; a "
            "killed one counts for 10 s)"
        )
    steps: list[Step] = []
    removals: list[Step] = []
    for entity in manifest.entities:
        table = live.tables.get(entity.name.lower())
        if table is None:
            refusals.append(f"{entity.name}: there is no table (start a node, or: schema apply)")
            continue
        steps += _tightened(catalogue, entity, table, refusals)
        steps += [
            Step("alter_field", entity.name, column.name, detail=_FREE)
            for column in columns_to_fill(catalogue, entity, table)
        ]
    for key, name in sorted(asked.drop_fields):
        found = live.tables.get(key)
        column = None if found is None else found.columns.get(name)
        if found is None or column is None:
            refusals.append(f"--drop-field {key}.{name}: there is no such column")
            continue
        problem = _find_filling(session, manifest, catalogue, found, column)
        if problem:
            refusals.append(f"--drop-field {found.name}.{column.name}: {problem}")
        removals.append(Step("remove_field", found.name, column.name,
                             detail="its values are removed", destructive=True))
    for key in sorted(asked.drop_entities):
        found = live.tables.get(key)
        if found is None:
            refusals.append(f"--drop-entity {key}: there is no such table")
            continue
        rows = catalogue.count_rows(found)
        removals.append(Step("remove_entity", found.name, found.name,
                             detail=f"{rows} rows are removed", destructive=True))
    return Plan(tuple(steps), tuple(removals), tuple(refusals))


def finish_contract(
    session: BlockingSession, manifest: Manifest, asked: MigrationOptions, clock: Clock, *,
    allow_destructive: bool,
) -> list[Step]:
    """Finish the upgrade. Return the steps that were done.

    Raises:
        SchemaRefused: nodes with another manifest live, rows do not allow it, or a removal needs
            `allow_destructive`; steps before the refused one are done.
        StartDelayed: another node changes the schema, or a table stays locked.
        psycopg.Error
    """
    with alone(session, _WAIT_S):
        history.refuse_newer(session)
        plan = plan_contract(session, manifest, asked)
        plan.check_apply(allow_destructive=allow_destructive)
        finish_alone(session, manifest, clock)
        left = count_pending(session, manifest)
        if left:
            raise SchemaRefused(f"{left} steps of the start are left", hint="try again")
        run = _Contract(session)
        done = [*plan.steps, *plan.rewrites]
        try:
            for step in done:
                run.run(step)
        except FAULTS as error:
            raise SchemaRefused(f"{step.render()}: {refusal_text(error)}") from error
        if done:
            history.record(session, manifest, "finish", [s.render() for s in done], clock)
        return done


def _tightened(
    catalogue: PostgresCatalogue, entity: Entity, table: LiveTable, refusals: list[str]
) -> Iterator[Step]:
    for field, column in _required(entity, table):
        nulls = catalogue.count_nulls(table, column)
        if nulls:
            refusals.append(f"{entity.name}.{field.name}: required, and {nulls} rows have null")
        else:
            yield Step("alter_field", entity.name, field.name, detail=_NOT_NULL)


def _required(entity: Entity, table: LiveTable) -> Iterator[tuple[Field, LiveColumn]]:
    """Yield the required fields whose columns may be null."""
    for field in entity.fields:
        column = table.columns.get(field.name.lower())
        if column is not None and not field.optional and not column.not_null:
            yield field, column


def _find_filling(
    session: BlockingSession, manifest: Manifest, catalogue: PostgresCatalogue, table: LiveTable,
    column: LiveColumn,
) -> str:
    """Return why a column cannot be dropped while nodes serve; "" if it can."""
    entity = manifest.by_name.get(table.name)
    if entity is None:
        return ""
    if column.name in entity.columns:
        return "the manifest has this field"
    if any(c.name == column.name for c in columns_to_fill(catalogue, entity, table)):
        return "it demands a value; finish without this option, start each node again, then drop it"
    since_s = _freed(session, entity.name).get(column.name)
    nodes = [] if since_s is None else [
        str(node) for (node,) in ask(session, _STARTED_BEFORE, (since_s,))
    ]
    return f"these nodes still fill it, start them again first: {', '.join(nodes)}" if nodes else ""


def _freed(session: BlockingSession, entity: str) -> dict[str, int]:
    noted = meta.get(session, _FREED_KEY + entity)
    return {} if noted is None else dict(orjson.loads(noted))


class _Contract:
    """Carries out the steps."""

    def __init__(self, session: BlockingSession) -> None:
        self._session = session
        self._online = OnlineSteps(session)

    def run(self, step: Step) -> None:
        """Carry out one step.

        Raises:
            StartDelayed, psycopg.Error
        """
        if step.kind == "remove_field":
            self._online.run(replace(step, sql=ddl.drop_column(step.entity, step.name)))
        elif step.kind == "remove_entity":
            self._online.run(replace(step, sql=f"DROP TABLE {quote(step.name)}"))
            drop_facts(self._session, step.name)
            for statement in DROP_ENTITY:
                self._session.execute(statement, (step.name,))
        elif step.detail == _NOT_NULL:
            self._set_not_null(step.entity, step.name)
        else:
            self._online.run(replace(step, sql=ddl.drop_not_null(step.entity, step.name)))
            self._note_freed(step.entity, step.name)

    def _set_not_null(self, entity: str, column: str) -> None:
        table, name = f"ALTER TABLE {quote(entity)}", fitting_name(f"_pylon_required_{column}")
        check = quote(name)
        is_valid = ask_one(self._session, _CHECK, (quote(entity), name))
        if is_valid is None:
            self._online.change_table(
                f"{table} ADD CONSTRAINT {check} CHECK ({quote(column)} IS NOT NULL) NOT VALID",
                entity,
            )
        try:
            # Takes no lock that readers or writers wait for.
            self._session.execute_script(f"{table} VALIDATE CONSTRAINT {check}")
        except psycopg.errors.CheckViolation:
            self._online.change_table(f"{table} DROP CONSTRAINT {check}", entity)
            raise
        self._online.change_table(
            f"{table} ALTER COLUMN {quote(column)} SET NOT NULL;\n{table} DROP CONSTRAINT {check}",
            entity,
        )

    def _note_freed(self, entity: str, column: str) -> None:
        since_s = ask_number(self._session, _NOW) + 1
        noted = _freed(self._session, entity) | {column: since_s}
        meta.put(self._session, _FREED_KEY + entity, orjson.dumps(noted).decode())
