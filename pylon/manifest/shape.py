"""Shape: checks the keys of a manifest, and the types of their values (spec/http.md §2.1).

A wrong shape is a MANIFEST_PARSE_ERROR at the value, or at the object that lacks a key. An
optional key may be null. Then `checks` and `build` rely on the shape of every part without a
report.

An unknown key is a warning, since it may be a misspelt one: a policy with `allowDelet` lets all
callers delete. In a strict reading (dev mode) an unknown key is an error; outside of entities and
policies only if it resembles a known key. Annotations (`_ANNOTATIONS`) are ignored. Keys of the
published tools that have no effect here are a warning with the reason.
Called by `pylon.manifest_loader`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pylon.manifest.document import Node
from pylon.manifest.findings import Findings

_CRDT_KINDS = ("lww", "text", "counter", "list", "movable-list", "tree")
_ROUTE_MODES = ("static", "server", "live")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value; `what` describes it in messages."""

    type: type
    what: str
    words: tuple[str, ...] = ()  # the allowed values; empty: all
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose members have the shape `item`."""

    item: Shape


@dataclass(frozen=True, slots=True)
class Object:
    """An object: its required and optional keys."""

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape]
    inert: Mapping[str, str] = field(default_factory=dict)  # key without effect: reason, or ""
    decides_on_rows: bool = False  # whether a misspelt key could show or change rows


Shape = Scalar | ListOf | Object

_STRING = Scalar(str, "a string")
_BOOL = Scalar(bool, "true or false")
_LIFE_S = Scalar(
    int, "a whole number of seconds from 0 to 3153600000 (100 years)", minimum=0,
    maximum=3_153_600_000,
)
_STRINGS = ListOf(_STRING)

_FIELD = Object(
    {"name": _STRING, "type": _STRING, "optional": _BOOL, "unique": _BOOL},
    {"crdt": Scalar(str, "one of " + ", ".join(_CRDT_KINDS), _CRDT_KINDS)},
    decides_on_rows=True,
)
_INDEX = Object(
    {"name": _STRING, "fields": _STRINGS, "unique": _BOOL}, {}, decides_on_rows=True
)
_RELATION = Object(
    {"name": _STRING, "target": _STRING, "field": _STRING}, {"many": _BOOL}, decides_on_rows=True
)
_SEARCH = Object(
    {}, {"text": _STRINGS, "facets": _STRINGS, "sortable": _STRINGS, "language": _STRING},
    decides_on_rows=True,
)
_ENTITY = Object(
    {"name": _STRING, "fields": ListOf(_FIELD), "indexes": ListOf(_INDEX)},
    {"relations": ListOf(_RELATION), "search": _SEARCH, "crdt": _BOOL},
    {"sync": "rows are synced to all who may read them; use a policy to restrict them"},
    decides_on_rows=True,
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
    decides_on_rows=True,
)
_AUTH = Object(
    {},
    {
        "user": Object({}, {"entity": _STRING, "expose": _STRINGS, "hide": _STRINGS}),
        "session": Object({}, {"expires_in": _LIFE_S}, {"cookie_cache": ""}),
        "trusted_origins": _STRINGS,
    },
    {"org": "there are no organisations", "org_roles": "there are no organisations"},
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
    {
        "rateLimits": "docs/limits.md has the rates that this server keeps",
        "plugins": "there are no plugins", "crons": "there are no background jobs",
    },
)
_ANNOTATIONS: Final = frozenset({"description", "comment", "title"})
_ANNOTATION_MARKS: Final = ("x-", "X-", "$", "_", "//")
_INTEGERS: Final = range(-(2**63), 2**63)  # those of the store and of the JSON encoder


def check_shape(node: Node, findings: Findings, *, strict: bool = False) -> None:
    """Report every wrong shape in the document.

    Args:
        strict: unknown keys are errors.
    """
    _check(node, MANIFEST, "the manifest", findings, strict)
    _check_integers(node, findings)


def _check(node: Node, shape: Shape, path: str, findings: Findings, strict: bool) -> None:
    if isinstance(shape, Object):
        if not isinstance(node.value, dict):
            findings.shape(node, f"{path} must be an object")
            return
        for key in shape.required:
            if key not in node.value:
                findings.shape(node, f'{path} lacks the key "{key}"')
        for key, member in node.value.items():
            inner = shape.required.get(key) or shape.optional.get(key)
            if inner is None:
                _report_unread_key(key, member, shape, path, findings, strict)
            elif not (key in shape.optional and member.value is None):
                _check(member, inner, f"{key} of {path}", findings, strict)
    elif isinstance(shape, ListOf):
        if not isinstance(node.value, list):
            findings.shape(node, f"{path} must be an array")
            return
        for index, item in enumerate(node.value):
            _check(item, shape.item, f"item {index} of {path}", findings, strict)
    elif not _fits(node.value, shape):
        findings.shape(node, f"{path} must be {shape.what}")


def _report_unread_key(
    key: str, member: Node, shape: Object, path: str, findings: Findings, strict: bool
) -> None:
    if key in _ANNOTATIONS or key.startswith(_ANNOTATION_MARKS):
        return
    if key in shape.inert:
        if shape.inert[key] and member.value not in (None, True):
            findings.warning(
                "MANIFEST_KEY_WITHOUT_EFFECT", f'the key "{key}" of {path} has no effect here',
                member.at, shape.inert[key],
            )
        return
    known = [*shape.required, *shape.optional]
    lower = {name.lower().replace("_", ""): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("_", ""), lower, n=1)
    hint = f"did you mean {lower[near[0]]}?" if near else f"known: {', '.join(sorted(known))}"
    report = findings.error if strict and (shape.decides_on_rows or near) else findings.warning
    report("MANIFEST_KEY_UNKNOWN", f'{path} has the unknown key "{key}"', member.at, hint)


def _check_integers(node: Node, findings: Findings) -> None:
    """Report integers beyond 64 bits in any key, because the API returns the whole document."""
    for inner in node.value.values() if isinstance(node.value, dict) else (
        node.value if isinstance(node.value, list) else ()
    ):
        _check_integers(inner, findings)
    if type(node.value) is int and node.value not in _INTEGERS:
        findings.shape(node, "the whole number does not fit into 64 bits")


def _fits(value: object, shape: Scalar) -> bool:
    # bool is a subclass of int, but true is no number in JSON.
    if not isinstance(value, shape.type) or (shape.type is int and isinstance(value, bool)):
        return False
    if shape.words and value not in shape.words:
        return False
    if not isinstance(value, int):
        return True
    return (shape.minimum is None or value >= shape.minimum) and (
        shape.maximum is None or value <= shape.maximum
    )
