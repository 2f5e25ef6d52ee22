"""Builder: turns checked nodes of the document into the model.

Precondition: `shape` and `checks` have reported no error in the node. Called by
`pylon.manifest_loader`; `checks` calls `field_type`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, Final

from pylon.manifest.document import Node
from pylon.manifest.model import (
    DEFAULT_VERSION,
    AuthConfig,
    Constraints,
    Default,
    DefaultKind,
    Entity,
    Field,
    FieldType,
    Index,
    Manifest,
    Operation,
    OrgConfig,
    Policy,
    Relation,
    Route,
    Search,
)
from pylon.manifest.protected import ProtectedNames, protected_names
from pylon.manifest.rate_limits import build_rate_limit

_ID_TYPE = re.compile(r"id\(([^()]*)\)")
GENERATORS: Final[dict[str, DefaultKind]] = {
    "$now": "now", "$uuid": "uuid", "$id": "id", "$auth": "auth",
}
PLAIN_TYPES = {kind.value: kind for kind in FieldType if kind is not FieldType.ID}


def field_type(text: str) -> tuple[FieldType, str | None] | None:
    """Return the type that a manifest names, and the target of ``id(Target)``; None if unknown."""
    if text in PLAIN_TYPES:
        return PLAIN_TYPES[text], None
    found = _ID_TYPE.fullmatch(text)
    return (FieldType.ID, found.group(1)) if found else None


def build_manifest(node: Node) -> Manifest:
    """Return the whole manifest."""
    source = node.plain()
    protected = protected_names(source)
    return Manifest(
        name=source["name"],
        version=DEFAULT_VERSION if source.get("version") is None else source["version"],
        entities=tuple(_entity(raw, protected) for raw in source["entities"]),
        routes=tuple(_route(raw) for raw in source.get("routes") or ()),
        queries=tuple(_operation(raw) for raw in source.get("queries") or ()),
        actions=tuple(_operation(raw) for raw in source.get("actions") or ()),
        policies=tuple(_policy(raw) for raw in source.get("policies") or ()),
        auth=_auth(source.get("auth") or {}),
        rate_limits=tuple(build_rate_limit(raw) for raw in source.get("rateLimits") or ()),
        references=source.get("references"),
        source=source,
    )


def build_entity(node: Node, protected: ProtectedNames) -> Entity:
    """Return one entity.

    Args:
        protected: `protected_names` of the whole document.
    """
    return _entity(node.plain(), protected)


def build_field(raw: dict[str, Any]) -> Field:
    """Return one field of its plain object."""
    return _field(raw)


def build_operation(node: Node) -> Operation:
    """Return one query or action."""
    return _operation(node.plain())


def _entity(raw: dict[str, Any], protected: ProtectedNames) -> Entity:
    search, crdt = raw.get("search"), raw.get("crdt")
    fields = tuple(_protected(_field(f), raw["name"], protected) for f in raw["fields"])
    # The document of a row has all of its fields, and clients get it whole.
    is_hiding = any(field.server_only for field in fields)
    return Entity(
        name=raw["name"],
        fields=fields,
        indexes=tuple(_index(i) for i in raw.get("indexes") or ()),
        relations=tuple(
            Relation(r["name"], r["target"], r["field"], bool(r.get("many")))
            for r in raw.get("relations") or ()
        ),
        search=None if search is None else _search(search),
        crdt=(True if crdt is None else crdt) and not is_hiding,
        is_managed=protected.is_managed_entity(raw["name"]),
        label=raw.get("label"),
    )


def _protected(field: Field, entity: str, names: ProtectedNames) -> Field:
    is_hidden = field.server_only or names.is_secret(entity, field.name)
    is_managed = names.is_managed(entity, field.name)
    if not (is_hidden or is_managed):
        return field
    return replace(field, server_only=is_hidden, is_managed=is_managed)


def _field(raw: dict[str, Any]) -> Field:
    found = field_type(raw["type"])
    if found is None:
        raise ValueError(f"unchecked field type {raw['type']}")
    kind, target = found
    return Field(
        raw["name"], kind, bool(raw.get("optional")), bool(raw.get("unique")), target,
        raw.get("crdt"), _default(raw.get("default")), bool(raw.get("fixed")),
        _default(raw.get("onUpdate")), raw.get("references"), raw.get("onDelete"),
        raw.get("unique") == "nocase",
        tuple(raw.get("values") or ()) if kind is FieldType.ENUM else (),
        kind is FieldType.JSON and raw.get("wire") == "text", _constraints(raw),
        bool(raw.get("serverOnly")),
    )


def _constraints(raw: dict[str, Any]) -> Constraints | None:
    made = Constraints(
        raw.get("minimum"), raw.get("maximum"), raw.get("minLength"), raw.get("maxLength"),
        raw.get("pattern"), raw.get("format"), tuple(raw.get("accept") or ()), raw.get("maxBytes"),
    )
    return None if made == Constraints() else made


def _default(raw: Any) -> Default | None:
    """Return a default: a constant, or an object with one key such as ``$now``."""
    if raw is None:
        return None
    if isinstance(raw, dict) and len(raw) == 1:
        (key,) = raw
        if key in GENERATORS:
            return Default(GENERATORS[key], raw[key] if isinstance(raw[key], str) else "")
    return Default("constant", json.dumps(raw, ensure_ascii=False))


def _index(raw: dict[str, Any]) -> Index:
    where = raw.get("where")
    return Index(
        raw["name"], tuple(field.removeprefix("-") for field in raw["fields"]),
        bool(raw.get("unique")),
        tuple(field[1:] for field in raw["fields"] if field.startswith("-")),
        None if where is None else json.dumps(where, ensure_ascii=False, sort_keys=True),
    )


def _search(raw: dict[str, Any]) -> Search:
    text, facets, sortable = (tuple(raw.get(k) or ()) for k in ("text", "facets", "sortable"))
    return Search(text, facets, sortable, raw.get("language") or "english")


def _operation(raw: dict[str, Any]) -> Operation:
    return Operation(raw["name"], tuple(_field(f) for f in raw.get("input") or ()))


def _route(raw: dict[str, Any]) -> Route:
    return Route(raw["path"], raw["mode"], raw.get("query"), raw.get("auth"))


def _policy(raw: dict[str, Any]) -> Policy:
    """Empty strings count as absent (spec/http.md §5.1)."""
    return Policy(
        name=raw["name"],
        entity=raw.get("entity") or None,
        action=raw.get("action") or None,
        allow=raw.get("allow") or None,
        allow_read=raw.get("allowRead") or None,
        allow_insert=raw.get("allowInsert") or None,
        allow_update=raw.get("allowUpdate") or None,
        allow_delete=raw.get("allowDelete") or None,
        allow_write=raw.get("allowWrite") or None,
        room=raw.get("room") or None,
        allow_join=raw.get("allowJoin") or None,
        allow_broadcast=raw.get("allowBroadcast") or None,
        allow_presence=raw.get("allowPresence") or None,
    )


def _auth(raw: dict[str, Any]) -> AuthConfig:
    user, session = raw.get("user") or {}, raw.get("session") or {}
    guest = raw.get("guest") or {}
    password = raw.get("password") or {}
    expires_in_s, max_age_s = session.get("expires_in"), session.get("max_age")
    default = AuthConfig()
    return AuthConfig(
        user_entity=user.get("entity") or default.user_entity,
        expose=tuple(user.get("expose") or ()),
        hide=tuple(user.get("hide") or ()),
        admin_field=user.get("admin_field") or None,
        session_expires_in_s=default.session_expires_in_s if expires_in_s is None else expires_in_s,
        session_max_age_s=default.session_max_age_s if max_age_s is None else max_age_s,
        is_session_sliding=session.get("sliding") is not False,
        reauth_s=raw.get("reauth_s") or default.reauth_s,
        guest_carry=tuple(guest.get("carry") or ()),
        guest_on_conflict=guest.get("on_conflict") or default.guest_on_conflict,
        trusted_origins=tuple(raw.get("trusted_origins") or ()),
        org=_org(raw.get("org")),
        org_roles=tuple(raw.get("org_roles") or ()),
        totp_required_roles=tuple((raw.get("totp") or {}).get("required_roles") or ()),
        on_delete=dict(raw.get("on_delete") or {}),
        urls=dict(raw.get("urls") or {}),
        password_min_chars=password.get("min_length") or default.password_min_chars,
    )


def _org(raw: dict[str, Any] | None) -> OrgConfig | None:
    if raw is None or raw.get("disabled"):
        return None
    default = OrgConfig()
    return OrgConfig(
        raw.get("entity") or default.entity, raw.get("member_entity") or default.member_entity,
        raw.get("invite_entity") or default.invite_entity, dict(raw.get("on_delete") or {}),
    )
