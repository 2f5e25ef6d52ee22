"""Checks: report every fault of a manifest beyond its JSON shape (spec/http.md §2.5).

The checks read the nodes, not the model, so that a diagnostic has the offset in the file. They skip
parts that `shape` has reported. Here are the checks of entities, operations and routes;
`name_checks`, `field_checks`, `policy_checks` and `auth_checks` have the others.

Bounds: `limits.ENTITY_FIELDS`, `limits.SEARCH_FIELDS`. Called by `pylon.manifest_loader`.
"""

from __future__ import annotations

from msgspec.structs import replace

from pylon import limits
from pylon.manifest.auth_checks import (
    check_guest_carry,
    check_on_delete,
    check_org_roles,
    check_trusted_origins,
    check_urls,
    check_user_names,
)
from pylon.manifest.build import PLAIN_TYPES, field_type
from pylon.manifest.document import Node
from pylon.manifest.field_checks import check_nocase, check_reference
from pylon.manifest.findings import Findings, items_of, text_of, texts_of
from pylon.manifest.model import FieldType
from pylon.manifest.name_checks import (
    check_field_name,
    check_length,
    check_name,
    check_plain_name,
    is_called,
    list_known,
    names_of,
)
from pylon.manifest.policy_checks import check_policies
from pylon.manifest.rate_limits import check_rate_limits
from pylon.manifest.type_words import type_hint


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
    check_policies(root, findings)
    _routes(root, findings)
    check_trusted_origins(root, findings)
    check_user_names(root, findings)
    check_guest_carry(root, findings)
    check_org_roles(root, findings)
    check_on_delete(root, findings)
    check_urls(root, findings)
    names = frozenset(names_of(items_of(root, "entities")))
    check_rate_limits(root, names, findings)


def _entities(root: Node, findings: Findings) -> None:
    entities = items_of(root, "entities")
    if isinstance(root.value, dict) and "entities" in root.value and not entities:
        entities_node = root.value["entities"]
        if entities_node.value == []:
            findings.error("SCHEMA_EMPTY", "the manifest declares no entity", entities_node.at)
    known = names_of(entities)
    lower_names = {name.lower() for name in known}
    tables: set[str] = set()
    for entity in entities:
        name = check_name(entity, "entity", "ENTITY", tables, findings)
        check_length(entity, "entity", "ENTITY", limits.SQL_NAME_BYTES, findings)
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
        label = text_of(entity, "label")
        if label is not None:
            check_field_name(label, columns, "ENTITY_LABEL_NOT_FOUND", "label", findings)
        search = entity.value.get("search") if isinstance(entity.value, dict) else None
        if search is not None:
            _search(search, columns, findings)
            _sort_indexes(entity, search, lower_names, findings)


def _fields(entity: Node, entities: set[str], findings: Findings) -> set[str]:
    """Check the fields of an entity.

    Returns:
        The names that its indexes, relations and search may use.
    """
    taken: set[str] = set()
    names = {"id"}
    for field in items_of(entity, "fields"):
        name = check_name(field, "field", "FIELD", taken, findings)
        if name is not None:
            names.add(name)
        check_length(field, "field", "FIELD", limits.SQL_NAME_BYTES, findings)
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
            list_known(entities, found[1]),
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
            check_field_name(plain, columns, "INDEX_FIELD_NOT_FOUND", "the index", findings)
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
        check_plain_name(relation, "relation", "RELATION", taken, findings)
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
            check_field_name(field, columns, "RELATION_FIELD_NOT_FOUND", "the relation", findings)
        if target is None:
            continue
        found = next((e for e in entities if is_called(e, target.value)), None)
        if found is None:
            findings.error(
                "RELATION_TARGET_NOT_FOUND", f'no entity is called "{target.value}"', target.at,
                list_known(names_of(entities), target.value),
            )
        elif field is not None and is_many:
            target_columns = {"id"} | names_of(items_of(found, "fields"))
            check_field_name(
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
            check_field_name(field, columns, "SEARCH_FIELD_NOT_FOUND", f"{key} of search", findings)


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


def _operations(root: Node, key: str, noun: str, findings: Findings) -> None:
    """Check the names and inputs of queries or actions."""
    entities = names_of(items_of(root, "entities"))
    taken: set[str] = set()
    for operation in items_of(root, key):
        check_plain_name(operation, noun, noun.upper(), taken, findings)
        inputs: set[str] = set()
        for field in items_of(operation, "input"):
            check_plain_name(field, "input field", "INPUT_FIELD", inputs, findings)
            _type(field, entities, "INPUT_FIELD", findings)


def _routes(root: Node, findings: Findings) -> None:
    taken: set[str] = set()
    queries = items_of(root, "queries")
    for route in items_of(root, "routes"):
        check_plain_name(route, "route", "ROUTE", taken, findings, key="path")
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
        found = next((q for q in queries if is_called(q, query.value)), None)
        if found is None:
            findings.error(
                "ROUTE_QUERY_NOT_FOUND", f'no query is called "{query.value}"', query.at,
                list_known(names_of(queries), query.value),
            )
        elif path is not None:
            _parameters(path, found, findings)


def _parameters(path: Node, query: Node, findings: Findings) -> None:
    inputs = names_of(items_of(query, "input"))
    index = 0
    for segment in path.value.split("/"):
        if segment.startswith(":") and segment[1:] not in inputs:
            findings.error(
                "ROUTE_PARAM_NOT_IN_QUERY",
                f'the path\'s parameter "{segment[1:]}" is no input of the query',
                findings.place_in_string(path, index), list_known(inputs),
            )
        index += len(segment) + 1
