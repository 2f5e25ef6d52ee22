"""What every operation of the document is made of: parameters, bodies, answers, errors.

Invariants: an error answer lists the codes that the operation can give with that status, taken
from the error classes themselves; every answer says that it carries X-Request-Id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pylon import errors

Schema = dict[str, Any]
Paths = dict[str, dict[str, Any]]
ErrorClass = type[errors.PylonError]

JSON: Final = "application/json"
# What a body that is read can be refused with, whatever it should hold.
BODY_ERRORS: Final[tuple[ErrorClass, ...]] = (
    errors.InvalidJson, errors.LimitExceeded, errors.PayloadTooLarge, errors.RequestTimeout,
)
# What reading the store, be it only for the session, can fail with.
STORE_ERRORS: Final[tuple[ErrorClass, ...]] = (errors.QueryTimeout, errors.StoreUnavailable)
WRITE_ERRORS: Final[tuple[ErrorClass, ...]] = (
    *STORE_ERRORS, errors.WriteQueueFull, errors.WriterUnavailable,
)
# A body that JSON text can hold but no row: see pylon.values.
ROW_ERRORS: Final[tuple[ErrorClass, ...]] = (
    errors.InvalidData, errors.InvalidColumn, errors.InvalidValue, errors.NullNotAllowed,
    errors.InvalidId,
)
_COMMON: Final[tuple[ErrorClass, ...]] = (errors.InternalError, errors.InvalidData)
_UNSAFE: Final = frozenset({"post", "put", "patch", "delete"})

ADMIN_ONLY: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}]
ANYBODY: Final[list[dict[str, list[str]]]] = [{}, {"BearerAuth": []}, {"CookieAuth": []}]
NOBODY: Final[list[dict[str, list[str]]]] = []


def ref(name: str) -> Schema:
    """A reference to a schema of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(
    properties: Mapping[str, Any], required: Iterable[str] | None = None, *, more: bool = False
) -> Schema:
    """An object with these properties; all of them required unless said otherwise."""
    names = list(properties) if required is None else list(required)
    out: Schema = {
        "type": "object", "properties": dict(properties), "additionalProperties": more,
    }
    if names:
        out["required"] = names
    return out


def listed(items: Schema, **more: Any) -> Schema:
    """An array of `items`."""
    return {"type": "array", "items": items, **more}


def nullable(schema: Schema) -> Schema:
    """`schema`, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def query(name: str, schema: Schema, description: str) -> Schema:
    """A query parameter, never required."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


def path(name: str, description: str, schema: Schema | None = None) -> Schema:
    """A path parameter: one percent-encoded segment."""
    return {
        "name": name, "in": "path", "required": True, "description": description,
        "schema": schema or {"type": "string", "minLength": 1},
    }


def header(name: str, schema: Schema, description: str) -> Schema:
    """A request header, never required."""
    return {"name": name, "in": "header", "schema": schema, "description": description}


def shared(name: str) -> Schema:
    """A reference to a parameter of the components."""
    return {"$ref": f"#/components/parameters/{name}"}


def answer(
    description: str, schema: Schema | None = None, *,
    headers: Iterable[str] = (), media: str = JSON,
) -> Schema:
    """A successful answer. `headers` are names of header components besides X-Request-Id."""
    out: Schema = {
        "description": description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *headers)
        },
    }
    if schema is not None:
        out["content"] = {media: {"schema": schema}}
    return out


def error_answers(classes: Iterable[ErrorClass]) -> dict[str, Any]:
    """Error answers by status, each with the codes that it can have."""
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
        out[str(status)] = answer(", ".join(named), schema, headers=headers)
    return out


def operation(
    method: str, operation_id: str, tag: str, summary: str, answers: Mapping[int, Schema], *,
    fails: Iterable[ErrorClass] = (), parameters: Iterable[Schema] = (),
    body: Schema | None = None, body_media: str = JSON,
    security: list[dict[str, list[str]]] | None = None, has_head: bool = True,
) -> dict[str, Any]:
    """One operation, and for GET its HEAD where `has_head`.

    Args:
        method: in lower case.
        answers: successful answers by status; an error status here replaces the error answer.
        fails: what it can be refused with, besides what every operation can.
        body: the schema of the request body, if there is one.
        security: default: anybody; the policies decide.

    Returns:
        The operations by method.
    """
    classes = {*_COMMON, *fails}
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
            **error_answers(classes), **{str(status): text for status, text in answers.items()},
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
    """HEAD: the headers of GET and no body."""
    responses = {
        status: {key: value for key, value in response.items() if key != "content"}
        for status, response in get["responses"].items()
    }
    return {
        **get,
        "operationId": f"{get['operationId']}Head",
        "summary": f"{get['summary']} (headers only)",
        "responses": responses,
    }
