"""The parts of an operation: parameters, bodies, responses, errors.

Invariants: an error response lists the codes that the operation can raise with that status, as
the error classes declare them; every response has the header X-Request-Id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pylon import errors

Schema = dict[str, Any]
Paths = dict[str, dict[str, Any]]
ErrorClass = type[errors.PylonError]

JSON: Final = "application/json"
# Errors of every operation that reads a body, whatever the body holds.
BODY_ERRORS: Final[tuple[ErrorClass, ...]] = (
    errors.InvalidJson, errors.LimitExceeded, errors.PayloadTooLarge, errors.RequestTimeout,
)
# Errors of every operation that reads the store, if only for the session.
STORE_ERRORS: Final[tuple[ErrorClass, ...]] = (errors.QueryTimeout, errors.StoreUnavailable)
WRITE_ERRORS: Final[tuple[ErrorClass, ...]] = (
    *STORE_ERRORS, errors.DiskFull, errors.WriteQueueFull, errors.WriterUnavailable,
)
# Errors of a body that is JSON but no row: see pylon.values.
ROW_ERRORS: Final[tuple[ErrorClass, ...]] = (
    errors.InvalidData, errors.InvalidColumn, errors.InvalidValue, errors.NullNotAllowed,
    errors.InvalidId,
)
_COMMON: Final[tuple[ErrorClass, ...]] = (
    errors.InternalError, errors.InvalidApiKey, errors.InvalidData, errors.InvalidJwt,
    errors.RequestQuarantined, errors.UnknownParameter,
)
_UNSAFE: Final = frozenset({"post", "put", "patch", "delete"})

ADMIN_ONLY: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}]
ANYBODY: Final[list[dict[str, list[str]]]] = [{}, {"BearerAuth": []}, {"CookieAuth": []}]
NOBODY: Final[list[dict[str, list[str]]]] = []


def ref(name: str) -> Schema:
    """Return a reference to a schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(
    properties: Mapping[str, Any], required: Iterable[str] | None = None, *,
    is_open: bool = False,
) -> Schema:
    """Return the schema of an object.

    Args:
        required: the names of required properties; None: all.
        is_open: allow further properties.
    """
    names = list(properties) if required is None else list(required)
    out: Schema = {
        "type": "object", "properties": dict(properties), "additionalProperties": is_open,
    }
    if names:
        out["required"] = names
    return out


def listed(items: Schema, **keywords: Any) -> Schema:
    """Return the schema of an array of `items`, with further keywords of JSON Schema."""
    return {"type": "array", "items": items, **keywords}


def nullable(schema: Schema) -> Schema:
    """Return a schema that also takes null."""
    return {"anyOf": [schema, {"type": "null"}]}


def query(name: str, schema: Schema, description: str) -> Schema:
    """Return an optional query parameter."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


def path(name: str, description: str, schema: Schema | None = None) -> Schema:
    """Return a path parameter: one percent-encoded segment."""
    return {
        "name": name, "in": "path", "required": True, "description": description,
        "schema": schema or {"type": "string", "minLength": 1},
    }


def header(name: str, schema: Schema, description: str) -> Schema:
    """Return an optional request header."""
    return {"name": name, "in": "header", "schema": schema, "description": description}


def shared(name: str) -> Schema:
    """Return a reference to a parameter of the components."""
    return {"$ref": f"#/components/parameters/{name}"}


def response(
    description: str, schema: Schema | None = None, *,
    headers: Iterable[str] = (), media: str = JSON,
) -> Schema:
    """Return a successful response.

    Args:
        headers: names of header components, besides X-Request-Id.
    """
    out: Schema = {
        "description": description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *headers)
        },
    }
    if schema is not None:
        out["content"] = {media: {"schema": schema}}
    return out


def error_responses(classes: Iterable[ErrorClass]) -> dict[str, Any]:
    """Return the error responses by status, each with its codes."""
    by_status: dict[int, set[str]] = {}
    retryable: set[int] = set()
    for cls in classes:
        by_status.setdefault(cls.status, set()).add(cls.code)
        if cls.retryable:
            retryable.add(cls.status)
    out: dict[str, Any] = {}
    for status, codes in sorted(by_status.items()):
        named = sorted(codes)
        schema = {
            "allOf": [
                ref("Error"),
                {"properties": {"error": {"properties": {"code": {"enum": named}}}}},
            ]
        }
        headers = ("Retry-After",) if status in retryable else ()
        out[str(status)] = response(", ".join(named), schema, headers=headers)
    return out


def operation(
    method: str, operation_id: str, tag: str, summary: str, responses: Mapping[int, Schema], *,
    raises: Iterable[ErrorClass] = (), parameters: Iterable[Schema] = (),
    body: Schema | None = None, body_media: str = JSON,
    security: list[dict[str, list[str]]] | None = None, has_head: bool = True,
) -> dict[str, Any]:
    """Return one operation by its method; for GET also HEAD, if `has_head`.

    Args:
        method: in lower case.
        responses: the successful responses by status; an error status replaces the response of
            that error.
        raises: the errors of this operation, besides those of every operation.
        body: the schema of the request body; None: the operation has no body.
        security: None: anybody may call it, and the policies decide.
    """
    classes = {*_COMMON, *raises}
    if method in _UNSAFE:
        classes.add(errors.CsrfRejected)
    if body is not None:
        classes.update(BODY_ERRORS)
    out: dict[str, Any] = {
        "operationId": operation_id,
        "tags": [tag],
        "summary": summary,
        "security": ANYBODY if security is None else security,
        "responses": {
            **error_responses(classes),
            **{str(status): described for status, described in responses.items()},
        },
    }
    given = list(parameters)
    if given:
        out["parameters"] = given
    if body is not None:
        out["requestBody"] = {"required": True, "content": {body_media: {"schema": body}}}
    operations = {method: out}
    if method == "get" and has_head:
        operations["head"] = _head_of(out)
    return operations


def _head_of(get: dict[str, Any]) -> dict[str, Any]:
    """Return the HEAD of a GET: its headers, and no body."""
    responses = {
        status: {key: value for key, value in described.items() if key != "content"}
        for status, described in get["responses"].items()
    }
    return {
        **get,
        "operationId": f"{get['operationId']}Head",
        "summary": f"{get['summary']} (headers only)",
        "responses": responses,
    }
