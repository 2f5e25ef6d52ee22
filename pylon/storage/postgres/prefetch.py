"""Prefetch: reads what the requests of a batch will ask for, before they are executed.

The first round trip reads the rows of updates and deletes, the operations with op_ids, the owners
of unique values, the rows that others refer to, the documents of rows, and what the insert policies
ask of other rows. The second one reads what the policies of these rows ask. Further ones follow the
references to rows that may be deleted (`prefetch_cascades`). What they overlook, `table` and
`transaction` read one by one.

Called by `transaction` at the beginning of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson
from psycopg.errors import CharacterNotInRepertoire

from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity
from pylon.manifest.references import Reference
from pylon.policy.entity_rules import Action, EntityRules
from pylon.policy.related import CheckValues, ExistsCheck
from pylon.query.predicate import FALSE
from pylon.storage.auth_ops import (
    CheckRecords,
    DropRecords,
    EndSessions,
    LimitRecords,
    PutRecord,
    SetRecords,
    TakeRates,
)
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
from pylon.storage.postgres.parameters import (
    EncodedParameters,
    encode_parameters,
    is_sendable,
)
from pylon.storage.postgres.prefetch_answers import (
    Read,
    take_check,
    take_documents,
    take_ids,
    take_ops,
    take_owners,
    take_rows,
    take_sessions,
)
from pylon.storage.postgres.prefetch_cascades import CascadeReads
from pylon.storage.postgres.statements import Statement
from pylon.storage.postgres.table import PostgresTable
from pylon.storage.postgres.unique_keys import UniqueKey, Values

# Operations that read what only the lock makes certain.
_LOCKED: Final = frozenset({
    OpenDocument, PushDocument, ResetRows, PutRecord, SetRecords, DropRecords, CheckRecords,
    LimitRecords, EndSessions, TakeRates,
})
_ACTIONS: Final[dict[type, Action]] = {
    UpdateRow: "update", DeleteRow: "delete", PushDocument: "update",
}


class EntityReads:
    """The reads of one entity's writes. `parents`: the entities that fields refer to, by
    field, with the field's place in an insert. `files`: the places of the fields that name files,
    by field. `is_plain`: an insert asks for nothing."""

    __slots__ = ("files", "has_documents", "is_plain", "parents", "rules", "table")

    def __init__(
        self, entity: Entity, table: PostgresTable, rules: EntityRules,
        references: Iterable[Reference],
    ) -> None:
        """Args: `references`: all that are checked."""
        self.table = table
        self.rules = rules
        self.has_documents = entity.crdt
        places = {field.name: place for place, field in enumerate(entity.fields)}
        self.parents = {
            reference.field: (places[reference.field], reference.target)
            for reference in references if reference.entity == entity.name
        }
        self.files = {field.name: places[field.name] for field in entity.file_fields}
        self.is_plain = not (
            self.parents or table.uniques or rules.checks["insert"] or self.files
        )


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


class _KnownRows:
    """A source of related rows that knows the answers of an overlay; an unknown one is no."""

    __slots__ = ("_overlay",)

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        """See `pylon.policy.related.RelatedRows`."""
        return self._overlay.checks.get((check.entity, check.predicate(values)), False)


class Prefetch:
    """The reads of one batch. `needs_lock`: some of its requests rely on the lock."""

    def __init__(
        self, entities: Mapping[str, EntityReads], ask: Callable[[Check], Statement],
        referring: Mapping[str, Collection[Reference]],
    ) -> None:
        """
        Args:
            ask: makes the statement that answers a check.
            referring: the checked references to each entity.
        """
        self._entities = entities
        self._ask = ask
        self._cascades = CascadeReads(
            referring, [name for name, reads in entities.items() if reads.has_documents]
        )
        self._judged: list[tuple[EntityReads, Any]] = []  # operations on rows with such policies
        self._deletes: list[tuple[EntityReads, DeleteRow]] = []
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
        if kind in _LOCKED or self._touches_files(kind, op):
            self.needs_lock = True
        reads = self._entities.get(getattr(op, "entity", ""))
        if reads is None:
            return
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
            self._deletes.append((reads, op))
        checks = reads.rules.checks
        action = _ACTIONS.get(kind)
        if action is not None and (checks["read"] or checks[action]):
            self._judged.append((reads, op))

    def _touches_files(self, kind: type, op: Any) -> bool:
        """Whether an operation attaches or detaches files, which the lock makes certain."""
        if kind is DeleteRow:
            # A cascade may reach any entity.
            return any(each.files for each in self._entities.values())
        reads = self._entities.get(getattr(op, "entity", ""))
        if reads is None or not reads.files:
            return False
        if kind is UpdateRow:
            return not reads.files.keys().isdisjoint(op.patch)
        return kind is not InsertRow or any(
            op.values[place] is not None for place in reads.files.values()
        )

    def _plan_insert(self, reads: EntityReads, op: InsertRow) -> None:
        self._plan_key(op.op)
        if op.client_id_given and is_sendable(op.row_id):
            self._exists.setdefault(reads.table.name, {})[op.row_id] = None
        if op.auth is not None:
            self._plan_insert_checks(reads, op.auth, op.row_json)
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

    def _plan_insert_checks(self, reads: EntityReads, auth: AuthContext, row_json: bytes) -> None:
        """Find out what the insert policy will ask about other rows, by judging it twice: once as
        if all those rows were there, and once as if none were."""
        try:
            row = orjson.loads(row_json)
        except orjson.JSONDecodeError:
            return
        for answer in (True, False):
            reads.rules.may_insert(auth, row, _Recorder(self._checks, answer))

    def _plan_row_checks(self, overlay: Overlay) -> None:
        """Do the same for the policies of existing rows, which were read."""
        for reads, op in self._judged:
            known = overlay.rows.get((reads.table.name, op.row_id))
            if known is None or known[0] is None:
                continue
            row, rules, auth = orjson.loads(known[0]), reads.rules, op.auth
            for answer in (True, False):
                recorder = _Recorder(self._checks, answer)
                rules.may_read(auth, row, recorder)
                if type(op) is UpdateRow:
                    rules.may_update(auth, row, {**row, **op.patch}, recorder)
                elif type(op) is DeleteRow:
                    rules.may_delete(auth, row, recorder)
                elif type(op) is PushDocument:
                    rules.may_begin_update(auth, row, recorder)

    def _plan_cascades(self, overlay: Overlay, *, asks: bool) -> None:
        """Follow the references to the rows that the batch deletes.

        Only of deletes that the policies allow: others may not cause such large reads.

        Args:
            asks: of the entities whose policies ask other rows; their answers were read.
        """
        related = _KnownRows(overlay)
        for reads, op in self._deletes:
            rules, auth = reads.rules, op.auth
            if bool(rules.checks["read"] or rules.checks["delete"]) is not asks:
                continue
            known = overlay.rows.get((reads.table.name, op.row_id))
            if known is None or known[0] is None:
                continue
            row = orjson.loads(known[0])
            if rules.may_read(auth, row, related) and rules.may_delete(auth, row, related):
                self._cascades.add(reads.table.name, op.row_id)

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

    def rounds(self, overlay: Overlay, *, locked: bool) -> Iterator[list[Read]]:
        """Yield the reads of each round trip. The caller lets their answers be taken before it asks
        for the next one.

        Args:
            locked: the answers stay true until the commit. So it asks for all new ids: a taken one
                would cost the whole flush. Otherwise they are random enough.
        """
        if locked:
            for op in _inserts(self._requests):
                if op.entity in self._entities and is_sendable(op.row_id):
                    self._exists.setdefault(op.entity, {})[op.row_id] = None
        yield [
            *self._key_reads(overlay, locked=locked),
            *self._check_reads(overlay, locked=locked),
        ]
        self._plan_row_checks(overlay)
        self._plan_cascades(overlay, asks=False)
        found = [
            *self._check_reads(overlay, locked=locked),
            *self._cascades.reads(overlay, locked=locked),
        ]
        if found:
            yield found
        self._plan_cascades(overlay, asks=True)
        while found := self._cascades.reads(overlay, locked=locked):
            yield found

    def _key_reads(self, overlay: Overlay, *, locked: bool) -> Iterator[Read]:
        for name, row_ids in self._rows.items():
            ids = list(row_ids)
            text = self._entities[name].table.select_small
            yield (text, (ids,)), take_rows(overlay, name, ids, locked=locked)
        for name, row_ids in self._exists.items():
            ids = list(row_ids)
            text = f"SELECT id FROM {quote(name)} WHERE id = ANY($1::text[])"
            yield (text, (ids,)), take_ids(overlay, name, ids)
        if self._documents:
            keys = list(self._documents)
            yield (
                (documents.NUMBERS, ([key[0] for key in keys], [key[1] for key in keys])),
                take_documents(overlay, keys),
            )
        if self._ops:
            names = list(self._ops)
            yield (
                (log.FIND_OPS, ([name[0] for name in names], [name[1] for name in names])),
                take_ops(overlay, names),
            )
        for unique, asked in self._owners.items():
            values = list(asked)
            columns = tuple(list(column) for column in zip(*values, strict=True))
            yield (unique.find_all, columns), take_owners(overlay, unique, values)
        if self._sessions:
            ids = list(self._sessions)
            yield (sessions.KNOWN, (ids,)), take_sessions(overlay, ids)

    def _check_reads(self, overlay: Overlay, *, locked: bool) -> Iterator[Read]:
        checks, self._checks = self._checks, {}
        for check in checks:
            if check in overlay.checks:
                continue
            text, parameters = self._ask(check)
            try:
                values, formats = encode_parameters(parameters)
            except CharacterNotInRepertoire:
                continue  # of one request, which fails alone later
            if formats is None:  # encoded once, for the guard too
                parameters = EncodedParameters(values or ())
            statement = text, parameters
            yield statement, take_check(overlay, check, statement, locked=locked)


def _inserts(requests: Sequence[WriteRequest]) -> Iterator[InsertRow]:
    for request in requests:
        ops = request.op.ops if isinstance(request.op, Transact) else (request.op,)
        yield from (op for op in ops if isinstance(op, InsertRow))
