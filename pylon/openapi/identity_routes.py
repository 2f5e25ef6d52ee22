"""Operations of the routes that the identity process answers, from their table.

Called by `document`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from pylon import errors
from pylon.api.identity.routes import ROUTES
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    ADMIN_ONLY,
    WRITE_ERRORS,
    Paths,
    Schema,
    operation,
    path,
    query,
    response,
)

_TEXT: Final[Schema] = {"type": "string"}
_CALLER_ERRORS: Final[dict[str, tuple[type[errors.PylonError], ...]]] = {
    "anyone": (),
    "user": (errors.AuthRequired,),
    "session": (errors.AuthRequired, errors.ApiKeyAuthForbidden),
    "fresh": (errors.AuthRequired, errors.ApiKeyAuthForbidden),
    "admin": (errors.Forbidden,),
}


def forwarded_paths() -> Paths:
    """Return the paths of the routes that the identity process answers."""
    paths: Paths = {}
    for route in ROUTES:
        raises: set[type[errors.PylonError]] = {*WRITE_ERRORS, errors.Unavailable, *route.raises}
        raises.update(_CALLER_ERRORS[route.who])
        if route.body is not None:
            raises.update(route.body.errors)
        if route.rate is not None:
            raises.add(errors.RateLimited)
        names = re.findall(r"{(\w+)}", route.path)
        described = operation(
            route.method.lower(), _operation_id(route.action), "auth", route.summary,
            {status: _answer(kind) for status, kind in route.answers.items()},
            raises=raises,
            parameters=[
                *(path(name, name.replace("_", " ")) for name in names),
                *(query(name, _TEXT, name.replace("_", " ")) for name in route.params),
            ],
            body=None if route.body is None else body_schema(
                route.body.struct, required=route.required
            ),
            security=ADMIN_ONLY if route.who == "admin" else None,
        )
        paths[route.path] = {**paths.get(route.path, {}), **described}
    return paths


def _operation_id(action: str) -> str:
    """Return the name of an action in camel case."""
    first, *others = action.split("_")
    return first + "".join(word.capitalize() for word in others)


def _answer(kind: Any) -> Schema:
    """Return the response with a body of a type; None: it has no JSON."""
    if kind is None:
        return response("A page, or a redirect")
    schema, components = msgspec.json.schema_components((kind,), ref_template="{name}")
    return response("Done", _inlined(schema[0], components))


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """Return a schema without references: each answer stands in its operation."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            inner = {k: v for k, v in components[schema["$ref"]].items() if k != "title"}
            return _inlined(inner, components)
        return {key: _inlined(value, components) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(value, components) for value in schema]
    return schema
