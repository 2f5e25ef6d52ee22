"""Checks: report every fault of a manifest beyond its JSON shape (spec/http.md §2.5).

The checks read the nodes, not the model, so that a diagnostic has the offset in the file. They skip
parts that `shape` has reported. Names become tables and columns of the store, and SQLite ignores
the case of ASCII letters: two names that differ only in case are equal here.

Bounds: `limits.ENTITY_FIELDS`, `limits.SEARCH_FIELDS`. Called by `pylon.manifest_loader`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import replace

from pylon import limits, setting_values
from pylon.manifest.build import PLAIN_TYPES, field_type
from pylon.manifest.document import Node
from pylon.manifest.field_checks import check_nocase, check_reference
from pylon.manifest.findings import Findings, items_of, text_of, texts_of
from pylon.manifest.model import ROOM_RULE_KEYS, RULE_KEYS, AuthConfig, FieldType
from pylon.manifest.rate_limits import check_rate_limits
from pylon.manifest.type_words import type_hint

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# PostgreSQL looks for a table in its catalogue, with tables pg_..., before the app's schema.
_RESERVED = {"ENTITY": ("sqlite_", "pg_"), "FIELD": ("sqlite_",)}


def check_all(root: Node, findings: Findings) -> None:
    """Report all faults except those of policy expressions."""
    version = root.value.get("manifest_version") if isinstance(root.value, dict) else None
    if version is not None and type(version.value) is int and version.value != 1:
        findings.error(
            "MANIFEST_VERSION_UNSUPPORTED",
            f"manifest version {version.value} is not supported, only 1",
            version.at,
        )
    _entities(root, findings)
    for key in ("query", "action"):
        _operations(root, "queries" if key == "query" else "actions", key, findings)
    _policies(root, findings)
    _routes(root, findings)
    _trusted_origins(root, findings)
    _user_names(root, findings)
    names = frozenset(str(name) for name in _known_names(items_of(root, "entities")))
    check_rate_limits(root, names, findings)


def _entities(root: Node, findings: Findings) -> None:
    entities = items_of(root, "entities")
    if isinstance(root.value, dict) and "entities" in root.value and not entities:
        entities_node = root.value["entities"]
        if entities_node.value == []:
            findings.error("SCHEMA_EMPTY", "the manifest declares no entity", entities_node.at)
    known = _known_names(entities)
    lower_names = {name.lower() for name in known}
    tables: set[str] = set()
    for entity in entities:
        name = _name(entity, "entity", "ENTITY", tables, findings)
        _length(entity, "entity", "ENTITY", limits.SQL_NAME_BYTES, findings)
        columns = _fields(entity, known, findings)
        fields = items_of(entity, "fields")
        if len(fields) > limits.ENTITY_FIELDS:
            findings.error(
                "ENTITY_FIELDS_TOO_MANY",
                f'the entity "{name or ""}" has {len(fields):,} fields',
                fields[limits.ENTITY_FIELDS].at, f"at most {limits.ENTITY_FIELDS:,}",
            )
        _indexes(entity, columns, tables, findings)
        _relations(entity, entities, columns, findings)
        search = entity.value.get("search") if isinstance(entity.value, dict) else None
        if search is not None:
            _search(search, columns, findings)
            _sort_indexes(entity, search, lower_names, findings)


def _known_names(nodes: Iterable[Node]) -> set[str]:
    return {name.value for node in nodes if (name := text_of(node, "name")) is not None}


def _name(
    node: Node, noun: str, code: str, taken: set[str], findings: Findings
) -> str | None:
    """Check the name of a table or column, and add it to `taken` in lower case."""
    name = text_of(node, "name")
    if name is None:
        return None
    text: str = name.value
    lower_name = text.lower()
    if not text.strip():
        findings.error(f"{code}_NAME_EMPTY", f"the {noun} has no name", name.at)
        return None
    if not _IDENTIFIER.fullmatch(text):
        findings.error(
            f"{code}_NAME_INVALID",
            f'"{text}" cannot name a {noun}', name.at,
            "letters, digits and _ only, not starting with a digit",
        )
    elif text.startswith("_") or lower_name.startswith(_RESERVED[code]):
        findings.error(
            f"{code}_NAME_RESERVED", f'"{text}" cannot name a {noun}', name.at,
            f"names that start with {' or '.join(('_', *_RESERVED[code]))} are reserved",
        )
    elif lower_name == "id" and noun == "field":
        findings.error(
            f"{code}_NAME_RESERVED", f'"{text}" cannot name a field', name.at,
            "every entity has its id already",
        )
    if lower_name in taken:
        findings.error(
            f"{code}_DUPLICATE", f'the {noun} "{text}" is declared twice', name.at,
            "names that differ only in case are the same",
        )
    taken.add(lower_name)
    return text


def _length(node: Node, noun: str, code: str, name_bytes: int, findings: Findings) -> None:
    """Warn of a name that PostgreSQL would cut. A store there refuses it; SQLite has no limit."""
    name = text_of(node, "name")
    if name is not None and len(name.value.encode()) > name_bytes:
        findings.warning(
            f"{code}_NAME_TOO_LONG",
            f"the name of the {noun} has {len(name.value):,} characters", name.at,
            f"PostgreSQL takes {name_bytes} bytes, SQLite any number",
        )


def _fields(entity: Node, entities: set[str], findings: Findings) -> set[str]:
    """Check the fields of an entity.

    Returns:
        The names that its indexes, relations and search may use.
    """
    taken: set[str] = set()
    names = {"id"}
    for field in items_of(entity, "fields"):
        name = _name(field, "field", "FIELD", taken, findings)
        if name is not None:
            names.add(name)
        _length(field, "field", "FIELD", limits.SQL_NAME_BYTES, findings)
        _type(field, entities, "FIELD", findings)
        check_reference(field, findings)
        check_nocase(field, findings)
    return names


def _type(field: Node, entities: set[str], code: str, findings: Findings) -> None:
    type_ = text_of(field, "type")
    if type_ is None:
        return
    found = field_type(type_.value)
    if found is None:
        hint = type_hint(type_.value, PLAIN_TYPES, entities)
        known = f"known: {', '.join(PLAIN_TYPES)}, id(Entity)"
        findings.error(
            f"{code}_TYPE_UNKNOWN", f'unknown type "{type_.value}"', type_.at,
            known if hint is None else f"{hint}; {known}",
        )
    elif found[0] is FieldType.ID and found[1] not in entities:
        findings.error(
            "FIELD_ID_TARGET_NOT_FOUND", f'no entity is called "{found[1]}"', type_.at,
            _listing(entities),
        )


def _indexes(entity: Node, columns: set[str], tables: set[str], findings: Findings) -> None:
    """Check the indexes. In SQLite ``<Entity>_<index>`` shares one namespace with tables."""
    owner = text_of(entity, "name")
    for index in items_of(entity, "indexes"):
        name = text_of(index, "name")
        if name is not None and not name.value.strip():
            findings.error("INDEX_NAME_EMPTY", "the index has no name", name.at)
        elif name is not None and not name.value.isprintable():
            findings.error(
                "INDEX_NAME_INVALID", f'"{name.value}" cannot name an index', name.at,
                "printable characters only",
            )
        elif name is not None and owner is not None:
            full = f"{owner.value}_{name.value}".lower()
            if full in tables:
                findings.error(
                    "INDEX_NAME_DUPLICATE", f'the index "{name.value}" is declared twice', name.at,
                    f"{owner.value}_{name.value} must differ from all entities and indexes,"
                    " ignoring case",
                )
            tables.add(full)
        fields = index.value.get("fields") if isinstance(index.value, dict) else None
        if fields is not None and fields.value == []:
            findings.error("INDEX_FIELDS_EMPTY", "the index has no fields", fields.at)
        named: set[str] = set()
        for field in texts_of(index, "fields"):
            plain = replace(field, value=field.value.removeprefix("-"))
            _has_field(plain, columns, "INDEX_FIELD_NOT_FOUND", "the index", findings)
            if plain.value in named:
                findings.error(
                    "INDEX_FIELD_DUPLICATE", f'the index names "{plain.value}" twice', field.at
                )
            named.add(plain.value)


def _relations(
    entity: Node, entities: list[Node], columns: set[str], findings: Findings
) -> None:
    taken: set[str] = set()
    for relation in items_of(entity, "relations"):
        _plain_name(relation, "relation", "RELATION", taken, findings)
        name = text_of(relation, "name")
        if name is not None and name.value in columns:
            findings.error(
                "RELATION_NAME_TAKEN", f'the relation "{name.value}" is named like a field',
                name.at, "in an answer its rows would take the place of the field",
            )
        target, field = text_of(relation, "target"), text_of(relation, "field")
        many = relation.value.get("many") if isinstance(relation.value, dict) else None
        is_many = many is not None and many.value is True
        if field is not None and not is_many:
            _has_field(field, columns, "RELATION_FIELD_NOT_FOUND", "the relation", findings)
        if target is None:
            continue
        found = next((e for e in entities if _is_called(e, target.value)), None)
        if found is None:
            findings.error(
                "RELATION_TARGET_NOT_FOUND", f'no entity is called "{target.value}"', target.at,
                _listing(_known_names(entities)),
            )
        elif field is not None and is_many:
            target_columns = {"id"} | _known_names(items_of(found, "fields"))
            _has_field(
                field, target_columns, "RELATION_FIELD_NOT_FOUND", "the relation's target", findings
            )


def _search(search: Node, columns: set[str], findings: Findings) -> None:
    texts = texts_of(search, "text")
    if len({field.value for field in texts}) > limits.SEARCH_FIELDS:
        findings.error(
            "SEARCH_FIELDS_TOO_MANY", f"text of search has {len(texts):,} fields",
            texts[limits.SEARCH_FIELDS].at, f"at most {limits.SEARCH_FIELDS:,}",
        )
    for key in ("text", "facets", "sortable"):
        for field in texts_of(search, key):
            _has_field(field, columns, "SEARCH_FIELD_NOT_FOUND", f"{key} of search", findings)


def _sort_indexes(entity: Node, search: Node, tables: set[str], findings: Findings) -> None:
    """Check that no table has the name of an index of search, ``<Entity>_sort_<field>``."""
    owner = text_of(entity, "name")
    for field in texts_of(search, "sortable") if owner is not None else ():
        full = f"{owner.value if owner else ''}_sort_{field.value}"
        if full.lower() in tables:
            findings.error(
                "INDEX_NAME_DUPLICATE",
                f'the index "{full}" of a sortable field is named like an entity', field.at,
                "rename that entity",
            )


def _is_called(node: Node, name: str) -> bool:
    found = text_of(node, "name")
    return found is not None and found.value == name


def _has_field(
    field: Node, columns: set[str], code: str, noun: str, findings: Findings
) -> None:
    if field.value not in columns:
        findings.error(
            code, f'{noun} names the field "{field.value}", which does not exist', field.at,
            _listing(columns),
        )


def _listing(names: Iterable[str]) -> str:
    return "known: " + (", ".join(sorted(names)) or "none")


def _operations(root: Node, key: str, noun: str, findings: Findings) -> None:
    """Check the names and inputs of queries or actions."""
    entities = _known_names(items_of(root, "entities"))
    taken: set[str] = set()
    for operation in items_of(root, key):
        _plain_name(operation, noun, noun.upper(), taken, findings)
        inputs: set[str] = set()
        for field in items_of(operation, "input"):
            _plain_name(field, "input field", "INPUT_FIELD", inputs, findings)
            _type(field, entities, "INPUT_FIELD", findings)


def _plain_name(
    node: Node, noun: str, code: str, taken: set[str], findings: Findings, key: str = "name"
) -> None:
    """Check a name that names no table or column: not empty, and not in `taken`."""
    name = text_of(node, key)
    if name is None:
        return
    if not name.value.strip():
        findings.error(f"{code}_{key.upper()}_EMPTY", f"the {noun} has no {key}", name.at)
        return
    if name.value in taken:
        code = f"{code}_DUPLICATE" if key == "name" else f"{code}_{key.upper()}_DUPLICATE"
        findings.error(code, f'the {noun} "{name.value}" is declared twice', name.at)
    taken.add(name.value)


def _policies(root: Node, findings: Findings) -> None:
    taken: set[str] = set()
    for policy in items_of(root, "policies"):
        _plain_name(policy, "policy", "POLICY", taken, findings)
        if not isinstance(policy.value, dict):
            continue
        rules = [
            node for key, node in policy.value.items()
            if key in RULE_KEYS or key in ROOM_RULE_KEYS
        ]
        if all(node.value is None or node.value == "" for node in rules):
            findings.error("POLICY_ALLOW_EMPTY", "the policy has no rule", policy.at)
        targets = {key: text_of(policy, key) for key in ("entity", "action", "room")}
        named = {key: node for key, node in targets.items() if node is not None and node.value}
        if not named:
            findings.error(
                "POLICY_NO_TARGET", "the policy is for no entity, no action and no room", policy.at
            )
        room = named.pop("room", None)
        _rule_keys(policy, room is not None, findings)
        if room is not None:
            _room_pattern(room, findings)
            for key, node in named.items():
                findings.error(
                    "POLICY_ROOM_INVALID", f"the policy is for rooms and for an {key}", node.at,
                    "write two policies",
                )
        for key, node in named.items():
            known = _known_names(items_of(root, "entities" if key == "entity" else "actions"))
            if node.value not in known:
                findings.error(
                    f"POLICY_{key.upper()}_NOT_FOUND", f'no {key} is called "{node.value}"',
                    node.at, _listing(known),
                )


def _rule_keys(policy: Node, is_for_rooms: bool, findings: Findings) -> None:
    """Report the rules that are never asked: those of rooms for others, and the reverse."""
    used, other = (ROOM_RULE_KEYS, RULE_KEYS) if is_for_rooms else (RULE_KEYS, ROOM_RULE_KEYS)
    for key, node in policy.value.items():
        if key in other and key not in used and node.value:
            findings.error(
                "POLICY_RULE_MISPLACED",
                f'{key} is no rule of {"rooms" if is_for_rooms else "entities or actions"}',
                node.at, _listing(used),
            )


def _room_pattern(room: Node, findings: Findings) -> None:
    name = room.value
    if "*" in name[:-1]:
        findings.error(
            "POLICY_ROOM_INVALID", f'the room "{name}" has a * before its end', room.at,
            'one * stands at the end, as in "room:*"',
        )
    elif len(name) > limits.ROOM_NAME_CHARS:
        findings.error(
            "POLICY_ROOM_INVALID",
            f"the room has {len(name)} characters (limit {limits.ROOM_NAME_CHARS})", room.at,
        )


def _routes(root: Node, findings: Findings) -> None:
    taken: set[str] = set()
    queries = items_of(root, "queries")
    for route in items_of(root, "routes"):
        _plain_name(route, "route", "ROUTE", taken, findings, key="path")
        path, query = text_of(route, "path"), text_of(route, "query")
        if path is not None and path.value.strip() and not path.value.startswith("/"):
            findings.error(
                "ROUTE_PATH_NO_SLASH", f'the path "{path.value}" does not start with /', path.at
            )
        auth = text_of(route, "auth")
        if auth is not None and auth.value not in ("public", "user"):
            findings.error(
                "ROUTE_AUTH_INVALID", f'auth cannot be "{auth.value}"', auth.at,
                "known: public, user",
            )
        if query is None:
            continue
        found = next((q for q in queries if _is_called(q, query.value)), None)
        if found is None:
            findings.error(
                "ROUTE_QUERY_NOT_FOUND", f'no query is called "{query.value}"', query.at,
                _listing(_known_names(queries)),
            )
        elif path is not None:
            _parameters(path, found, findings)


def _trusted_origins(root: Node, findings: Findings) -> None:
    """Warn of an entry that no browser's Origin header can equal."""
    auth = root.value.get("auth") if isinstance(root.value, dict) else None
    for node in texts_of(auth, "trusted_origins") if auth is not None else ():
        try:
            setting_values.origin(node.value)
        except ValueError as ex:
            findings.warning(
                "AUTH_ORIGIN_INVALID", f'"{node.value}" is no origin of a browser', node.at,
                str(ex),
            )


def _user_names(root: Node, findings: Findings) -> None:
    """Warn of an unknown entity or field in auth.user, which may be misspelt."""
    user = root.value.get("auth") if isinstance(root.value, dict) else None
    user = user.value.get("user") if user is not None and isinstance(user.value, dict) else None
    if user is None:
        return
    entities = items_of(root, "entities")
    name = text_of(user, "entity")
    wanted = name.value if name is not None and name.value else AuthConfig().user_entity
    found = next((e for e in entities if _is_called(e, wanted)), None)
    if found is None:
        if name is not None and name.value:
            findings.warning(
                "AUTH_NAME_UNKNOWN", f'no entity is called "{wanted}"', name.at,
                _listing(_known_names(entities)),
            )
        return
    fields = {"id"} | _known_names(items_of(found, "fields"))
    for key in ("expose", "hide"):
        for field in texts_of(user, key):
            close_names = difflib.get_close_matches(field.value, fields, n=1)
            # An unknown field in `hide` is harmless, unless it is a misspelt one.
            if field.value not in fields and (key == "expose" or close_names):
                findings.warning(
                    "AUTH_NAME_UNKNOWN", f'{wanted} has no field "{field.value}"', field.at,
                    f"did you mean {close_names[0]}?" if close_names else _listing(fields),
                )


def _parameters(path: Node, query: Node, findings: Findings) -> None:
    inputs = _known_names(items_of(query, "input"))
    index = 0
    for segment in path.value.split("/"):
        if segment.startswith(":") and segment[1:] not in inputs:
            findings.error(
                "ROUTE_PARAM_NOT_IN_QUERY",
                f'the path\'s parameter "{segment[1:]}" is no input of the query',
                findings.place_in_string(path, index), _listing(inputs),
            )
        index += len(segment) + 1
