"""Declarations: what an app declares besides its entities' fields.

In the body of an entity stand `policy`, `index`, `search` and `relation`, each with a name of its
own. At the level of a module stand `app`, `room_policy`, `route`, `query`, `action`, `rate_limit`,
and a `policy` with `entity` or `action`.

A declaration keeps the keys that the manifest will have, and from which argument each came, so that
`document` can give it a place. Called by apps, through `pylon`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pylon.dsl.entities import Entity
from pylon.dsl.places import CallPlace, call_place

Kind = Literal[
    "app", "policy", "index", "search", "relation", "route", "query", "action", "rate_limit"
]
Part = tuple[str | int, ...]  # the way to a value in a declaration's keys


@dataclass(frozen=True, slots=True)
class Declaration:
    """One declaration. `keys` are those of the manifest, without those that were not given.

    `arguments`: for a part of the keys the argument that it came from, by name or position.
    """

    kind: Kind
    keys: dict[str, Any]
    place: CallPlace | None
    arguments: Mapping[Part, str | int] = field(default_factory=dict)
    targets: Mapping[str, type[Entity] | str] = field(default_factory=dict)


# The declarations at the level of modules, in their order.
STATEMENTS: Final[list[Declaration]] = []


def app(
    name: str, *, version: str | None = None, user: str | type[Entity] | None = None,
    session_expires_s: int | None = None, references: Literal["check", "none"] | None = None,
    auth: Mapping[str, Any] | None = None, extra: Mapping[str, Any] | None = None,
) -> None:
    """Declare the app: its name, its version and its sign-in. Each app has one such call.

    Args:
        name: the name of the app.
        version: the app's own version, for its clients.
        user: the entity of users.
        session_expires_s: the life of a session in seconds; 0: it does not expire.
        references: whether ids must name rows.
        auth: further keys of sign-in, as in the manifest.
        extra: further keys of the manifest.
    """
    keys = _given(name=name, version=version, references=references)
    signs_in = dict(auth or {})
    if session_expires_s is not None:
        signs_in["session"] = {**signs_in.get("session", {}), "expires_in": session_expires_s}
    if user is not None:
        signs_in["user"] = {**signs_in.get("user", {}), "entity": _entity_name(user)}
    if signs_in or auth is not None:
        keys["auth"] = signs_in
    STATEMENTS.append(Declaration("app", {**keys, **(extra or {})}, call_place(), {
        ("name",): 0, ("version",): "version", ("references",): "references", ("auth",): "auth",
        ("auth", "session", "expires_in"): "session_expires_s",
        ("auth", "user", "entity"): "user",
    }))


def policy(
    *, read: str | None = None, insert: str | None = None, update: str | None = None,
    delete: str | None = None, write: str | None = None, allow: str | None = None,
    name: str | None = None, entity: str | type[Entity] | None = None, action: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Declaration:
    """Declare who may do what with the rows of an entity, or call an action.

    Each rule is an expression, as in the manifest. In the body of an entity the policy is of that
    entity. Elsewhere `entity` or `action` says what it protects.

    Args:
        read, insert, update, delete: the rule of this operation.
        write: the rule of inserts, updates and deletes that have none of their own.
        allow: the rule of all operations, and of an action.
        name: for messages; by default made of the entity's and the attribute's name.
        extra: further keys of the manifest.
    """
    target = None if entity is None else _entity_name(entity)
    keys = _given(
        name=name, entity=target, action=action, allow=allow, allowRead=read,
        allowInsert=insert, allowUpdate=update, allowDelete=delete, allowWrite=write,
    )
    made = Declaration("policy", {**keys, **(extra or {})}, call_place(), {
        ("name",): "name", ("entity",): "entity", ("action",): "action", ("allow",): "allow",
        ("allowRead",): "read", ("allowInsert",): "insert", ("allowUpdate",): "update",
        ("allowDelete",): "delete", ("allowWrite",): "write",
    })
    if entity is not None or action is not None:
        made.keys.setdefault("name", f"{target or action} policy")
        STATEMENTS.append(made)
    return made


def room_policy(
    room: str, *, join: str | None = None, broadcast: str | None = None,
    presence: str | None = None, allow: str | None = None, name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Declare who may join rooms, and speak in them.

    Args:
        room: a name, or the first part of one and ``*``; a rule finds the rest as ``room.id``.
        join: the rule of joining, of reading members and of receiving messages.
        broadcast, presence: the rules of messages and of presence; by default that of `join`.
        allow: the rule of all three.
        name: for messages; by default made of the room.
        extra: further keys of the manifest.
    """
    keys = _given(
        name=f"rooms {room}" if name is None else name, room=room, allow=allow, allowJoin=join,
        allowBroadcast=broadcast, allowPresence=presence,
    )
    STATEMENTS.append(Declaration("policy", {**keys, **(extra or {})}, call_place(), {
        ("room",): 0, ("name",): "name", ("allow",): "allow", ("allowJoin",): "join",
        ("allowBroadcast",): "broadcast", ("allowPresence",): "presence",
    }))


def index(
    *fields: str, unique: bool = False, where: Mapping[str, Any] | None = None,
    name: str | None = None, extra: Mapping[str, Any] | None = None,
) -> Declaration:
    """Declare an index of the entity in whose body it stands.

    Args:
        fields: its fields in order, or `id`; ``-field`` puts the largest value first.
        unique: no two rows have the same values in all these fields together.
        where: a filter: the index has the rows that meet it.
        name: the index's name; by default that of the attribute.
        extra: further keys of the manifest.
    """
    keys = _given(name=name, fields=list(fields), unique=unique, where=_plain_or_none(where))
    return Declaration("index", {**keys, **(extra or {})}, call_place(), {
        **{("fields", at): at for at in range(len(fields))},
        ("name",): "name", ("unique",): "unique", ("where",): "where",
    })


def search(
    *, text: Sequence[str] = (), facets: Sequence[str] = (), sortable: Sequence[str] = (),
    language: str | None = None, extra: Mapping[str, Any] | None = None,
) -> Declaration:
    """Declare the full-text search of the entity in whose body it stands.

    Args:
        text: the fields whose words are indexed.
        facets: the fields whose values are counted.
        sortable: the fields that order the hits.
        language: for the published tools.
        extra: further keys of the manifest.
    """
    keys = _given(language=language) | {
        key: list(value)
        for key, value in (("text", text), ("facets", facets), ("sortable", sortable)) if value
    }
    return Declaration("search", {**keys, **(extra or {})}, call_place(), {
        ("text",): "text", ("facets",): "facets", ("sortable",): "sortable",
        ("language",): "language",
    })


def relation(
    target: type[Entity] | str, *, field: str, many: bool = False, name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Declaration:
    """Declare the way from the entity in whose body it stands to other rows, for graph queries.

    Args:
        target: the other entity: the class, or its name as a text.
        field: the field with the other row's id; with `many` a field of the target.
        many: whether it leads to many rows.
        name: its name in queries; by default that of the attribute.
        extra: further keys of the manifest.
    """
    keys = _given(name=name, target=_entity_name(target), field=field, many=many or None)
    return Declaration("relation", {**keys, **(extra or {})}, call_place(), {
        ("target",): 0, ("field",): "field", ("many",): "many", ("name",): "name",
    })


def route(
    path: str, *, mode: Literal["static", "server", "live"], query: str | None = None,
    auth: Literal["public", "user"] | None = None, extra: Mapping[str, Any] | None = None,
) -> None:
    """Declare a page of the app, for the routers of clients.

    Args:
        path: begins with ``/``; parts such as ``:id`` are inputs of the query.
        mode, query, auth: as in the manifest.
        extra: further keys of the manifest.
    """
    keys = _given(path=path, mode=mode, query=query, auth=auth)
    STATEMENTS.append(Declaration("route", {**keys, **(extra or {})}, call_place(), {
        ("path",): 0, ("mode",): "mode", ("query",): "query", ("auth",): "auth",
    }))


def query(
    name: str, *, inputs: Mapping[str, Any] | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Declare a query: its name and its inputs.

    Args:
        inputs: for each input its annotation, or ``(annotation, field(...))``.
        extra: further keys of the manifest.
    """
    _declare_operation("query", name, inputs, extra, call_place())


def action(
    name: str, *, inputs: Mapping[str, Any] | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Declare an action: its name and its inputs; see `query`."""
    _declare_operation("action", name, inputs, extra, call_place())


def rate_limit(
    name: str, *, match: str, limit: int, window: str,
    per: Literal["user", "ip", "tenant", "global"] | None = None, burst: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Declare a rate limit of the app.

    Args:
        name: a name of its own.
        match: what counts: ``entity:<Name>:<insert|update|delete|write>``, ``route:</path>`` or
            ``ws:message``.
        limit, window: so many in so much time, such as ``1m``.
        per: who has a count of their own; by default each user.
        burst: how many at once; by default `limit`.
        extra: further keys of the manifest.
    """
    keys = _given(name=name, match=match, limit=limit, window=window, per=per, burst=burst)
    STATEMENTS.append(Declaration("rate_limit", {**keys, **(extra or {})}, call_place(), {
        ("name",): 0, **{(key,): key for key in ("match", "limit", "window", "per", "burst")},
    }))


def _declare_operation(
    kind: Literal["query", "action"], name: str, inputs: Mapping[str, Any] | None,
    extra: Mapping[str, Any] | None, place: CallPlace | None,
) -> None:
    keys = _given(name=name, input=None if inputs is None else dict(inputs))
    STATEMENTS.append(Declaration(
        kind, {**keys, **(extra or {})}, place, {("name",): 0, ("input",): "inputs"}
    ))


def _given(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


def _plain_or_none(where: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if where is None else dict(where)


def _entity_name(target: type[Entity] | str) -> str:
    return target if isinstance(target, str) else target.__pylon_entity__
