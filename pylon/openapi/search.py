"""The faceted search of each entity, ``POST /api/search/{entity}`` (spec/http.md §3.7)."""

from __future__ import annotations

from typing import Final

from pylon import errors, limits
from pylon.manifest.model import Entity, FieldType, Search
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    STORE_ERRORS,
    ErrorClass,
    Paths,
    Schema,
    listed,
    nullable,
    obj,
    operation,
    ref,
    response,
)
from pylon.query.search import SearchBody
from pylon.values import INT_MAX, INT_MIN

_NUMBER: Final[Schema] = {"anyOf": [
    {"type": "number", "minimum": INT_MIN, "maximum": INT_MAX},
    {"type": "string", "pattern": r"^-?[0-9]{1,18}(\.[0-9]{1,18})?$"},
]}
_FACET: Final[dict[FieldType, Schema]] = {
    FieldType.BOOL: {"enum": [True, False, "true", "false"]},
    FieldType.INT: _NUMBER,
    FieldType.FLOAT: _NUMBER,
    FieldType.DECIMAL: {"type": ["string", "integer"]},
}


def search_paths(entity: Entity) -> Paths:
    """Return the path; without a search config its error says how to add one."""
    raises: tuple[ErrorClass, ...] = (errors.PolicyDenied, *STORE_ERRORS)
    where, name = f"/api/search/{entity.name}", f"search{entity.name}"
    if entity.search is None:
        return {where: operation(
            "post", name, entity.name, f"{entity.name} has no search config", {},
            raises=(*raises, errors.SearchNotConfigured), body=obj({}),
        )}
    hits = obj({
        "hits": listed(ref(entity.name)),
        "facetCounts": {
            "type": "object",
            "additionalProperties": {
                "type": "object", "additionalProperties": {"type": "integer"},
            },
            "description": "By facet and value: how many of all hits have the value. Values "
            f"are text, the {limits.FACET_VALUES} most frequent ones; null is not counted",
        },
        "total": {"type": "integer", "description": "Hits on all pages"},
        "tookMs": {"type": "integer"},
    })
    return {where: operation(
        "post", name, entity.name, "Rows by words and facets, the best match first",
        {200: response("A page of hits", hits)},
        raises=(*raises, errors.InvalidQuery, errors.InvalidValue),
        body=ref(f"{entity.name}Search"),
    )}


def search_request(entity: Entity, search: Search) -> Schema:
    """Return the schema of the body, `<E>Search`."""
    facets, sortable = search.facets, search.sortable
    values = {name: _values(entity, name) for name in facets}
    known = listed({"enum": list(facets)}) if facets else listed({}, maxItems=0)
    pair = listed(
        {}, prefixItems=[{"enum": list(sortable)}, {"enum": ["asc", "desc"]}],
        minItems=2, maxItems=2,
    )
    return body_schema(SearchBody, {
        "filters": nullable(obj(values, ())),
        "facets": nullable(known),
        "sort": {"anyOf": [
            *([pair] if sortable else []), {"type": "array", "maxItems": 0}, {"type": "null"},
        ]},
    })


def _values(entity: Entity, name: str) -> Schema:
    field = entity.by_name.get(name)
    one: Schema = _FACET.get(field.type if field is not None else FieldType.ID, {"type": "string"})
    some = listed(nullable(one), maxItems=limits.FILTER_TERMS)
    return {
        "anyOf": [one, {"type": "null"}, some],
        "description": "A value, the text that facet counts have, or a list",
    }
