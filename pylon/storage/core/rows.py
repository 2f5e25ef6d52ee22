"""Row writes: inserts, updates and deletes one row, or deletes all.

It evaluates the policies of updates and deletes, and If-Match, on the rows as they are stored. A
change is one primitive of `transaction.RowTable`. The `Journal` notes its event. The row's document
changes in the same transaction. `idempotency` finds repeated operations before they come here.

Invariant: an operation that raises has changed neither a row nor a document. Called by `engine`, in
its transaction, and by `documents` for the row of a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from msgspec.structs import replace

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.clock import Clock
from pylon.errors import EntityNotFound, NotFound, PreconditionFailed, PylonError
from pylon.manifest.references import Reference
from pylon.policy.entity_rules import Action
from pylon.storage.core.attachments import AttachmentWrites
from pylon.storage.core.constraint_errors import constraint_error
from pylon.storage.core.documents import DocumentWrites
from pylon.storage.core.entity import EntityWrites
from pylon.storage.core.journal import Journal
from pylon.storage.core.large_rows import LargeRowBudget
from pylon.storage.core.references import Cascade, ReferenceChecks, StoredRow
from pylon.storage.core.related import TransactionRelated
from pylon.storage.core.transaction import PROVISIONAL_SEQ, ConstraintFailed, RowTransaction
from pylon.storage.ops import DeleteRow, InsertRow, PushDocument, ResetRows, UpdateRow, WriteReply
from pylon.values import check_row_size

_VERSIONS_SHOWN: Final = 5  # versions of an If-Match that a message names


class RowWrites:
    """All rows of a database, for its writer, and their `documents`."""

    __slots__ = (
        "_entities", "_transaction", "attachments", "documents", "large", "references", "related",
    )

    def __init__(
        self, transaction: RowTransaction, entities: Mapping[str, EntityWrites], clock: Clock,
        references: Iterable[Reference] = (),
    ) -> None:
        """Args: `references`: those that are checked."""
        self._transaction = transaction
        self._entities = entities
        self.related = TransactionRelated(transaction)
        self.large = LargeRowBudget()
        self.references = ReferenceChecks(entities, references)
        self.attachments = AttachmentWrites(
            transaction, [each.entity for each in entities.values()]
        )
        self.documents = DocumentWrites(transaction, entities, self, clock)

    def insert(self, request_id: int, op: InsertRow, journal: Journal) -> WriteReply:
        """Add one row. The caller has evaluated its policy, or the op has its `auth`.

        Raises:
            EntityNotFound, UniqueViolation, NullNotAllowed, PolicyDenied, ReferenceNotFound
            FileNotAttachable, InvalidValue: see `attachments`.
        """
        entity = self.entity(op.entity)
        row_id, row_json = op.row_id, op.row_json
        if op.auth is not None:
            row = orjson.loads(row_json)
            if not entity.rules.may_insert(op.auth, row, self.related):
                raise entity.rules.denied("insert", op.auth, row, None, self.related)
        if len(row_json) > limits.LARGE_ROW_BYTES:
            check_row_size(op.entity, len(row_json), entity.row_max_bytes)
            self.large.charge(op.entity, row_id, len(row_json))
        if op.entity in self.references.checked and not op.has_checked_references:
            self.references.check_insert(entity, row_id, op.values)
        attachment = None
        if op.entity in self.attachments.entities:
            after = orjson.loads(row_json)
            attachment = self.attachments.plan(op.entity, row_id, None, after, op.auth)
        earlier = journal.event_of_deleted(op.entity, row_id) if journal.deleted else None
        seq = journal.next_seq(op.entity) if earlier is None else earlier.seq
        try:
            entity.table.insert(row_id, op.values, row_json, seq)
        except ConstraintFailed as failure:
            raise constraint_error(
                op.entity, failure, orjson.loads(row_json), client_id_given=op.client_id_given
            ) from failure
        if attachment is not None:
            self.attachments.execute(op.entity, row_id, attachment, journal.now_s)
        journal.note(op.entity, row_id, earlier, row_json, None)
        return WriteReply(request_id, seq, row_id, False, 1)

    def update(self, request_id: int, op: UpdateRow, journal: Journal) -> WriteReply:
        """Change fields of one row.

        Raises:
            EntityNotFound, NotFound, PreconditionFailed, PolicyDenied
            UniqueViolation, NullNotAllowed, ReferenceNotFound
        """
        entity = self.entity(op.entity)
        if entity.defaults.has_stamps:
            op = replace(op, patch=entity.defaults.stamp(op.row_id, op.patch, op.auth))
        row_id, patch = op.row_id, op.patch
        before_json, before, version = self.find_readable(entity, op)
        row, row_json = entity.codec.merge(before, patch)
        if not entity.rules.may_update(op.auth, before, row, self.related):
            raise entity.rules.denied("update", op.auth, row, before, self.related)
        if len(row_json) > limits.LARGE_ROW_BYTES:
            check_row_size(op.entity, len(row_json), entity.row_max_bytes, len(before_json))
            if len(before_json) <= limits.LARGE_ROW_BYTES:  # else `find_readable` has counted it
                self.large.charge(op.entity, row_id, len(row_json))
        change = self._change if entity.has_documents else self.put
        seq = change(
            entity, row_id, patch, before_json, before, version, row_json, row, journal, op.auth
        )
        return WriteReply(request_id, seq, row_id, False, 1)

    def _change(
        self, entity: EntityWrites, row_id: str, patch: Mapping[str, Any], before_json: bytes,
        before: Mapping[str, Any], version: int | None, row_json: bytes, row: Mapping[str, Any],
        journal: Journal, auth: AuthContext,
    ) -> int:
        """Do as `put`, and change the row's document too."""
        if entity.has_documents:
            change = self.documents.follow(entity, row_id, before, patch)
        else:
            change = None
        try:
            seq = self.put(
                entity, row_id, patch, before_json, before, version, row_json, row, journal, auth
            )
        except PylonError:
            if change is not None:
                self.documents.refuse(change)
            raise
        if change is not None:
            self.documents.append(entity, change, seq, journal)
        return seq

    def put(
        self, entity: EntityWrites, row_id: str, patch: Mapping[str, Any], before_json: bytes,
        before: Mapping[str, Any], version: int | None, row_json: bytes, row: Mapping[str, Any],
        journal: Journal, auth: AuthContext,
    ) -> int:
        """Change the fields of `patch` in a row and note the event. Return its seq.

        Args:
            before, row: the whole row before and after the change.
            version: that of `before`.

        Raises:
            UniqueViolation, NullNotAllowed, ReferenceNotFound: nothing was changed.
            FileNotAttachable, InvalidValue: see `attachments`; nothing was changed.
        """
        if entity.name in self.references.checked:
            self.references.check_update(entity, row_id, before, patch)
        if len(row_json) > limits.SHORT_ROW_BYTES:  # few rows are
            check_row_size(entity.name, len(row_json), entity.row_max_bytes, len(before_json))
        attachment = None
        if entity.name in self.attachments.entities:
            attachment = self.attachments.plan(entity.name, row_id, before, row, auth)
        earlier = journal.event_of(version)
        seq = journal.next_seq(entity.name) if earlier is None else earlier.seq
        try:
            entity.table.update(row_id, patch, before, row, row_json, seq)
        except ConstraintFailed as failure:
            raise constraint_error(
                entity.name, failure, row, client_id_given=False
            ) from failure
        if attachment is not None:
            self.attachments.execute(entity.name, row_id, attachment, journal.now_s)
        return journal.note(entity.name, row_id, earlier, row_json, before_json)

    def delete(self, request_id: int, op: DeleteRow, journal: Journal) -> WriteReply:
        """Drop one row, its document, and the rows that refer to it with `onDelete` cascade.

        Raises:
            EntityNotFound, NotFound, PreconditionFailed, PolicyDenied
            ReferenceInUse, LimitExceeded: see `ReferenceChecks.plan_delete`.
        """
        entity = self.entity(op.entity)
        if op.entity not in self.references.referring or journal.is_step:
            seq, count = self._delete(entity, op, journal)
        else:
            self.large.hold()  # after its first large row has fit, all of the cascade fit
            try:
                seq, count = self._delete(entity, op, journal)
            finally:
                self.large.release()
        return WriteReply(request_id, seq, op.row_id, False, count)

    def _delete(
        self, entity: EntityWrites, op: DeleteRow, journal: Journal
    ) -> tuple[int, int]:
        """Return the seq of the row's event, and the number of rows deleted or changed."""
        before_json, before, version = self.find_readable(entity, op)
        if not entity.rules.may_delete(op.auth, before, self.related):
            raise entity.rules.denied("delete", op.auth, before, before, self.related)
        stored = StoredRow(entity, op.row_id, before_json, version)
        cascaded = 0
        if op.entity in self.references.referring:
            cascade = self._plan_cascade(stored, op.auth)
            cascaded = cascade.count
            if cascaded:
                self._execute_cascade(cascade, op.auth, journal)
        return self._drop(stored, journal), 1 + cascaded

    def _drop(self, stored: StoredRow, journal: Journal) -> int:
        """Drop a row and its document, and note the event. Return its seq."""
        entity, row_id, row_json, version = stored
        entity.table.delete(row_id)
        if entity.name in self.attachments.entities:
            gone = self.attachments.plan(
                entity.name, row_id, orjson.loads(row_json), None, None
            )
            self.attachments.execute(entity.name, row_id, gone, journal.now_s)
        if entity.has_documents:
            self.documents.drop(entity.name, row_id)
        return journal.note(entity.name, row_id, journal.event_of(version), None, row_json)

    def _plan_cascade(self, stored: StoredRow, auth: AuthContext) -> Cascade:
        """Return the changes that a delete makes beside its own; see `plan_delete`.

        Raises:
            DeferredError: its large rows do not fit into this transaction.
        """
        cascade = self.references.plan_delete(stored, auth)
        for row in (*(row for row, _ in cascade.changes), *cascade.deletes):
            if len(row.row_json) > limits.LARGE_ROW_BYTES:
                self.large.charge(row.entity.name, row.row_id, len(row.row_json))
        return cascade

    def _execute_cascade(self, cascade: Cascade, auth: AuthContext, journal: Journal) -> None:
        """Make the changes of a cascade, all or none.

        Raises:
            PylonError: the database does not allow a change; nothing was changed.
        """
        is_own_step = not journal.is_step
        if is_own_step:
            self._transaction.open_savepoint()
            journal.open_step()
        try:
            for row, patch in cascade.changes:
                self._set_null(row, patch, auth, journal)
        except PylonError:
            if is_own_step:
                self._transaction.undo_savepoint()
                self.documents.undo()
                journal.undo_step()
            raise
        for row in cascade.deletes:
            self._drop(row, journal)
        if is_own_step:
            self._transaction.keep_savepoint()
            journal.keep_step()
        metrics.CASCADED_ROWS.labels("set_null").inc(len(cascade.changes))
        metrics.CASCADED_ROWS.labels("deleted").inc(len(cascade.deletes))

    def _set_null(
        self, stored: StoredRow, fields: Mapping[str, None], auth: AuthContext, journal: Journal
    ) -> None:
        entity, row_id, before_json, version = stored
        patch = dict[str, Any](fields)
        if entity.defaults.has_stamps:
            patch = entity.defaults.stamp(row_id, patch, auth)
        before = orjson.loads(before_json)
        row, row_json = entity.codec.merge(before, patch)
        self._change(
            entity, row_id, patch, before_json, before, version, row_json, row, journal, auth
        )

    def reset(self, request_id: int, op: ResetRows, journal: Journal) -> WriteReply:
        """Drop all rows of all entities."""
        count = 0
        for entity in self._entities.values():
            for row_id, row_json, version in entity.table.take_all():
                earlier = journal.event_of(version)
                journal.note(entity.name, row_id, earlier, None, row_json)
                count += 1
            if entity.name in self.attachments.entities:
                self.attachments.detach_all(entity.name)
            if entity.has_documents:
                self.documents.drop_all(entity.name)
        return WriteReply(request_id, journal.seq if count else 0, count=count)

    def entity(self, name: str) -> EntityWrites:
        """Return an entity.

        Raises:
            EntityNotFound
        """
        entity = self._entities.get(name)
        if entity is None:
            raise EntityNotFound(f'Unknown entity "{name}"')
        return entity

    def find_readable(
        self, entity: EntityWrites, op: UpdateRow | DeleteRow | PushDocument
    ) -> tuple[bytes, dict[str, Any], int | None]:
        """Return the row's JSON, the row and its version.

        It checks existence, read permission and If-Match. For a row that is not small it evaluates
        all policies of the operation before it reads the row.

        Raises:
            NotFound, PreconditionFailed
            PolicyDenied: the row is not small, and the caller may not make this change.
            DeferredError: see `large_rows`.
        """
        if self.large.known:
            self.large.check_known(op.entity, op.row_id)
        found = entity.table.find_small(op.row_id)
        if found is None:
            raise NotFound("Row not found")
        row_json, version = found
        if row_json is None:
            row_json = self._find_large(entity, op)
        row: dict[str, Any] = orjson.loads(row_json)
        if not entity.rules.may_read(op.auth, row, self.related):
            raise NotFound("Row not found")
        if (
            not isinstance(op, PushDocument)
            and op.if_match is not None and not _has_version(version, op.if_match)
        ):
            raise PreconditionFailed(
                f"{op.entity}/{op.row_id} has been changed: {_name_version(version)}, "
                f"and If-Match asks for {_list_versions(op.if_match)}",
                hint="Get the row again, and send its new ETag",
            )
        return row_json, row, version

    def _find_large(
        self, entity: EntityWrites, op: UpdateRow | DeleteRow | PushDocument
    ) -> bytes:
        """Return the JSON of a row that is not small.

        It evaluates the policies on the row's columns before it reads the JSON, so that a caller
        without permission causes no expensive read.

        Raises: see `find_readable`.
        """
        size_bytes, row = entity.table.find_judged(op.row_id)
        auth, rules = op.auth, entity.rules
        if not rules.may_read(auth, row, self.related):
            raise NotFound("Row not found")
        if isinstance(op, DeleteRow):
            is_allowed = rules.may_delete(auth, row, self.related)
        elif isinstance(op, UpdateRow):
            is_allowed = rules.may_update(auth, row, {**row, **op.patch}, self.related)
        else:
            is_allowed = rules.may_begin_update(auth, row, self.related)
        if not is_allowed:
            action: Action = "delete" if isinstance(op, DeleteRow) else "update"
            after = {**row, **op.patch} if isinstance(op, UpdateRow) else row
            raise rules.denied(action, auth, after, row, self.related)
        if size_bytes > limits.LARGE_ROW_BYTES:
            self.large.charge(op.entity, op.row_id, size_bytes)
        found = entity.table.find(op.row_id)
        if found is None:
            raise NotFound("Row not found")
        return found[0]


def _has_version(version: int | None, wanted: int | tuple[int, ...]) -> bool:
    return version == wanted if isinstance(wanted, int) else version in wanted


def _name_version(version: int | None) -> str:
    if version is not None and version >= PROVISIONAL_SEQ:
        return "it gets a new version at this moment"
    return f"its version is {version}"


def _list_versions(wanted: int | tuple[int, ...]) -> str:
    if isinstance(wanted, int):
        return str(wanted)
    shown = ", ".join(map(str, wanted[:_VERSIONS_SHOWN]))
    return f"one of {shown}{' ...' if len(wanted) > _VERSIONS_SHOWN else ''}"
