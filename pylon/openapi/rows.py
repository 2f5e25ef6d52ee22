"""Operations on the rows of one entity: list, page, get, write, look up, query, aggregate."""

from __future__ import annotations

from typing import Final

from pylon import errors, limits
from pylon.config import Config
from pylon.manifest.model import Entity, Field, FieldType, Manifest
from pylon.openapi.filters import columns_of
from pylon.openapi.parts import (
    ROW_ERRORS,
    STORE_ERRORS,
    WRITE_ERRORS,
    ErrorClass,
    Paths,
    Schema,
    listed,
    nullable,
    obj,
    operation,
    path,
    query,
    ref,
    response,
    shared,
)
from pylon.openapi.search import search_paths

_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_READS: Final[tuple[ErrorClass, ...]] = (
    errors.PolicyDenied, errors.LimitExceeded, *STORE_ERRORS,
)
_SEQ: Final = ("X-Pylon-Change-Seq", "Idempotency-Replayed")
_KEY: Final = shared("IdempotencyKey")
_IF_MATCH: Final = shared("IfMatch")
_CONDITIONAL: Final = (errors.PreconditionFailed, errors.IdempotencyKeyReused)


def entity_paths(entity: Entity, config: Config) -> Paths:
    """Return the paths of one entity."""
    name = entity.name
    base = f"/api/entities/{name}"
    return {
        base: {**_list(entity, config), **_insert(entity)},
        f"{base}/cursor": _page(entity),
        f"{base}/{{row_id}}": {**_get(entity), **_patch(entity), **_delete(entity)},
        f"/api/query/{name}": _query(entity),
        f"/api/aggregate/{name}": _aggregate(entity),
        **search_paths(entity),
        **{
            f"/api/lookup/{name}/{field.name}/{{value}}": _look_up(entity, field)
            for field in columns_of(entity)
        },
    }


def _list(entity: Entity, config: Config) -> Paths:
    body = obj({
        "data": listed(ref(entity.name)),
        "count": {"type": "integer", "description": "Rows in this response"},
        "limit": nullable({"type": "integer"}),
        "offset": {"type": "integer"},
        "total": {"type": "integer", "description": "Rows without limit and offset, with count"},
    }, ("data", "count", "limit", "offset"))
    numbered = obj({
        "data": listed(ref(entity.name)),
        "page": {"type": "integer", "minimum": 1},
        "per_page": {"type": "integer", "minimum": 1},
        "total": {"type": "integer", "description": "Rows of all pages"},
    }, ("data", "page", "per_page", "total"))
    return operation(
        "get", f"list{entity.name}", entity.name, "Rows that the caller may read, in id order",
        {200: response("Rows; with page or per_page a numbered page", {
            "anyOf": [body, numbered],
        })},
        raises=(*_READS, errors.InvalidQuery, errors.LimitExceeded),
        parameters=[
            query("limit", {**_WHOLE, "maximum": config.list_limit}, "How many rows at most"),
            query("offset", _WHOLE, "How many rows to skip"),
            query(
                "page", {**_WHOLE, "minimum": 1},
                "The number of a page, from 1; not with limit, offset and count",
            ),
            query(
                "per_page", {**_WHOLE, "minimum": 1, "maximum": config.list_limit},
                f"Rows of a numbered page; {limits.NUMBERED_PAGE_ROWS} if not given",
            ),
            query(
                "count", {"enum": ["true", "false", "1", "0"]}, "true: the response has the total"
            ),
        ],
    )


def _insert(entity: Entity) -> Paths:
    return operation(
        "post", f"insert{entity.name}", entity.name, "Insert a row",
        {201: response("The row's id", obj({"id": {"type": "string"}}), headers=(*_SEQ, "ETag"))},
        raises=(
            *ROW_ERRORS, *WRITE_ERRORS, errors.MissingField, errors.FieldFixed,
            errors.ReadonlyField, errors.PolicyDenied, errors.ReferenceNotFound,
            errors.UniqueViolation, errors.OptimisticIdConflict, errors.IdempotencyKeyReused,
            errors.RateLimited,
        ),
        parameters=[_KEY],
        body=ref(f"{entity.name}Insert"),
    )


def _page(entity: Entity) -> Paths:
    body = obj({
        "data": listed(ref(entity.name)),
        "has_more": {"type": "boolean"},
        "next_cursor": nullable({"type": "string"}),
    })
    return operation(
        "get", f"page{entity.name}", entity.name, "Rows by key, page after page",
        {200: response("A page", body)},
        raises=(*_READS, errors.InvalidQuery),
        parameters=[
            query("after", {"type": "string"}, "next_cursor of the page before"),
            query(
                "limit", {**_WHOLE, "minimum": 1},
                f"Rows of a page; {limits.CURSOR_PAGE_DEFAULT} if not given, "
                f"{limits.CURSOR_PAGE_MAX} at most",
            ),
        ],
    )


def _row_id(entity: Entity) -> Schema:
    return path("row_id", f"The id of a row of {entity.name}")


def _get(entity: Entity) -> Paths:
    return operation(
        "get", f"get{entity.name}", entity.name, "One row",
        {
            200: response("The row", ref(entity.name), headers=("ETag",)),
            304: response("The caller has this version already", headers=("ETag",)),
        },
        raises=(*_READS, errors.NotFound),
        parameters=[_row_id(entity), shared("IfNoneMatch")],
    )


def _patch(entity: Entity) -> Paths:
    return operation(
        "patch", f"update{entity.name}", entity.name, "Change fields of a row",
        {200: response("Done", obj({"updated": {"const": True}}), headers=(*_SEQ, "ETag"))},
        raises=(
            *ROW_ERRORS, *WRITE_ERRORS, errors.PolicyDenied, errors.NotFound,
            errors.FieldFixed, errors.ReadonlyField, errors.ReferenceNotFound,
            errors.UniqueViolation, errors.RateLimited, *_CONDITIONAL,
        ),
        parameters=[_row_id(entity), _IF_MATCH, _KEY], body=ref(f"{entity.name}Patch"),
    )


def _delete(entity: Entity) -> Paths:
    return operation(
        "delete", f"delete{entity.name}", entity.name, "Delete a row",
        {200: response("Done", obj({"deleted": {"const": True}}), headers=_SEQ)},
        raises=(
            *WRITE_ERRORS, errors.PolicyDenied, errors.NotFound, errors.ReferenceInUse,
            errors.LimitExceeded, errors.ReadonlyField, *_CONDITIONAL,  # of an organisation
        ),
        parameters=[_row_id(entity), _IF_MATCH, _KEY],
    )


def _query(entity: Entity) -> Paths:
    return operation(
        "post", f"query{entity.name}", entity.name, "Rows that match a filter",
        {200: response("A bare array of rows", listed(ref(entity.name)))},
        raises=(*_READS, errors.InvalidQuery, errors.InvalidColumn, errors.InvalidValue),
        body=ref(f"{entity.name}Filter"),
    )


def _aggregate(entity: Entity) -> Paths:
    return operation(
        "post", f"aggregate{entity.name}", entity.name, "Counts, sums and the like, by groups",
        {200: response("A row for each group", obj({"rows": listed({"type": "object"})}))},
        raises=(*_READS, errors.InvalidQuery, errors.InvalidColumn, errors.InvalidValue),
        body=ref(f"{entity.name}Aggregate"),
    )


def _look_up(entity: Entity, field: Field) -> Paths:
    text = "true or false" if field.type is FieldType.BOOL else "the value as text"
    return operation(
        "get", f"lookup{entity.name}By_{field.name}", entity.name,
        f"The first row whose {field.name} has a value",
        {200: response("The row", ref(entity.name))},
        raises=(*_READS, errors.NotFound),
        parameters=[path("value", f"{field.name}: {text}; it may hold slashes")],
    )


def graph_paths(manifest: Manifest) -> Paths:
    """Return the path of the query over several entities."""
    names = [entity.name for entity in manifest.entities]
    return {
        "/api/query": operation(
            "post", "graph", "query", "Rows of several entities, with related rows inside them",
            {200: response("Rows by entity", obj(
                {name: listed({"type": "object"}) for name in names}, (),
            ))},
            raises=(
                *_READS, errors.EntityNotFound, errors.RelationNotFound, errors.InvalidQuery,
                errors.InvalidColumn, errors.InvalidValue,
            ),
            body=obj({name: ref(f"{name}Graph") for name in names}, ()),
        )
    }
