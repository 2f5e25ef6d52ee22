"""Makes the writer's op of an insert, update or delete, checked as far as a worker can.

A worker fills in the defaults, validates and encodes the row, and judges the insert policy, unless
that asks other rows. The writer sets the fields with `onUpdate`, and judges what depends on rows at
the commit: such a policy, update and delete policies, uniqueness, op_ids. The entity
routes, batches and pushes all call this module, so that they accept and refuse the same changes,
and check the scopes of an API key before anything else.
"""

from __future__ import annotations

from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.errors import InvalidData, ReadonlyField
from pylon.key_scopes import require_entity
from pylon.manifest.model import Entity
from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    OpKey,
    UpdateRow,
)


def make_insert(
    app: App, entity: Entity, auth: AuthContext, body: object, op: OpKey | None = None
) -> InsertRow:
    """Return the op that inserts `body`, a decoded JSON value, under its own id or a new one.

    Raises:
        InvalidData, InvalidColumn, InvalidValue, NullNotAllowed, MissingField, InvalidId,
            FieldFixed, ReadonlyField: the body does not fit the entity.
        PolicyDenied: the caller may not insert this row.
        ScopeDenied: the caller's API key does not reach the entity.
    """
    require_entity(auth, entity.name, "write")
    _check_managed(entity, auth)
    codec = app.codecs[entity.name]
    given = codec.client_id(body)
    row_id = given if given is not None else app.ids.new()
    body = app.defaults[entity.name].fill(body, row_id, auth)
    encoded = codec.insert(body, row_id)
    rules = app.rules.for_entity(entity.name)
    judge = None  # for whom the writer judges
    if rules.checks["insert"] and not auth.is_admin:
        judge = auth
    elif not rules.may_insert(auth, encoded.row):
        raise rules.denied("insert", auth, encoded.row)
    elif any(encoded.row.get(field.name) is not None for field in entity.file_fields):
        judge = auth  # the writer checks that the caller may attach the files
    return InsertRow(
        entity.name, row_id, encoded.values, encoded.row_json, given is not None, op, judge
    )


def make_update(
    app: App,
    entity: Entity,
    auth: AuthContext,
    row_id: str,
    body: object,
    op: OpKey | None = None,
    if_match: int | tuple[int, ...] | None = None,
) -> UpdateRow:
    """Return the op that changes the fields of `body`.

    Args:
        if_match: the version (seq of its last change) that the row must have, or several of which
            it must have one; None: any.

    Raises:
        InvalidData: the body names no field; others as for `make_insert`.
        ReadonlyField: it names one that only the server writes.
        ScopeDenied: as for `make_insert`.
    """
    require_entity(auth, entity.name, "write")
    defaults = app.defaults[entity.name]
    if isinstance(body, dict):
        defaults.check_read_only(body, auth)
    patch = app.codecs[entity.name].patch(body, row_id)
    if not patch:
        raise InvalidData(f"Nothing to update in {entity.name}: the body names no field")
    defaults.check_fixed(patch, auth)
    return UpdateRow(entity.name, row_id, patch, auth, op, if_match)


def make_delete(
    entity: Entity,
    auth: AuthContext,
    row_id: str,
    op: OpKey | None = None,
    if_match: int | tuple[int, ...] | None = None,
) -> DeleteRow:
    """Return the op that deletes a row.

    Args:
        if_match: the version that the row must have, as for `make_update`.

    Raises:
        ReadonlyField: the server manages the rows of this entity.
        ScopeDenied: as for `make_insert`.
    """
    require_entity(auth, entity.name, "delete")
    _check_managed(entity, auth)
    return DeleteRow(entity.name, row_id, auth, op, if_match)


def _check_managed(entity: Entity, auth: AuthContext) -> None:
    """Check that the caller may insert or delete rows of an entity, whatever policies say.

    Raises:
        ReadonlyField: they belong to the routes of organisations, and to administrators.
    """
    if entity.is_managed and not auth.is_admin:
        raise ReadonlyField(
            f"{entity.name} is read-only: only the routes of organisations write it",
            hint="See /api/auth/orgs", entity=entity.name,
        )
