"""The JSON shape of a manifest: which keys there are, which are required, what they hold
(spec/http.md §2.1).

A wrong shape is a MANIFEST_PARSE_ERROR at the value, or at the object that lacks a key. Unknown
keys are ignored; an optional key may be null. After this, `checks` and `build` may rely on the
shape of every part that was not reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pylon.manifest.document import Node
from pylon.manifest.findings import Findings

_CRDT_KINDS = ("lww", "text", "counter", "list", "movable-list", "tree")
_ROUTE_MODES = ("static", "server", "live")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value; `what` is for messages."""

    type: type
    what: str
    words: tuple[str, ...] = ()  # the only ones allowed, if any
    minimum: int | None = None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose members have the shape `item`."""

    item: Shape


@dataclass(frozen=True, slots=True)
class Object:
    """Keys that must be there, and keys that may."""

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape]


Shape = Scalar | ListOf | Object

_STRING = Scalar(str, "a string")
_BOOL = Scalar(bool, "true or false")
_COUNT = Scalar(int, "a whole number, 0 or more", minimum=0)
_STRINGS = ListOf(_STRING)

_FIELD = Object(
    {"name": _STRING, "type": _STRING, "optional": _BOOL, "unique": _BOOL},
    {"crdt": Scalar(str, "one of " + ", ".join(_CRDT_KINDS), _CRDT_KINDS)},
)
_INDEX = Object({"name": _STRING, "fields": _STRINGS, "unique": _BOOL}, {})
_RELATION = Object({"name": _STRING, "target": _STRING, "field": _STRING}, {"many": _BOOL})
_SEARCH = Object(
    {}, {"text": _STRINGS, "facets": _STRINGS, "sortable": _STRINGS, "language": _STRING}
)
_ENTITY = Object(
    {"name": _STRING, "fields": ListOf(_FIELD), "indexes": ListOf(_INDEX)},
    {"relations": ListOf(_RELATION), "search": _SEARCH, "crdt": _BOOL},
)
_OPERATION = Object({"name": _STRING}, {"input": ListOf(_FIELD)})
_ROUTE = Object(
    {
        "path": _STRING,
        "mode": Scalar(str, "one of " + ", ".join(_ROUTE_MODES), _ROUTE_MODES),
    },
    {"query": _STRING, "auth": _STRING},
)
_POLICY = Object(
    {"name": _STRING},
    dict.fromkeys(
        (
            "entity", "action", "allow", "allowRead", "allowInsert", "allowUpdate",
            "allowDelete", "allowWrite",
        ),
        _STRING,
    ),
)
_AUTH = Object(
    {},
    {
        "user": Object({}, {"entity": _STRING, "expose": _STRINGS, "hide": _STRINGS}),
        "session": Object({}, {"expires_in": _COUNT}),
        "trusted_origins": _STRINGS,
    },
)
MANIFEST = Object(
    {
        "manifest_version": Scalar(int, "a whole number"),
        "name": _STRING,
        "version": _STRING,
        "entities": ListOf(_ENTITY),
        "routes": ListOf(_ROUTE),
    },
    {
        "queries": ListOf(_OPERATION),
        "actions": ListOf(_OPERATION),
        "policies": ListOf(_POLICY),
        "auth": _AUTH,
    },
)


def check_shape(node: Node, findings: Findings) -> None:
    """Report every wrong shape in the document."""
    _check(node, MANIFEST, "the manifest", findings)


def _check(node: Node, shape: Shape, path: str, findings: Findings) -> None:
    if isinstance(shape, Object):
        if not isinstance(node.value, dict):
            findings.shape(node, f"{path} must be an object")
            return
        for key in shape.required:
            if key not in node.value:
                findings.shape(node, f'{path} lacks the key "{key}"')
        for key, member in node.value.items():
            inner = shape.required.get(key) or shape.optional.get(key)
            if inner is not None and not (key in shape.optional and member.value is None):
                _check(member, inner, f"{key} of {path}", findings)
    elif isinstance(shape, ListOf):
        if not isinstance(node.value, list):
            findings.shape(node, f"{path} must be an array")
            return
        for index, item in enumerate(node.value):
            _check(item, shape.item, f"item {index} of {path}", findings)
    elif not _fits(node.value, shape):
        findings.shape(node, f"{path} must be {shape.what}")


def _fits(value: object, shape: Scalar) -> bool:
    # bool is a subclass of int, but true is no number in JSON.
    if not isinstance(value, shape.type) or (shape.type is int and isinstance(value, bool)):
        return False
    if shape.words and value not in shape.words:
        return False
    return shape.minimum is None or (isinstance(value, int) and value >= shape.minimum)
