"""Additive migration: makes and completes the tables of a PostgreSQL database at the start.

Many nodes may start at once, and others serve meanwhile. One node at a time changes the schema: it
has the session lock SCHEMA, and the others wait `LOCK_WAIT_S`, then find nothing left to do. In a
database without Pylon's tables everything is one transaction. In all others each step is one of
its own (`online`), and rows are written in short steps (`backfill`). A killed start leaves a part
of the plan; the next one continues it.

An index that is not unique, over a large table, is left for later (`pending`): no answer
depends on it. What a start does not leave for later, it has done when it serves: columns, unique
indexes, the JSON and the words of all rows. While nodes with another manifest live, it takes
nothing away that they may use, and triggers add the keys that their rows lack (`fill`). If the rows
have more fields than its own manifest, this node is the older one and leaves them as they are.

Invariants: after `prepare_store` every row has its `_json`, with all fields of the manifest; with
others only while nodes live that have them, until `pending` has mended the rows. A row
whose JSON has changed has a `_seq` that it never had before. A database with rows has a head seq
above 0. `prepare_store` is called by the engine (`pylon.storage.postgres.engine`), `complete` also
by `rewrite`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from pylon import limits
from pylon.clock import Clock, SystemRandom
from pylon.log import get_logger
from pylon.manifest import references
from pylon.manifest.model import Entity, Field, Manifest
from pylon.schema.columns import FOLD_PREFIX
from pylon.schema.convert import shape_of
from pylon.schema.history import own_after, retained_columns
from pylon.schema.steps import Plan, Prepared
from pylon.storage.core import broken_rows
from pylon.storage.postgres import meta
from pylon.storage.postgres.epochs import head_seq, open_epoch
from pylon.storage.postgres.functions import FUNCTIONS
from pylon.storage.postgres.locks import WRITER, lock_key
from pylon.storage.postgres.names import fitting_name, quote
from pylon.storage.postgres.schema import ddl, history, search
from pylon.storage.postgres.schema.backfill import Goal, backfill
from pylon.storage.postgres.schema.catalogue import (
    PostgresCatalogue,
    decoder_of,
    plan_for,
    references_by_default,
)
from pylon.storage.postgres.schema.leader import LOCK_WAIT_S, alone
from pylon.storage.postgres.schema.live import has_table
from pylon.storage.postgres.schema.online import OnlineSteps
from pylon.storage.postgres.schema.pending import (
    find_others,
    join_mixed,
    leaves,
    may_wait,
    note_mixed,
)
from pylon.storage.postgres.schema.results import ask, ask_number, ask_one, text_rows
from pylon.storage.postgres.transfer.unfinished import refuse_unfinished
from pylon.storage.postgres.wire import BlockingSession

ROWS_AT_START: Final = 50_000  # of a table whose plain indexes a start builds itself
_LINEAGE_BYTES: Final = 16
_FUNCTIONS: Final = "functions"  # a digest of those that the schema has
_FILL_VALUES: Final[dict[str, object]] = {
    "TEXT": "", "BIGINT": 0, "INTEGER": 0, "DOUBLE PRECISION": 0.0, "BOOLEAN": False,
}
_OBJECTS: Final = (
    "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND starts_with(relname, '_pylon_') AND NOT EXISTS (SELECT 1 FROM pg_index "
    "WHERE indexrelid = pg_class.oid AND NOT indisvalid)"  # left by a killed start
)
_COLUMNS: Final = (
    "SELECT table_name, column_name FROM information_schema.columns "
    "WHERE table_schema = current_schema()"
)
_KEY_NAME: Final = (
    "SELECT c.relname FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid "
    "WHERE x.indrelid = $1::regclass AND x.indisprimary"
)

_log = get_logger("schema")


def prepare_store(
    session: BlockingSession, manifest: Manifest, clock: Clock, *, wait_s: float = LOCK_WAIT_S
) -> Prepared:
    """Make or complete all tables; see the module.

    Args:
        session: outside of a transaction. Its limits are as before afterwards.
        wait_s: how long to wait for another node that changes the schema.

    Raises:
        SchemaRefused: additive steps do not suffice, or a move of data into the database was not
            finished; nothing was changed.
        StartDelayed: another node changes the schema, or a table is locked, for too long.
        psycopg.Error: the database cannot be used.
    """
    with alone(session, wait_s):
        refuse_unfinished(session)
        history.refuse_newer(session)
        if has_table(session, "_pylon_meta"):
            make_system_tables(session)
            history.refuse_older_nodes(session)
            return complete(session, manifest, clock, "start", [])
        with transaction(session):
            make_system_tables(session)
            return complete(session, manifest, clock, "start", [])


@contextmanager
def transaction(session: BlockingSession) -> Iterator[None]:
    """Run the block in a transaction that has the writers' lock; undo it after an error."""
    session.execute("BEGIN")
    try:
        session.execute("SELECT pg_advisory_xact_lock($1)", (lock_key(session, WRITER),))
        yield
        session.execute("COMMIT")
    finally:
        if session.is_in_transaction:
            session.execute("ROLLBACK")


def make_system_tables(session: BlockingSession) -> None:
    """Make missing system tables and functions."""
    checks_references = references_by_default(session)
    present = {name for (name,) in ask(session, _OBJECTS)}
    for statement in ddl.SYSTEM_TABLES:
        if ddl.made_by(statement) not in present:
            session.execute_script(statement)
    steps, columns = OnlineSteps(session), set(ask(session, _COLUMNS))
    for table, column, kind in ddl.LATER_COLUMNS:
        if (table, column) not in columns:
            steps.change_table(
                f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {kind}", table
            )
    for name, (table, statement) in ddl.SYSTEM_INDEXES.items():
        if name not in present:
            steps.make_index(name, statement, is_new=table not in present)
    if not present:
        session.execute(ddl.FIRST_HEAD)
    made_for = sha256("".join(FUNCTIONS).encode()).hexdigest()
    if meta.get(session, _FUNCTIONS) != made_for:
        for statement in FUNCTIONS:
            session.execute_script(statement)
        meta.put(session, _FUNCTIONS, made_for)
    if checks_references and meta.get(session, references.FACT) is None:
        meta.put(session, references.FACT, "check")


def complete(
    session: BlockingSession, manifest: Manifest, clock: Clock, baseline: str,
    before: Sequence[str],
) -> Prepared:
    """Plan and execute the additive steps, within the open transaction or in many.

    Args:
        baseline: `start` or `apply`, for the history.
        before: the steps that this transaction has executed already, for the history.
    """
    is_within = session.is_in_transaction
    plan = plan_for(session, manifest)
    plan.check()
    others = [] if is_within else find_others(session, manifest)
    if others:
        plan = _without_removals(plan)
        _log.info("schema.mixed", others=others)
    lines = [*before, *(step.render() for step in plan.steps)]
    head = 0
    if not is_within:
        _note_begin(session, lines)
        head = head_seq(session)
    new_tables = {step.entity for step in plan.steps if step.kind == "create_entity"}
    catalogue = PostgresCatalogue(session)
    # Noted before they are made: a killed start must not leave one that no later start drops.
    additions = replace(plan, steps=tuple(s for s in plan.steps if s.kind == "add_index"))
    history.note_own_indexes(session, own_after(catalogue, manifest, additions))
    _execute(session, manifest, plan, new_tables, head, is_mixed=bool(others))
    history.note_own_indexes(session, own_after(catalogue, manifest, plan))

    lineage = meta.get(session, "lineage")
    created = lineage is None
    epoch_opened = False
    if head_seq(session) == 0 and any(_exists(session, e) for e in manifest.entities):
        if is_within:
            open_epoch(session, "rows without a change log", clock)
        else:
            with transaction(session):
                open_epoch(session, "rows without a change log", clock)
        epoch_opened = True
    _write_rows(session, manifest, new_tables, head, is_mixed=bool(others))
    broken_rows.report_broken_rows(manifest, _Facts(session), _first_values(session))
    if lineage is None:
        lineage = SystemRandom().token_hex(_LINEAGE_BYTES)
        meta.put(session, "lineage", lineage)
    history.record(session, manifest, baseline, lines, clock)
    history.note_unfinished(session, ())
    return Prepared(
        plan, created, epoch_opened, lineage, retained_columns(catalogue, manifest, _FILL_VALUES)
    )


def _without_removals(plan: Plan) -> Plan:
    """Return a plan without the indexes that only leave: `pending` drops them later."""
    added = {step.name for step in plan.steps if step.kind == "add_index"}
    return replace(
        plan, steps=tuple(s for s in plan.steps if not leaves(s) or s.name in added)
    )


def _note_begin(session: BlockingSession, lines: Sequence[str]) -> None:
    unfinished = history.unfinished_steps(session)
    if unfinished:
        _log.warning("schema.continued", begun=unfinished, left=list(lines))
    if lines:
        history.note_unfinished(session, lines)


def _execute(
    session: BlockingSession, manifest: Manifest, plan: Plan, new_tables: set[str], head: int,
    *, is_mixed: bool,
) -> None:
    """Execute the steps but those that may wait."""
    steps = OnlineSteps(session)
    sizes: dict[str, bool] = {}
    for step in plan.steps:
        if step.kind == "fill_fold":
            field = step.name.removeprefix(FOLD_PREFIX)
            if is_mixed:
                note_mixed(session, step.entity, head)
            backfill(
                session, manifest.by_name[step.entity], Goal(step.name, folds=(field,))
            )
        elif may_wait(step) and not session.is_in_transaction and step.entity not in new_tables:
            if step.entity not in sizes:
                sizes[step.entity] = _is_large(session, step.entity)
            if sizes[step.entity]:
                _log.info("schema.index.pending", index=step.name, entity=step.entity)
                continue
            steps.run(step)
        else:
            steps.run(step, new_tables)
    if not is_mixed:
        search.forget_left(session, manifest, steps)
    for entity in manifest.entities:
        search.add_columns(session, entity, steps, new_tables)
        if session.is_in_transaction and entity.name not in new_tables:
            _name_key(session, entity, steps)  # a renamed table, or another program's


def _name_key(session: BlockingSession, entity: Entity, steps: OnlineSteps) -> None:
    """Give the index of the primary key its usual name, by which errors name it."""
    name = fitting_name(f"{entity.name}_pkey")
    known = ask_one(session, _KEY_NAME, (quote(entity.name),))
    if known is not None and known != name:
        steps.change_table(f"ALTER INDEX {quote(known)} RENAME TO {quote(name)}", entity.name)


def _write_rows(
    session: BlockingSession, manifest: Manifest, new_tables: set[str], head: int, *,
    is_mixed: bool,
) -> None:
    """Write the JSON and the words of entities whose rows have to change.

    Args:
        is_mixed: nodes with another manifest live.
    """
    steps = OnlineSteps(session)
    for entity in manifest.entities:
        key, shape = f"shape:{entity.name}", shape_of(entity)
        has_json = meta.get(session, key) != shape
        has_words = not search.is_current(session, entity)
        if has_json and is_mixed and entity.name not in new_tables:
            has_json = join_mixed(session, entity, head, steps)
            if not has_json:  # the rows have more than this manifest
                continue
        goal = Goal(
            sha256((shape + search.built_for(entity)).encode()).hexdigest(),
            has_json=has_json, has_words=has_words,
        )
        if goal.is_empty:
            continue
        if entity.name not in new_tables:
            if is_mixed:
                note_mixed(session, entity.name, head)
            rows = backfill(session, entity, goal)
            _log.info("schema.rows.written", entity=entity.name, rows=rows,
                      json=goal.has_json, words=goal.has_words)
        meta.put(session, key, shape)
        search.note_current(session, entity)


def _is_large(session: BlockingSession, table: str) -> bool:
    return ask_number(
        session,
        f"SELECT count(*) FROM (SELECT 1 FROM {quote(table)} LIMIT {ROWS_AT_START + 1}) AS few",
    ) > ROWS_AT_START


def _exists(session: BlockingSession, entity: Entity) -> bool:
    return ask_one(session, f"SELECT 1 FROM {quote(entity.name)} LIMIT 1") is not None


def _first_values(session: BlockingSession) -> broken_rows.ReadFirst:
    def read_first(entity: Entity, fields: Sequence[Field]) -> Iterable[Sequence[Any]]:
        columns = ", ".join(quote(field.name) for field in fields)
        decoders = [decoder_of(ddl.COLUMN_TYPES[field.type]) for field in fields]
        for part in session.stream(
            f"SELECT {columns} FROM {quote(entity.name)} ORDER BY id LIMIT $1",
            (limits.BROKEN_ROWS_SCANNED,),
        ):
            for texts in text_rows(part):
                yield [
                    None if text is None else decode(text)
                    for text, decode in zip(texts, decoders, strict=True)
                ]

    return read_first


class _Facts:
    """The facts of the session's database."""

    def __init__(self, session: BlockingSession) -> None:
        self._session = session

    def get(self, key: str) -> str | None:
        """See `Facts`."""
        return meta.get(self._session, key)

    def put(self, key: str, value: str) -> None:
        """See `Facts`."""
        meta.put(self._session, key, value)
