"""Keys: the keys of each level of a manifest, required and optional, and the shapes of values.

Each level is one table, and the only list of its keys. A key that a manifest leaves out has the
default that `build` gives it; docs/manifest.md has all of them. `shape` checks a document against
`MANIFEST`, and `public` fills the defaults in for clients. To add a key: one line here, its default
in `build`, a row in docs/manifest.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

_CRDT_KINDS = ("lww", "text", "counter", "list", "movable-list", "tree")
_ROUTE_MODES = ("static", "server", "live")


class Scalar(msgspec.Struct, frozen=True):
    """A single value; `what` describes it in messages."""

    type: type
    what: str
    words: tuple[str, ...] = ()  # the allowed values; empty: all
    minimum: int | None = None
    maximum: int | None = None


class ListOf(msgspec.Struct, frozen=True):
    """A list whose members have the shape `item`."""

    item: Shape


class Object(msgspec.Struct, frozen=True):
    """An object: its required and optional keys."""

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape]
    inert: Mapping[str, str] = msgspec.field(default_factory=dict)  # no effect: reason or ""


class Scalars(msgspec.Struct, frozen=True):
    """A value of one of several scalar shapes."""

    shapes: tuple[Scalar, ...]

    @property
    def what(self) -> str:
        """Describe the value in messages."""
        return " or ".join(shape.what for shape in self.shapes)


class JsonValue(msgspec.Struct, frozen=True):
    """Any JSON value; `checks` says more about it."""


Shape = Scalar | ListOf | Object | Scalars | JsonValue

STRING: Final = Scalar(str, "a string")
BOOL: Final = Scalar(bool, "true or false")
STRINGS: Final = ListOf(STRING)


def words(*allowed: str) -> Scalar:
    """Return the shape of a string that is one of the words."""
    return Scalar(str, "one of " + ", ".join(allowed), allowed)


_LENGTH = Scalar(int, "a whole number from 0", minimum=0)
_LIFE_S = Scalar(
    int, "a whole number of seconds from 0 to 3153600000 (100 years)", minimum=0,
    maximum=3_153_600_000,
)
_MIN_LENGTH = Scalar(int, "a whole number from 8 to 128", minimum=8, maximum=128)
REFERENCES: Final = words("check", "none")

# Of the type of a field or an input: the values of an enum, and constraints.
_TYPE_KEYS: Final[dict[str, Shape]] = {
    "values": STRINGS, "wire": words("json", "text"),
    "minimum": JsonValue(), "maximum": JsonValue(),
    "minLength": _LENGTH, "maxLength": _LENGTH, "pattern": STRING,
    "format": words("email", "url", "file"), "accept": STRINGS,
    "maxBytes": Scalar(int, "a whole number from 1", minimum=1),
}
FIELD: Final = Object(
    {"name": STRING, "type": STRING},
    {
        "optional": BOOL, "unique": Scalars((BOOL, words("nocase"))),
        "crdt": words(*_CRDT_KINDS),
        "default": JsonValue(), "fixed": BOOL, "onUpdate": JsonValue(),
        "references": REFERENCES, "onDelete": words("restrict", "cascade", "setNull"),
        "serverOnly": BOOL,
        **_TYPE_KEYS,
    },
)
# Of an input of a query or an action; `unique` and `crdt` have no meaning there.
INPUT: Final = Object(
    {"name": STRING, "type": STRING},
    {"optional": BOOL, "unique": BOOL, "crdt": words(*_CRDT_KINDS), **_TYPE_KEYS},
)
INDEX: Final = Object({"name": STRING, "fields": STRINGS}, {"unique": BOOL, "where": JsonValue()})
RELATION: Final = Object({"name": STRING, "target": STRING, "field": STRING}, {"many": BOOL})
SEARCH: Final = Object(
    {}, {"text": STRINGS, "facets": STRINGS, "sortable": STRINGS, "language": STRING}
)
ENTITY: Final = Object(
    {"name": STRING, "fields": ListOf(FIELD)},
    {"indexes": ListOf(INDEX), "relations": ListOf(RELATION), "search": SEARCH, "crdt": BOOL,
     "label": STRING},
    {"sync": "rows are synced to all who may read them; use a policy to restrict them"},
)
OPERATION: Final = Object({"name": STRING}, {"input": ListOf(INPUT)})
ROUTE: Final = Object(
    {"path": STRING, "mode": words(*_ROUTE_MODES)}, {"query": STRING, "auth": STRING}
)
POLICY: Final = Object(
    {"name": STRING},
    dict.fromkeys(
        (
            "entity", "action", "allow", "allowRead", "allowInsert", "allowUpdate",
            "allowDelete", "allowWrite", "room", "allowJoin", "allowBroadcast", "allowPresence",
        ),
        STRING,
    ),
)
AUTH: Final = Object(
    {},
    {
        "user": Object(
            {}, {"entity": STRING, "expose": STRINGS, "hide": STRINGS, "admin_field": STRING}
        ),
        "session": Object(
            {}, {"expires_in": _LIFE_S, "max_age": _LIFE_S, "sliding": BOOL}, {"cookie_cache": ""}
        ),
        "guest": Object({}, {"carry": STRINGS, "on_conflict": words("skip", "replace")}),
        "reauth_s": Scalar(
            int, "a whole number of seconds from 60 to 86400", minimum=60, maximum=86_400
        ),
        "password": Object({}, {"min_length": _MIN_LENGTH}),
        "trusted_origins": STRINGS,
        "urls": Object({}, {"reset": STRING, "magic_link": STRING, "email_change": STRING}),
        "org": Object({}, {
            "entity": STRING, "member_entity": STRING, "invite_entity": STRING, "disabled": BOOL,
            "on_delete": JsonValue(),
        }),
        "org_roles": STRINGS,
        "totp": Object({}, {"required_roles": STRINGS}),
        "on_delete": JsonValue(),
    },
)
RATE_LIMIT: Final = Object(
    {
        "name": STRING, "match": STRING,
        "limit": Scalar(int, "a whole number from 1 to 1000000000", minimum=1, maximum=10**9),
        "window": STRING,
    },
    {
        "per": words("user", "ip", "tenant", "global"),
        "burst": Scalar(int, "a whole number from 1 to 1000000000", minimum=1, maximum=10**9),
    },
)
MANIFEST: Final = Object(
    {"name": STRING, "entities": ListOf(ENTITY)},
    {
        "manifest_version": Scalar(int, "a whole number"),
        "version": STRING,
        "references": REFERENCES,
        "routes": ListOf(ROUTE),
        "queries": ListOf(OPERATION),
        "actions": ListOf(OPERATION),
        "policies": ListOf(POLICY),
        "auth": AUTH,
        "rateLimits": ListOf(RATE_LIMIT),
    },
    {
        "plugins": "there are no plugins", "crons": "there are no background jobs",
    },
)
