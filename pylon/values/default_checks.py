"""Default checks: report every fault of the keys `default`, `fixed` and `onUpdate` of a manifest.

They need the types of values, which the manifest's own checks do not know. Called by
`pylon.manifest_loader` for the fields of entities.
"""

from __future__ import annotations

import difflib
from typing import Any, Final

from pylon.errors import PylonError
from pylon.manifest.build import GENERATORS, build_field, field_type
from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, items_of, text_of
from pylon.manifest.model import Entity, FieldType
from pylon.values.codec import EntityCodec
from pylon.values.types import expected, fits

_TEXTS: Final = (FieldType.STRING, FieldType.ID)
_AUTH_NAMES: Final = ("userId", "tenantId")
_STAMPS: Final = ("$now", "$auth")


def check_defaults(root: Node, findings: Findings) -> None:
    """Report the faults of all entities."""
    for entity in items_of(root, "entities"):
        for field in items_of(entity, "fields"):
            if isinstance(field.value, dict):
                _check_field(entity, field, findings)


def _check_field(entity: Node, field: Node, findings: Findings) -> None:
    type_ = text_of(field, "type")
    if type_ is None or text_of(field, "name") is None or field_type(type_.value) is None:
        return  # reported already
    if findings.touch(field):
        return  # a fault of its constraints, by which a default is judged
    default, on_update = (field.value.get(key) for key in ("default", "onUpdate"))
    for key, node in (("default", default), ("onUpdate", on_update)):
        if node is not None and node.value is not None:
            _check_value(entity, field, key, node, findings)
    fixed, optional = (_is_true(field, key) for key in ("fixed", "optional"))
    given = [node for node in (default, on_update) if node is not None and node.value is not None]
    if fixed and not optional and not given:
        findings.error(
            "FIELD_FIXED_WITHOUT_DEFAULT", "the field is fixed and required, and has no default",
            field.value["fixed"].at, "clients may not send it, so no client could insert a row",
        )


def _check_value(entity: Node, node: Node, key: str, value: Node, findings: Findings) -> None:
    """Check the value of `default` or `onUpdate`."""
    code = "FIELD_DEFAULT_INVALID"
    plain = value.plain()
    found = field_type(node.value["type"].value)
    kind = found[0] if found is not None else FieldType.STRING
    generator = _generator_of(plain)
    if generator is None:
        if key == "onUpdate":
            findings.error(
                code, "onUpdate must be a value that the server makes", value.at,
                'known: {"$now": true}, {"$auth": "userId"}',
            )
        else:
            _check_constant(node, value, findings)
        return
    known = _STAMPS if key == "onUpdate" else tuple(GENERATORS)
    if generator not in known:
        near = difflib.get_close_matches(generator, known, n=1)
        findings.error(
            code, f'{key} cannot be "{generator}"', value.at,
            f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
        )
        return
    argument = plain[generator]
    if generator == "$auth":
        if argument not in _AUTH_NAMES:
            findings.error(
                code, "$auth must be userId or tenantId", value.at,
                'for example {"$auth": "userId"}',
            )
    elif argument is not True:
        findings.error(code, f"{generator} must be true", value.at, f'{{"{generator}": true}}')
    problem = _type_problem(entity, generator, kind, found[1] if found is not None else None)
    if problem is not None:
        findings.error(code, problem, value.at)


def _check_constant(node: Node, value: Node, findings: Findings) -> None:
    """Check that a constant is a value that the field accepts."""
    if findings.touch(node):
        return  # its type or a constraint is wrong
    field, plain = build_field({**node.plain(), "default": None, "onUpdate": None}), value.plain()
    if not fits(field, plain):
        findings.error(
            "FIELD_DEFAULT_INVALID",
            f'the default is no value of the type "{node.value["type"].value}"', value.at,
            f"allowed: {expected(field)}",
        )
        return
    try:
        EntityCodec(Entity("Default", (field,))).insert({field.name: plain}, "")
    except PylonError as error:
        findings.error(
            "FIELD_DEFAULT_INVALID", "the field does not accept its default", value.at,
            error.message.removeprefix("Default."),
        )


def _generator_of(value: Any) -> str | None:
    """Return the key of an object that names a generator, such as ``$now``; None for a constant."""
    if isinstance(value, dict) and len(value) == 1:
        (key,) = value
        if isinstance(key, str) and key.startswith("$"):
            return key
    return None


def _type_problem(
    entity: Node, generator: str, kind: FieldType, target: str | None
) -> str | None:
    if generator == "$now":
        is_right = kind.value in ("datetime", "date")
        return None if is_right else "$now is a time, and the field has another type"
    if generator == "$uuid":
        return None if kind is FieldType.STRING else "$uuid is text: the type must be string"
    if generator == "$auth":
        return None if kind in _TEXTS else "$auth is text: the type must be string or id(Entity)"
    name = text_of(entity, "name")
    if kind is FieldType.STRING or (kind is FieldType.ID and name and name.value == target):
        return None
    return "$id is the row's own id: the type must be string, or id(...) of this entity"


def _is_true(field: Node, key: str) -> bool:
    node = field.value.get(key)
    return node is not None and node.value is True
