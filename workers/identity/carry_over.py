"""Carry-over: the rows of a guest become those of the user that the guest signs in as.

A row is a guest's if one of its fields for users (`pylon.manifest.carried_fields`) has the guest's
id. `plan_carry` reads these rows and gives steps for the transaction of the sign-in: they move the
rows, end the guest's sessions and put a job into the table `tokens`. The job moves the rest
(`workers.identity.carry_jobs`): rows beyond `limits.CARRIED_ROWS`, and those that the guest has
written in the last second. Policies are not asked; each move makes a change event.

A moved row may be equal to a row of the user where an index forbids it. Then the guest's row stays
as it is (`skip`), or takes the place of the user's row (`replace`), by `auth.guest.on_conflict`.

Invariant: a committed sign-in of a guest leaves the job, so no row is forgotten by a crash. Called
by `sign_in` and the flow of `POST /api/auth/upgrade`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from pylon import limits
from pylon.auth.audit import audit_step
from pylon.auth.transactions import Step
from pylon.auth_context import AuthContext
from pylon.bus.identity import CallFacts
from pylon.manifest.carried_fields import carried_fields
from pylon.manifest.model import Entity
from pylon.query.rows import parse_filter
from pylon.storage.auth_ops import Condition, EndSessions, PutRecord
from pylon.storage.interface import Reader
from pylon.storage.ops import DeleteRow, UpdateRow
from workers.identity.codes import CARRY_JOB
from workers.identity.identity import Identity

JOB: Final = CARRY_JOB  # a purpose of `tokens`
_JOB_LIFE_S: Final = 30 * 86_400
_BYTES: Final = limits.TRANSACT_BYTES // 4  # of the rows of one transaction: images before, after


@dataclass(frozen=True, slots=True)
class Move:
    """The steps that move one row; none if it stays for a conflict."""

    row_id: str
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Carry:
    """What a sign-in moves."""

    steps: list[Step] = field(default_factory=list)
    moved: int = 0
    skipped: int = 0
    pending: int = 0  # left to the job

    def extra(self) -> dict[str, Any]:
        """Return the member `carried` of the answer."""
        carried = {"moved": self.moved, "skipped": self.skipped}
        if self.pending:
            carried["pending"] = self.pending
        return {"carried": carried}


def plan_carry(
    identity: Identity, facts: CallFacts, user_id: str, *, moves_rows: bool = True,
    keep_sessions: Sequence[str] = (),
) -> Carry | None:
    """Return the steps that carry a guest's rows over, for the end of a transaction.

    A row that changes meanwhile has the transaction refused (`UniqueViolation`, `NotFound`): plan
    again, or leave all rows to the job.

    Args:
        facts: of the guest's call.
        moves_rows: False leaves all rows to the job.
        keep_sessions: sessions of the guest that do not end.

    Returns:
        None if the caller is no guest.

    Raises:
        StoreUnavailable, QueryTimeout
    """
    guest_id = facts.auth.user_id
    if not facts.auth.is_guest or guest_id is None:
        return None
    carry = Carry()
    rows_left = limits.CARRIED_ROWS if moves_rows else 0
    bytes_left = _BYTES
    for entity, names in carried_fields(identity.app.manifest):
        moves: list[Move] = []
        if rows_left > 0 and bytes_left > 0:
            moves, size_bytes = read_moves(
                identity, entity, names, guest_id, user_id, rows_left, bytes_left
            )
            rows_left -= len(moves)
            bytes_left -= size_bytes
        for move in moves:
            carry.steps += move.steps
            carry.moved += bool(move.steps)
            carry.skipped += not move.steps
        if rows_left <= 0 or bytes_left <= 0:
            carry.pending += count_rows(identity, entity, names, guest_id) - len(moves)
    clock, now_s = identity.app.clock, identity.now_s()
    carry.steps += [
        EndSessions([Condition("user_id", "=", guest_id)], list(keep_sessions)),
        PutRecord("tokens", {
            "hash": f"{JOB}:{guest_id}", "purpose": JOB, "user_id": user_id, "email_key": None,
            "data": guest_id, "attempts": 0, "created_at": now_s,
            "expires_at": now_s + _JOB_LIFE_S, "used_at": None,
        }, replace=True),
        audit_step(
            "anonymous_merge", clock, identity.app.random, user_id=user_id, ip=facts.address,
            user_agent=facts.device, metadata={"guest": guest_id, **carry.extra()["carried"]},
        ),
    ]
    return carry


def read_moves(
    identity: Identity, entity: Entity, names: Sequence[str], guest_id: str, user_id: str,
    max_rows: int, max_bytes: int, after_id: str = "",
) -> tuple[list[Move], int]:
    """Return the moves of the first rows of a guest, by id, and the bytes of these rows.

    Args:
        names: the fields for users.
        after_id: only rows behind this id.
    """
    condition: dict[str, Any] = {"$or": [{name: guest_id} for name in names]}
    if after_id:
        condition["id"] = {"$gt": after_id}
    query = parse_filter(entity, {**condition, "$order": {"id": "asc"}}, max_rows)

    def read(reader: Reader) -> tuple[list[Move], int]:
        raws, _ = reader.rows_within(entity.name, query, max_bytes)
        taken: set[tuple[Any, ...]] = set()  # by moves before this one
        moves = [
            _move(identity, reader, entity, names, orjson.loads(raw), guest_id, user_id, taken)
            for raw in raws
        ]
        return moves, sum(map(len, raws))

    return identity.store.scan(read, caller=user_id)


def count_rows(identity: Identity, entity: Entity, names: Sequence[str], guest_id: str) -> int:
    """Return how many rows of an entity are a guest's."""
    query = parse_filter(entity, {"$or": [{name: guest_id} for name in names]}, 1)
    return identity.store.scan(lambda reader: reader.count(entity.name, query.where))


def _move(
    identity: Identity, reader: Reader, entity: Entity, names: Sequence[str], row: dict[str, Any],
    guest_id: str, user_id: str, taken: set[tuple[Any, ...]],
) -> Move:
    row_id = str(row["id"])
    auth = AuthContext(user_id=user_id, is_admin=True)  # policies are not asked
    patch = {name: user_id for name in names if row.get(name) == guest_id}
    moved = {**row, **patch}
    deletes: list[Step] = []
    keys = [
        (key, tuple(moved.get(name) for name in key)) for key in _unique_keys(entity, patch)
    ]
    for key, values in keys:
        if None in values:
            continue  # null equals nothing
        body = {**dict(zip(key, values, strict=True)), "id": {"$ne": row_id}}
        found = reader.rows(entity.name, parse_filter(entity, body, 1))
        if not found and (key, values) not in taken:
            continue
        if identity.app.manifest.auth.guest_on_conflict == "skip" or not found:
            return Move(row_id, ())
        deletes.append(DeleteRow(entity.name, str(orjson.loads(found[0])["id"]), auth))
    taken.update(keys)
    return Move(row_id, (*deletes, UpdateRow(entity.name, row_id, patch, auth)))


def _unique_keys(entity: Entity, patch: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the fields of each unique index of all rows that has a field of the patch."""
    for each in entity.fields:
        if each.unique and each.name in patch:
            yield (each.name,)
    for index in entity.indexes:
        if index.unique and index.where is None and not patch.keys().isdisjoint(index.fields):
            yield index.fields
