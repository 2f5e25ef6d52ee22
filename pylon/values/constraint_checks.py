"""Constraint checks: report every fault of `values`, `wire` and constraints of a manifest's fields.

They need the types of values, which the manifest's own checks do not know. They also report JSON
fields in places that compare whole values: unique fields, indexes and search. Called by
`pylon.manifest_loader` for the fields of entities and the inputs of queries and actions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pylon import limits
from pylon.manifest.build import field_type
from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, items_of, text_of, texts_of
from pylon.manifest.model import Field, FieldType
from pylon.values.constraints import compile_pattern, key_of_bound
from pylon.values.types import expected, fits

_CODE: Final = "FIELD_CONSTRAINT_INVALID"
_TEXTS: Final = (FieldType.STRING, FieldType.RICHTEXT, FieldType.ID)
_ORDERED: Final = (
    FieldType.INT, FieldType.FLOAT, FieldType.DECIMAL, FieldType.DATE, FieldType.DATETIME,
)
_FITTING: Final[dict[str, tuple[FieldType, ...]]] = {
    "values": (FieldType.ENUM,), "wire": (FieldType.JSON,),
    "minimum": _ORDERED, "maximum": _ORDERED,
    "minLength": _TEXTS, "maxLength": _TEXTS, "pattern": _TEXTS, "format": _TEXTS,
    "accept": (FieldType.STRING,), "maxBytes": (FieldType.STRING,),
}
_MEDIA_TYPE: Final = re.compile(
    r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/(?:\*|[a-z0-9][a-z0-9!#$&^_.+-]{0,126})"  # RFC 6838 §4.2
)


def check_constraints(root: Node, findings: Findings) -> None:
    """Report the faults of all entities, queries and actions."""
    for entity in items_of(root, "entities"):
        json_fields = set()
        for field in items_of(entity, "fields"):
            if _check_field(field, findings) is FieldType.JSON:
                name = text_of(field, "name")
                json_fields.add(None if name is None else name.value)
        _check_places(entity, json_fields, findings)
    for key in ("queries", "actions"):
        for operation in items_of(root, key):
            for field in items_of(operation, "input"):
                _check_field(field, findings)


def _check_field(node: Node, findings: Findings) -> FieldType | None:
    """Check one field. Return its type, if it is known."""
    type_ = text_of(node, "type")
    found = None if type_ is None else field_type(type_.value)
    if type_ is None or found is None or findings.touch(node):
        return None
    kind = found[0]
    given = {
        key: node.value[key] for key in _FITTING
        if key in node.value and node.value[key].value is not None
    }
    for key, value in given.items():
        if kind not in _FITTING[key]:
            known = ", ".join(t.value for t in _FITTING[key])
            findings.error(
                "FIELD_VALUES_INVALID" if key == "values" else _CODE,
                f"{key} is for fields of other types than {kind.value}", value.at,
                f"for: {known}",
            )
    if kind is FieldType.ENUM:
        _check_values(given.get("values"), type_, findings)
    if kind is FieldType.JSON:
        unique = node.value.get("unique")
        if unique is not None and unique.value not in (None, False):
            findings.error(
                "FIELD_TYPE_UNUSABLE", "a json field cannot be unique", unique.at,
                "put the value that is unique into a field of its own",
            )
    _check_file(kind, given, findings)
    if not findings.touch(node):
        _check_bounds(kind, given, findings)
    return kind


def _check_file(kind: FieldType, given: dict[str, Node], findings: Findings) -> None:
    """Check that `accept` and `maxBytes` are of a field of files, which is a string."""
    format_ = given.get("format")
    is_file = format_ is not None and format_.value == "file"
    if format_ is not None and is_file and kind is not FieldType.STRING:
        findings.error(
            _CODE, f"a {kind.value} field holds no files", format_.at, "the type is string",
        )
    for key in ("accept", "maxBytes"):
        if key in given and not is_file:
            findings.error(
                _CODE, f"{key} is for fields of files", given[key].at, 'add "format": "file"',
            )
    for item in given["accept"].value if "accept" in given else ():
        if _MEDIA_TYPE.fullmatch(item.value) is None:
            findings.error(
                _CODE, f'"{item.value}" is no media type', item.at,
                "for example image/png, or image/* for all images",
            )


def _check_values(values: Node | None, type_: Node, findings: Findings) -> None:
    code = "FIELD_VALUES_INVALID"
    if values is None or not values.value:
        findings.error(
            code, "an enum has no values", type_.at if values is None else values.at,
            'for example "values": ["open", "done"]',
        )
        return
    if len(values.value) > limits.ENUM_VALUES:
        findings.error(code, f"an enum has {limits.ENUM_VALUES} values at most", values.at)
    seen: set[str] = set()
    for item in values.value:
        text = item.value
        if text in seen:
            findings.error(code, f'the value "{text}" is listed twice', item.at)
        elif not text or "\0" in text or len(text) > limits.ENUM_VALUE_CHARS:
            findings.error(
                code, "a value of an enum is empty, too long or has a NUL character", item.at,
                f"1 to {limits.ENUM_VALUE_CHARS} characters",
            )
        seen.add(text)


def _check_bounds(kind: FieldType, given: dict[str, Node], findings: Findings) -> None:
    plain = Field("x", kind, optional=False, unique=False)
    for key in ("minimum", "maximum"):
        if key in given and not fits(plain, given[key].plain()):
            findings.error(
                _CODE, f"{key} is no value of the type {kind.value}", given[key].at,
                f"allowed: {expected(plain)}",
            )
            return
    for low, high, convert in (
        ("minimum", "maximum", key_of_bound(kind)), ("minLength", "maxLength", _same),
    ):
        if low in given and high in given and (
            convert(given[low].plain()) > convert(given[high].plain())
        ):
            findings.error(
                _CODE, f"{low} is more than {high}, so no value fits", given[low].at,
                f"exchange them, or remove {low}",
            )
    pattern = given.get("pattern")
    if pattern is None:
        return
    if len(pattern.value) > limits.PATTERN_CHARS:
        findings.error(
            _CODE, f"a pattern has {limits.PATTERN_CHARS} characters at most", pattern.at
        )
        return
    try:
        compile_pattern(pattern.value)
    except ValueError as error:
        findings.error(
            _CODE, f"the pattern is none of RE2: {error}", pattern.at,
            "RE2 has no back-references and no look-around: github.com/google/re2/wiki/Syntax",
        )


def _check_places(entity: Node, json_fields: set[Any], findings: Findings) -> None:
    """Report JSON fields in indexes and in search."""
    for node, what in _named_fields(entity):
        if node.value.lstrip("-") in json_fields:
            findings.error(
                "FIELD_TYPE_UNUSABLE", f"a json field has no place in {what}", node.at,
                "put the value that is looked for into a field of its own",
            )


def _named_fields(entity: Node) -> Iterator[tuple[Node, str]]:
    for index in items_of(entity, "indexes"):
        for node in texts_of(index, "fields"):
            yield node, "an index"
    search = entity.value.get("search") if isinstance(entity.value, dict) else None
    if search is None:
        return
    for key in ("text", "facets", "sortable"):
        for node in texts_of(search, key):
            yield node, f"{key} of search"


def _same(value: Any) -> Any:
    return value
