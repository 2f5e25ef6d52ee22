"""Model: the app's manifest in memory (spec/http.md §2.1).

`pylon.manifest_loader` builds it from `pylon.manifest.json`; every other package reads it.
Invariants: it is immutable. Fields have the order of the manifest, which is the order of columns in
the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Final, Literal

import msgspec

from pylon.manifest.diagnostics import Diagnostic

FORMAT_VERSION: Final = 1  # of pylon.manifest.json
DEFAULT_VERSION: Final = "0.0.0"  # of an app whose manifest has none

ReferenceWord = Literal["check", "none"]
OnDelete = Literal["restrict", "cascade", "setNull"]
DeleteWord = Literal["delete", "null", "keep"]
FormatWord = Literal["email", "url", "file"]
RatePer = Literal["user", "ip", "tenant", "global"]
WriteVerb = Literal["insert", "update", "delete", "write"]  # `write`: any of the others
DefaultKind = Literal["constant", "now", "uuid", "id", "auth"]
RuleKey = Literal[
    "allow", "allow_read", "allow_insert", "allow_update", "allow_delete", "allow_write"
]

RoomRuleKey = Literal["allow", "allow_join", "allow_broadcast", "allow_presence"]

# The keys of a policy: name in the manifest, name in the model.
RULE_KEYS: dict[str, RuleKey] = {
    "allow": "allow",
    "allowRead": "allow_read",
    "allowInsert": "allow_insert",
    "allowUpdate": "allow_update",
    "allowDelete": "allow_delete",
    "allowWrite": "allow_write",
}
# The keys of a policy of rooms.
ROOM_RULE_KEYS: dict[str, RoomRuleKey] = {
    "allow": "allow",
    "allowJoin": "allow_join",
    "allowBroadcast": "allow_broadcast",
    "allowPresence": "allow_presence",
}


class FieldType(Enum):
    """The scalar types, JSON values, and references to another entity."""

    STRING = "string"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    DATETIME = "datetime"
    RICHTEXT = "richtext"
    ENUM = "enum"
    DATE = "date"
    DECIMAL = "decimal"
    JSON = "json"
    ID = "id"


class Default(msgspec.Struct, frozen=True):
    """A value that the server gives to a field.

    `argument`: of a constant its JSON text, of `auth` the name of the caller's fact.
    """

    kind: DefaultKind
    argument: str = ""


class Constraints(msgspec.Struct, frozen=True):
    """The limits of a field's values beyond its type. None: no such constraint."""

    minimum: int | float | str | None = None
    maximum: int | float | str | None = None
    min_length: int | None = None  # code points
    max_length: int | None = None
    pattern: str | None = None  # of RE2, somewhere in the text
    format: FormatWord | None = None
    accept: tuple[str, ...] = ()  # of a file: the media types that it may have; empty: all
    max_bytes: int | None = None  # of a file


@dataclass(frozen=True, slots=True)
class Field:
    """A column of an entity. `target` is the entity that an `id(...)` points to."""

    name: str
    type: FieldType
    optional: bool
    unique: bool
    target: str | None = None  # the entity that an `id(Target)` points at
    crdt: str | None = None
    default: Default | None = None
    fixed: bool = False  # whether clients may not send it
    on_update: Default | None = None  # the value that the server sets at each update
    references: ReferenceWord | None = None  # see `pylon.manifest.references`
    on_delete: OnDelete | None = None
    nocase: bool = False  # whether values that differ only in case are equal for `unique`
    values: tuple[str, ...] = ()  # of an enum
    is_json_text: bool = False  # whether a JSON value is a text of JSON on the wire
    constraints: Constraints | None = None
    server_only: bool = False  # hidden: no client receives it (`pylon.manifest.protected`)
    is_managed: bool = False  # clients may not write it

    @property
    def insert_default(self) -> Default | None:
        """Return the default of a new row."""
        return self.default or self.on_update

    @property
    def is_set_by_server(self) -> bool:
        """Whether the server refuses values of clients."""
        return self.fixed or self.on_update is not None


@dataclass(frozen=True, slots=True)
class Index:
    """An index over one field or several.

    `descending`: those of its fields that have the largest value first. `where`: the JSON text of
    the filter that its rows meet; None: it has all rows.
    """

    name: str
    fields: tuple[str, ...]
    unique: bool
    descending: tuple[str, ...] = ()
    where: str | None = None

    @property
    def signed_fields(self) -> tuple[str, ...]:
        """Return the fields as the manifest has them, descending ones with a minus sign."""
        return tuple(f"-{name}" if name in self.descending else name for name in self.fields)


class Relation(msgspec.Struct, frozen=True):
    """Leads from a row to rows of `target`: by `field` of the row, or (`many`) of the target."""

    name: str
    target: str
    field: str
    many: bool = False


class Search(msgspec.Struct, frozen=True):
    """Fields of full-text search: the indexed texts, the facets, and those to sort by."""

    text: tuple[str, ...]
    facets: tuple[str, ...]
    sortable: tuple[str, ...]
    language: str = "english"


@dataclass(frozen=True)
class Entity:
    """A table with its indexes, relations and search."""

    name: str
    fields: tuple[Field, ...]
    indexes: tuple[Index, ...] = ()
    relations: tuple[Relation, ...] = ()
    search: Search | None = None
    crdt: bool = True
    is_managed: bool = False  # clients neither insert nor delete its rows
    label: str | None = None  # the field whose value names a row to people

    @cached_property
    def by_name(self) -> dict[str, Field]:
        """Return the fields by name, without `id`."""
        return {f.name: f for f in self.fields}

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the public columns of a row: `id`, then the fields in manifest order."""
        return ("id", *(f.name for f in self.fields))

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Return the names of the fields that no client receives."""
        return frozenset(f.name for f in self.fields if f.server_only)

    @cached_property
    def read_only(self) -> frozenset[str]:
        """Return the names of the fields that only the server and administrators write."""
        return frozenset(f.name for f in self.fields if f.server_only or f.is_managed)

    @cached_property
    def public_fields(self) -> tuple[Field, ...]:
        """Return the fields that clients receive, in manifest order."""
        return tuple(f for f in self.fields if not f.server_only)

    @cached_property
    def file_fields(self) -> tuple[Field, ...]:
        """Return the fields that name files."""
        return tuple(
            f for f in self.fields
            if f.constraints is not None and f.constraints.format == "file"
        )

    @cached_property
    def index_columns(self) -> tuple[tuple[str, ...], ...]:
        """Return the columns of each index of all rows, including that of the ids."""
        unique = tuple((f.name,) for f in self.fields if f.unique)
        declared = tuple(i.fields for i in self.indexes if i.unique and i.where is None)
        return (*self.range_columns, *unique, *declared)

    @cached_property
    def range_columns(self) -> frozenset[tuple[str, ...]]:
        """Return the columns of the indexes that serve ranges, without the unique ones."""
        sortable = () if self.search is None else tuple((name,) for name in self.search.sortable)
        return frozenset(
            (
                ("id",), *sortable,
                *(i.fields for i in self.indexes if not i.unique and i.where is None),
            )
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """The texts of a policy's rules; empty strings count as absent. `pylon.policy` compiles them.
    """

    name: str
    entity: str | None = None
    action: str | None = None
    allow: str | None = None
    allow_read: str | None = None
    allow_insert: str | None = None
    allow_update: str | None = None
    allow_delete: str | None = None
    allow_write: str | None = None
    room: str | None = None  # the rooms that it is for: a name, or the first part of one and *
    allow_join: str | None = None
    allow_broadcast: str | None = None
    allow_presence: str | None = None
    places: Mapping[str, str] = field(default_factory=dict, compare=False)  # file:line by key


class Operation(msgspec.Struct, frozen=True):
    """A query or an action: its name and inputs."""

    name: str
    input: tuple[Field, ...] = ()


class Route(msgspec.Struct, frozen=True):
    """A page of the app, for the routers of clients."""

    path: str
    mode: Literal["static", "server", "live"]
    query: str | None = None
    auth: str | None = None


class RateLimit(msgspec.Struct, frozen=True):
    """A rate that the app sets: at most `limit` in `window_s`, and `burst` at once.

    `target`: the entity of its writes, the path of a route, or the kind of message.
    """

    name: str
    kind: Literal["entity", "route", "ws"]
    target: str
    per: RatePer
    limit: int
    window_s: int
    burst: int
    verb: WriteVerb = "write"  # of an entity: the kind of write that counts


class OrgConfig(msgspec.Struct, frozen=True):
    """The names of the entities of organisations (`pylon.manifest.org_entities`), and the fate of
    rows when an organisation is deleted, by "Entity.field"."""

    entity: str = "Org"
    member_entity: str = "OrgMember"
    invite_entity: str = "OrgInvite"
    on_delete: Mapping[str, DeleteWord] = msgspec.field(default_factory=dict)


class AuthConfig(msgspec.Struct, frozen=True):
    """Settings of sign-in, and the fields of a user that others see."""

    user_entity: str = "User"
    expose: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    session_expires_in_s: int = 2_592_000  # 0: never
    session_max_age_s: int = 7_776_000  # from the sign-in, whatever use prolongs; 0: no bound
    is_session_sliding: bool = True  # whether use prolongs a session
    reauth_s: int = 600  # how long a sign-in counts as fresh
    guest_carry: tuple[str, ...] = ()  # "Entity.field", besides the fields of type id(user)
    guest_on_conflict: Literal["skip", "replace"] = "skip"
    admin_field: str | None = None  # of a user; only administrators write it
    trusted_origins: tuple[str, ...] = ()
    password_min_chars: int = 10  # code points
    # The app's own pages for the links of mails: reset, magic_link, email_change.
    urls: Mapping[str, str] = msgspec.field(default_factory=dict)
    org: OrgConfig | None = None  # None: the app has no organisations
    org_roles: tuple[str, ...] = ()  # of members, besides owner, admin and member
    totp_required_roles: tuple[str, ...] = ()  # of members, only with an authenticator app
    # The fate of rows when an account ends, by "Entity.field".
    on_delete: Mapping[str, DeleteWord] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The whole manifest, without errors."""

    name: str
    version: str
    entities: tuple[Entity, ...]
    routes: tuple[Route, ...] = ()
    queries: tuple[Operation, ...] = ()
    actions: tuple[Operation, ...] = ()
    policies: tuple[Policy, ...] = ()
    auth: AuthConfig = field(default_factory=AuthConfig)
    rate_limits: tuple[RateLimit, ...] = ()
    references: ReferenceWord | None = None  # of the fields that do not say it themselves
    source: dict[str, Any] = field(default_factory=dict)  # the document, for /api/manifest
    text: str = field(default="", compare=False, repr=False)  # the file, with its own lines
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)
    # Of a manifest that Python has declared: the places of its parts (`pylon.manifest.places`).
    places: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def by_name(self) -> dict[str, Entity]:
        return {e.name: e for e in self.entities}
