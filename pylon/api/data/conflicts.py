"""Conflicts: limits writes whose refusal can reveal a row that the caller may not read.

A unique value or an id that a hidden row has stops a write: one bit, which no error text can hide.
So does the id that a field of type id(...) names: the refusal says that no such row exists. So this
module counts the bits. A refusal about a row that the caller may read reveals nothing and costs
nothing. Each other refusal is charged to the caller's identity and address. So is each
unique value and id that a transaction tries and then undoes, since it leaves no trace. A caller
above a rate gets 429 for all writes that could reveal more, whether they would fail or not. Admins
read everything, so they are not counted; nor is any caller in dev mode.

Invariants: a counted refusal has the same response as any other. A write costs nothing more
while no caller of this process was charged lately.
Bounds: the rates `hidden-conflicts-…` and `undone-values-…`. Metric: pylon_hidden_conflicts_total.
Log: `conflict.hidden_reported`. Called by the routes that write rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pylon import log, metrics
from pylon.api.data.access import may_see_row
from pylon.auth_context import AuthContext
from pylon.errors import (
    OptimisticIdConflict,
    PylonError,
    ReferenceNotFound,
    UniqueViolation,
)
from pylon.limiter import rate_limited
from pylon.manifest.model import Entity
from pylon.query.conditions import and_, equal
from pylon.query.index_filters import index_filter
from pylon.query.predicate import TRUE
from pylon.rates import (
    HIDDEN_CONFLICTS_BY_ADDRESS,
    HIDDEN_CONFLICTS_BY_USER,
    UNDONE_VALUES_BY_ADDRESS,
    UNDONE_VALUES_BY_USER,
    Rate,
    address_subject,
    user_subject,
)
from pylon.storage.ops import (
    InsertRow,
    OpKey,
    PushDocument,
    RowOp,
    Transact,
    UpdateRow,
    WriteReply,
)
from pylon.values.types import store_value_of

if TYPE_CHECKING:
    from pylon.api.services import DataServices

Judged = RowOp | PushDocument
Address = Callable[[], str]  # returns the client's address; called only if it is needed

_HIDDEN: Final = (HIDDEN_CONFLICTS_BY_USER, HIDDEN_CONFLICTS_BY_ADDRESS)
_UNDONE: Final = (UNDONE_VALUES_BY_USER, UNDONE_VALUES_BY_ADDRESS)
_log = log.get_logger("conflicts")


class ConflictWatch:
    """The time until which some caller of this process counts as charged lately."""

    __slots__ = ("until_s",)

    def __init__(self) -> None:
        self.until_s = 0.0


def submit(services: DataServices, auth: AuthContext, address: Address, op: Judged) -> WriteReply:
    """Execute one write.

    Raises:
        RateLimited: a rate of the app is spent, or too many refusals have revealed hidden rows to
            the caller.
        PylonError: the write was refused.
    """
    services.requests.app_rates.require_writes(auth, address, (op,))
    if services.conflicts.until_s:
        _refuse_spent(services, auth, address, (op,))
    try:
        return services.writer.submit(op)
    except (UniqueViolation, OptimisticIdConflict, ReferenceNotFound) as error:
        _charge(services, auth, address, [(op, error)])
        raise


def submit_all(
    services: DataServices, auth: AuthContext, address: Address, ops: Sequence[RowOp]
) -> list[WriteReply]:
    """Execute writes in order; a reply has the error of its write, if any.

    Raises:
        RateLimited: as `submit`; nothing was written.
        PylonError: the writer was not reached.
    """
    _refuse_spent(services, auth, address, ops)
    replies = services.writer.submit_all(ops)
    _charge(services, auth, address, [
        (op, reply.error.to_exception())
        for op, reply in zip(ops, replies, strict=True) if reply.error is not None
    ])
    return replies


def transact(
    services: DataServices, auth: AuthContext, address: Address, ops: Sequence[RowOp],
    key: OpKey | None,
) -> WriteReply:
    """Execute a transaction; the results of a failed one end with the step that failed.

    Raises:
        RateLimited: as `submit`; nothing was written.
        PylonError: the writer was not reached.
    """
    services.requests.app_rates.require_writes(auth, address, ops)
    _refuse_spent(services, auth, address, ops)
    reply = services.writer.submit(Transact(ops, key))
    results = reply.results or []
    if not results or results[-1].error is None or auth.is_admin:
        return reply
    tried = sum(_can_reveal(services, step) for step in ops[: len(results) - 1])
    if tried and not services.app.config.dev_mode:
        metrics.HIDDEN_CONFLICTS.labels("undone").inc(tried)
        _spend(services, auth, address, _UNDONE, tried)
    failed = ops[len(results) - 1]
    _charge(services, auth, address, [(failed, results[-1].error.to_exception())])
    return reply


def _refuse_spent(
    services: DataServices, auth: AuthContext, address: Address, ops: Sequence[Judged]
) -> None:
    """Pass if no rate of the caller is spent, or no operation could reveal more.

    Raises:
        RateLimited: otherwise.
    """
    until_s = services.conflicts.until_s
    if not until_s or services.app.clock.monotonic_s() >= until_s or auth.is_admin:
        return
    if not any(_can_reveal(services, op) for op in ops):
        return
    for rates in (_HIDDEN, _UNDONE):
        for rate, subject in _budgets(auth, address, rates):
            wait_s = services.requests.limiter.wait_s(rate, subject)
            if wait_s > 0:
                metrics.RATE_LIMITED.labels(rate.name).inc()
                raise rate_limited(rate, wait_s)


def _charge(
    services: DataServices, auth: AuthContext, address: Address,
    refused: Sequence[tuple[Judged, PylonError]],
) -> None:
    """Charge the refusals that reveal hidden rows."""
    if auth.is_admin or services.app.config.dev_mode or not refused:
        return
    hidden = [(op, error) for op, error in refused if _is_about_hidden(services, auth, op, error)]
    if not hidden:
        return
    for _, error in hidden:
        kind = "unique" if isinstance(error, UniqueViolation) else "id"
        metrics.HIDDEN_CONFLICTS.labels(kind).inc()
    _spend(services, auth, address, _HIDDEN, len(hidden))
    op, error = hidden[0]
    _log.warning(
        "conflict.hidden_reported", entity=op.entity, code=error.code, refusals=len(hidden),
        field=error.details.get("field") or error.details.get("fields"),
        user_id=auth.user_id, address=address(),
    )


def _spend(
    services: DataServices, auth: AuthContext, address: Address, rates: tuple[Rate, Rate],
    units: int,
) -> None:
    waits_s = [
        services.requests.limiter.charge(rate, subject, units)
        for rate, subject in _budgets(auth, address, rates)
    ]
    watched_s = max(*waits_s, rates[0].window_s)
    until_s = services.app.clock.monotonic_s() + watched_s
    services.conflicts.until_s = max(services.conflicts.until_s, until_s)


def _budgets(
    auth: AuthContext, address: Address, rates: tuple[Rate, Rate]
) -> Iterator[tuple[Rate, str]]:
    by_user, by_address = rates
    if auth.user_id is not None:
        yield by_user, user_subject(auth.user_id)
    yield by_address, address_subject(address())


def _can_reveal(services: DataServices, op: Judged) -> bool:
    """Return whether the outcome of an operation depends on values of other rows."""
    if isinstance(op, InsertRow) and op.client_id_given:
        return True
    entity = services.app.manifest.by_name.get(op.entity)
    if entity is None or not isinstance(op, InsertRow | UpdateRow | PushDocument):
        return False
    constraints = [
        *_unique_constraints(entity), *((f.name,) for f in entity.fields if f.target is not None),
    ]
    if not constraints or isinstance(op, PushDocument):
        return bool(constraints)
    given: Mapping[str, Any] = (
        op.patch if isinstance(op, UpdateRow)
        else dict(zip([field.name for field in entity.fields], op.values, strict=True))
    )
    # Null equals no value, and so reveals none.
    return any(
        any(name in given for name in names)
        and all(name not in given or given[name] is not None for name in names)
        for names in constraints
    )


def _unique_constraints(entity: Entity) -> list[tuple[str, ...]]:
    """Return the fields, alone or together, whose values are unique."""
    return [
        *((field.name,) for field in entity.fields if field.unique),
        *(tuple(index.fields) for index in entity.indexes if index.unique),
    ]


def _is_about_hidden(
    services: DataServices, auth: AuthContext, op: Judged, error: PylonError
) -> bool:
    """Return whether the refusal reveals a row that the caller may not read."""
    app = services.app
    entity = app.manifest.by_name.get(op.entity)
    if entity is None:
        return False
    if isinstance(error, OptimisticIdConflict):
        return not may_see_row(app, services.store.point, entity, auth, op.row_id)
    if isinstance(error, ReferenceNotFound):
        # It reveals that there is no such row; nothing to a caller who may read all rows.
        field = entity.by_name.get(str(error.details.get("field")))
        target = None if field is None else field.target
        return target is None or app.rules.for_entity(target).readable_by(auth) != TRUE
    if not isinstance(error, UniqueViolation):
        return False
    values = _values_of(entity, error)
    if not values:
        return True
    (name, value), *more = values.items()
    if not more and name in entity.by_name and entity.by_name[name].nocase:
        allowed = app.rules.for_entity(entity.name).readable_by(auth)
        return services.store.point(
            lambda reader: reader.lookup(entity.name, name, value, allowed)
        ) is None
    same = [equal(name, _in_column(entity, name, value)) for name, value in values.items()]
    index = next((i for i in entity.indexes if i.unique and i.fields == tuple(values)), None)
    if index is not None:  # a partial one concerns the rows of its filter only
        same.append(index_filter(entity, index))
    where = and_(*same, app.rules.for_entity(entity.name).readable_by(auth))
    return services.store.point(lambda reader: reader.count(entity.name, where)) == 0


def _in_column(entity: Entity, name: str, value: Any) -> Any:
    """Return the column's value of a row's."""
    field = entity.by_name.get(name)
    convert = None if field is None else store_value_of(field)
    return value if convert is None or value is None else convert(value)


def _values_of(entity: Entity, error: UniqueViolation) -> dict[str, Any]:
    """Return the values that are taken, from the error. The error cuts a long value, which then
    equals nothing, so that the refusal counts as one about a hidden row."""
    field = error.details.get("field")
    if isinstance(field, str):
        return {field: error.details.get("value")}
    fields, values = error.details.get("fields"), error.details.get("value")
    if not isinstance(fields, list) or not isinstance(values, list):
        return {}
    return dict(zip(fields, values, strict=True))
