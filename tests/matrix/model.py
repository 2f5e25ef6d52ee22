"""What the policies of `tests.matrix.app` mean: a table of predicates in plain Python.

Nothing here calls Pylon or reads the text of a rule. The model knows callers, rows and three
outcomes. `OK`: done, or seen. `DENIED`: refused, and the answer says so. `MISSING`: for this caller
there is no such row, which docs/policies.md promises for every row that a caller may not read.

The order of the checks is that of ARCHITECTURE.md ("Who may do what"): scopes of a key, then the
policies, then the hidden fields, which no client writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tests.matrix.app import BOARD, ENTITIES, HIDDEN

Outcome = Literal["ok", "denied", "missing"]
OK: Final = "ok"
DENIED: Final = "denied"
MISSING: Final = "missing"
Row = Mapping[str, str]
ALL: Final = frozenset(ENTITIES)
NONE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Grant:
    """What the key of a caller reaches; a session and the administrator reach everything."""

    reads: frozenset[str] = ALL
    writes: frozenset[str] = ALL
    deletes: frozenset[str] = ALL
    sync: bool = True
    rooms: bool = True


@dataclass(frozen=True, slots=True)
class Person:
    """A caller as policies see it.

    `member_of` maps the organisations of the user to its role there; `tenant` is the one that the
    session has selected, and of it alone the session has the role.
    """

    name: str
    user_id: str | None = None
    is_guest: bool = False
    is_admin: bool = False
    tenant: str | None = None
    member_of: tuple[tuple[str, str], ...] = ()
    grant: Grant = Grant()

    @property
    def roles(self) -> frozenset[str]:
        """The roles of the session."""
        return frozenset(role for org, role in self.member_of if org == self.tenant)

    def role_in(self, org: str) -> str | None:
        """Return the role of the user in an organisation, whatever its session has selected."""
        return dict(self.member_of).get(org)


Rule = Callable[[Person, Row], bool]


def anybody(person: Person, row: Row) -> bool:
    return True


def nobody(person: Person, row: Row) -> bool:
    return False


def the_owner(person: Person, row: Row) -> bool:
    return person.user_id is not None and row["ownerId"] == person.user_id


def the_tenant(person: Person, row: Row) -> bool:
    return person.tenant is not None and row["orgId"] == person.tenant


def a_member(person: Person, row: Row) -> bool:
    return person.role_in(row["orgId"]) is not None


def an_org_admin(person: Person, row: Row) -> bool:
    return "admin" in person.roles


def in_an_org(person: Person, row: Row) -> bool:
    return bool(person.roles)


def an_admin_of_the_tenant(person: Person, row: Row) -> bool:
    return the_tenant(person, row) and an_org_admin(person, row)


def a_user(person: Person, row: Row) -> bool:
    return person.user_id is not None and not person.is_guest


# Entity: who may read a row, and who may insert, update and delete it.
RULES: Final[dict[str, tuple[Rule, Rule]]] = {
    BOARD: (anybody, anybody),
    "Note": (the_owner, the_owner),
    "Invoice": (the_tenant, the_tenant),
    "Task": (a_member, a_member),
    "Post": (in_an_org, an_org_admin),
    "Ledger": (the_tenant, an_admin_of_the_tenant),
    "Price": (anybody, nobody),
    "Letter": (a_user, a_user),
    HIDDEN: (anybody, anybody),
    "Closed": (nobody, anybody),
}


def may_read(person: Person, entity: str, row: Row) -> bool:
    """Whether the policies show a row to a caller, scopes aside."""
    return person.is_admin or RULES[entity][0](person, row)


def may_write(person: Person, entity: str, row: Row) -> bool:
    """Whether the policies let a caller make or leave such a row, scopes aside."""
    return person.is_admin or RULES[entity][1](person, row)


def judge_insert(person: Person, entity: str, row: Row) -> Outcome:
    """Return the outcome of an insert."""
    if entity not in person.grant.writes:
        return DENIED
    if "secret" in row and not person.is_admin:
        return DENIED
    return OK if may_write(person, entity, row) else DENIED


def judge_update(person: Person, entity: str, row: Row, changes: Row) -> Outcome:
    """Return the outcome of an update, which counts for the row before and the row after."""
    if entity not in person.grant.writes:
        return DENIED
    if "secret" in changes and not person.is_admin:
        return DENIED
    if not may_read(person, entity, row):
        return MISSING
    both = may_write(person, entity, row) and may_write(person, entity, {**row, **changes})
    return OK if both else DENIED


def judge_delete(person: Person, entity: str, row: Row) -> Outcome:
    """Return the outcome of a delete."""
    if entity not in person.grant.deletes:
        return DENIED
    if not may_read(person, entity, row):
        return MISSING
    return OK if may_write(person, entity, row) else DENIED


def kind_of_event(person: Person, entity: str, before: Row | None, after: Row | None) -> str | None:
    """Return what a caller hears of a change: the kind of the event, or None."""
    if entity not in person.grant.reads:
        return None
    had = before is not None and may_read(person, entity, before)
    has = after is not None and may_read(person, entity, after)
    if had and has:
        return "update"
    if has:
        return "insert"
    return "delete" if had else None


# --- Rooms -----------------------------------------------------------------------------------

# Room: who may join it, and who may broadcast there.
ROOM_RULES: Final[dict[str, tuple[Callable[[Person], bool], Callable[[Person], bool]]]] = {
    "lobby": (lambda person: True, lambda person: True),
    "staff": (lambda person: "admin" in person.roles, lambda person: "admin" in person.roles),
    "org:A": (lambda person: person.role_in("A") is not None,
              lambda person: person.role_in("A") == "admin"),
    "cellar": (lambda person: False, lambda person: False),  # no policy has it
}


def may_join(person: Person, room: str) -> bool:
    """Whether a caller may be a member of a room, and read its members."""
    if person.is_admin:
        return True
    return person.user_id is not None and person.grant.rooms and ROOM_RULES[room][0](person)


def may_broadcast(person: Person, room: str) -> bool:
    """Whether a caller may send to a room, being its member."""
    return may_join(person, room) and (person.is_admin or ROOM_RULES[room][1](person))
