"""Prefetch: reads in one round trip what the requests of a batch will ask for.

It finds the rows of updates and deletes, the operations with op_ids, the owners of unique values,
the rows that others refer to, and the documents of rows. What it overlooks, `table` and
`transaction` read one by one.

Called by `transaction` at the beginning of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson
from psycopg.pq.abc import PGresult

from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity
from pylon.manifest.references import Reference
from pylon.policy.entity_rules import Action, EntityRules
from pylon.policy.related import CheckValues, ExistsCheck
from pylon.query.predicate import FALSE
from pylon.storage.core.transaction import DocumentKey, OpName
from pylon.storage.ops import (
    DeleteRow,
    DropSession,
    InsertRow,
    OpenDocument,
    OpKey,
    PushDocument,
    ResetRows,
    Transact,
    UpdateRow,
    WriteRequest,
)
from pylon.storage.postgres import documents, log, sessions
from pylon.storage.postgres.names import quote
from pylon.storage.postgres.overlay import Check, Overlay
from pylon.storage.postgres.parameters import is_sendable
from pylon.storage.postgres.statements import Statement
from pylon.storage.postgres.table import PostgresTable
from pylon.storage.postgres.unique_keys import UniqueKey, Values

Take = Callable[[PGresult], None]
# Operations that read what only the lock makes certain.
_LOCKED: Final = frozenset({OpenDocument, PushDocument, ResetRows})
_OP_BY_ACTION: Final[dict[Action, type]] = {
    "insert": InsertRow, "update": UpdateRow, "delete": DeleteRow
}


class EntityReads:
    """The reads of one entity's writes. `parents`: the entities that fields refer to, by
    field, with the field's place in an insert. `locks`: the operations that need the lock.
    `is_plain`: an insert asks for nothing."""

    __slots__ = ("has_documents", "is_plain", "locks", "parents", "rules", "table")

    def __init__(
        self, entity: Entity, table: PostgresTable, rules: EntityRules,
        references: Iterable[Reference],
    ) -> None:
        """Args: `references`: all that are checked."""
        self.table = table
        self.rules = rules
        self.has_documents = entity.crdt
        self.parents: dict[str, tuple[int, str]] = {}
        self.locks: set[type] = set()
        places = {field.name: place for place, field in enumerate(entity.fields)}
        for reference in references:
            if reference.entity == entity.name:
                self.parents[reference.field] = places[reference.field], reference.target
            if reference.target == entity.name:
                self.locks.add(DeleteRow)
        if rules.checks["read"]:
            self.locks |= {UpdateRow, DeleteRow}
        for action, op in _OP_BY_ACTION.items():
            if rules.checks[action]:
                self.locks.add(op)
        self.is_plain = not (self.parents or table.uniques or InsertRow in self.locks)


class _Recorder:
    """A source of related rows that notes what it is asked."""

    __slots__ = ("_answer", "_checks")

    def __init__(self, checks: dict[Check, None], answer: bool) -> None:
        self._checks = checks
        self._answer = answer

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        """See `pylon.policy.related.RelatedRows`."""
        where = check.predicate(values)
        if where is not FALSE:
            self._checks[check.entity, where] = None
        return self._answer


class Prefetch:
    """The reads of one batch. `needs_lock`: some of its requests rely on the lock."""

    def __init__(
        self, entities: Mapping[str, EntityReads], ask: Callable[[Check], Statement]
    ) -> None:
        """Args: `ask`: makes the statement that answers a check."""
        self._entities = entities
        self._ask = ask
        self._checks: dict[Check, None] = {}
        self._requests: Sequence[WriteRequest] = ()
        self._rows: dict[str, dict[str, None]] = {}
        self._exists: dict[str, dict[str, None]] = {}
        self._documents: dict[DocumentKey, None] = {}
        self._ops: dict[OpName, None] = {}
        self._owners: dict[UniqueKey, dict[Values, None]] = {}
        self._sessions: dict[str, None] = {}
        self.needs_lock = False

    def plan(self, requests: Sequence[WriteRequest]) -> None:
        """Find what the requests will ask for."""
        self._requests = requests
        entities = self._entities
        for request in requests:
            op: Any = request.op
            if type(op) is InsertRow:
                # PERF: a plain insert, which asks for nothing, costs 0.2 us.
                reads = entities.get(op.entity)
                if reads is None or (
                    reads.is_plain and op.op is None and op.auth is None
                    and not op.client_id_given
                ):
                    continue
                self._plan_op(op)
            elif type(op) is Transact:
                self._plan_key(op.key)
                for step in op.ops:
                    self._plan_op(step)
            else:
                self._plan_op(op)

    def _plan_key(self, key: OpKey | None) -> None:
        if key is not None and is_sendable(key.identity) and is_sendable(key.op_id):
            self._ops[key.identity, key.op_id] = None

    def _plan_op(self, op: Any) -> None:
        kind = type(op)
        if kind is DropSession:
            self._sessions[op.session_id] = None
            return
        if kind in _LOCKED:
            self.needs_lock = True
        reads = self._entities.get(getattr(op, "entity", ""))
        if reads is None:
            return
        if kind in reads.locks:
            self.needs_lock = True
        if kind is InsertRow:
            self._plan_insert(reads, op)
            return
        name = reads.table.name
        if is_sendable(op.row_id):
            self._rows.setdefault(name, {})[op.row_id] = None
            if reads.has_documents:
                self._documents[name, op.row_id] = None
        if kind is UpdateRow:
            self._plan_key(op.op)
            self._plan_update(reads, op)
        elif kind is DeleteRow:
            self._plan_key(op.op)

    def _plan_insert(self, reads: EntityReads, op: InsertRow) -> None:
        self._plan_key(op.op)
        if op.client_id_given and is_sendable(op.row_id):
            self._exists.setdefault(reads.table.name, {})[op.row_id] = None
        if op.auth is not None:
            self.needs_lock = True
            self._plan_checks(reads, op.auth, op.row_json)
        if reads.parents and not op.has_checked_references:
            for place, target in reads.parents.values():
                if place < len(op.values) and is_sendable(op.values[place]):
                    self._exists.setdefault(target, {})[op.values[place]] = None
        if reads.table.uniques:
            try:
                row = orjson.loads(op.row_json)
            except orjson.JSONDecodeError:
                return  # the table refuses it
            for unique in reads.table.uniques:
                self._plan_owner(unique, row)

    def _plan_checks(self, reads: EntityReads, auth: AuthContext, row_json: bytes) -> None:
        """Find out what the insert policy will ask about other rows, by judging it twice: once as
        if all those rows were there, and once as if none were."""
        try:
            row = orjson.loads(row_json)
        except orjson.JSONDecodeError:
            return
        for answer in (True, False):
            reads.rules.may_insert(auth, row, _Recorder(self._checks, answer))

    def _plan_update(self, reads: EntityReads, op: UpdateRow) -> None:
        for name, (_, target) in reads.parents.items():
            if is_sendable(op.patch.get(name)):
                self._exists.setdefault(target, {})[op.patch[name]] = None
        for unique in reads.table.uniques:
            if op.patch.keys() >= unique.affected_by:
                self._plan_owner(unique, op.patch)

    def _plan_owner(self, unique: UniqueKey, row: Mapping[str, Any]) -> None:
        try:
            values = unique.values_of(row)
        except (KeyError, TypeError):
            return  # no row of this entity: the table refuses it
        if values is not None and all(
            isinstance(value, (int, float)) or is_sendable(value) for value in values
        ):
            self._owners.setdefault(unique, {})[values] = None

    # --- The reads -----------------------------------------------------------------------------

    def statements(self, overlay: Overlay, *, locked: bool) -> list[tuple[Statement, Take]]:
        """Return the statements, each with the function that takes its answer into the overlay.

        Args:
            locked: the answers stay true until the commit. So it asks for all new ids: a taken one
                would cost the whole flush. Otherwise they are random enough.
        """
        if locked:
            for op in _inserts(self._requests):
                if op.entity in self._entities and is_sendable(op.row_id):
                    self._exists.setdefault(op.entity, {})[op.row_id] = None
        found: list[tuple[Statement, Take]] = []
        for name, ids in self._rows.items():
            found.append((
                (self._entities[name].table.select_small, (list(ids),)),
                _take_rows(overlay, name, list(ids), locked=locked),
            ))
        for name, ids in self._exists.items():
            found.append((
                (f"SELECT id FROM {quote(name)} WHERE id = ANY($1::text[])", (list(ids),)),
                _take_ids(overlay, name, list(ids)),
            ))
        if self._documents:
            keys = list(self._documents)
            found.append((
                (documents.NUMBERS, ([key[0] for key in keys], [key[1] for key in keys])),
                _take_documents(overlay, keys),
            ))
        if self._ops:
            names = list(self._ops)
            found.append((
                (log.FIND_OPS, ([name[0] for name in names], [name[1] for name in names])),
                _take_ops(overlay, names),
            ))
        for unique, asked in self._owners.items():
            values = list(asked)
            columns = tuple(list(column) for column in zip(*values, strict=True))
            found.append(((unique.find_all, columns), _take_owners(overlay, unique, values)))
        if locked:
            for check in self._checks:
                found.append((self._ask(check), _take_check(overlay, check)))
        if self._sessions:
            ids = self._sessions
            found.append(((sessions.KNOWN, (list(ids),)), _take_sessions(overlay, list(ids))))
        return found


def _inserts(requests: Sequence[WriteRequest]) -> Iterator[InsertRow]:
    for request in requests:
        ops = request.op.ops if isinstance(request.op, Transact) else (request.op,)
        yield from (op for op in ops if isinstance(op, InsertRow))


def _take_rows(overlay: Overlay, name: str, ids: list[str], *, locked: bool) -> Take:
    def take(result: PGresult) -> None:
        rows = overlay.rows
        for row_id in ids:
            rows[name, row_id] = None
        for n in range(result.ntuples):
            key = (name, (result.get_value(n, 0) or b"").decode())
            seq = result.get_value(n, 2)
            version = None if seq is None else int(seq)
            rows[key] = (result.get_value(n, 1), version)
            if not locked:
                overlay.read_versions[key] = version

    return take


def _take_ids(overlay: Overlay, name: str, ids: list[str]) -> Take:
    def take(result: PGresult) -> None:
        for row_id in ids:
            overlay.exists[name, row_id] = False
        for n in range(result.ntuples):
            overlay.exists[name, (result.get_value(n, 0) or b"").decode()] = True

    return take


def _take_documents(overlay: Overlay, keys: list[DocumentKey]) -> Take:
    def take(result: PGresult) -> None:
        for key in keys:
            overlay.documents[key] = None
        for n in range(result.ntuples):
            entity, row_id = result.get_value(n, 0) or b"", result.get_value(n, 1) or b""
            number = int(result.get_value(n, 2) or 0)
            overlay.documents[entity.decode(), row_id.decode()] = number

    return take


def _take_ops(overlay: Overlay, names: list[OpName]) -> Take:
    def take(result: PGresult) -> None:
        for name in names:
            overlay.ops[name] = None
        for n in range(result.ntuples):
            identity, op_id, seq, row_id, digest = (result.get_value(n, c) for c in range(5))
            overlay.ops[(identity or b"").decode(), (op_id or b"").decode()] = (
                int(seq or 0), (row_id or b"").decode(), None if digest is None else digest.decode()
            )

    return take


def _take_owners(overlay: Overlay, unique: UniqueKey, values: list[Values]) -> Take:
    def take(result: PGresult) -> None:
        for key in values:
            overlay.owners[unique, key] = None
        for n in range(result.ntuples):
            row = result.get_value(n, 2) if unique.where is not None else None
            if unique.where is None or unique.where(orjson.loads(row or b"{}")):
                key = values[int(result.get_value(n, 0) or 1) - 1]
                overlay.owners[unique, key] = (result.get_value(n, 1) or b"").decode()

    return take


def _take_check(overlay: Overlay, check: Check) -> Take:
    return lambda result: overlay.put_check(check, result.get_value(0, 0) == b"t")


def _take_sessions(overlay: Overlay, ids: list[str]) -> Take:
    def take(result: PGresult) -> None:
        for session_id in ids:
            overlay.sessions[session_id] = False
        for n in range(result.ntuples):
            overlay.sessions[(result.get_value(n, 0) or b"").decode()] = True

    return take
