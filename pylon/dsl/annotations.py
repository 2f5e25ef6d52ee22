"""Annotations: which type of the manifest the annotation of a field means.

    str int float bool datetime date Decimal   the types of these names
    Id[Room], File, RichText, Json             the types of `types`
    Literal["a", "b"], a StrEnum               enum
    X | None                                   an optional field

Called by `entities`.
"""

from __future__ import annotations

import builtins
import enum
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final, ForwardRef, Literal, Union, get_args, get_origin

from pylon.dsl.types import File, Id, Json, RichText
from pylon.nearest_names import name_hint

_PLAIN: Final[dict[Any, dict[str, Any]]] = {
    str: {"type": "string"}, int: {"type": "int"}, float: {"type": "float"},
    bool: {"type": "bool"}, datetime: {"type": "datetime"}, date: {"type": "date"},
    Decimal: {"type": "decimal"}, RichText: {"type": "richtext"},
    File: {"type": "string", "format": "file"}, Json: {"type": "json"},
}
_WORDS: Final = (
    "str, int, float, bool, datetime, date, Decimal, RichText, File, Json, Id[Entity], "
    "Literal[...] of texts, a StrEnum"
)
_REMARKS: Final[dict[Any, str]] = {
    dict: "write Json", list: "write Json, or an entity of its own for the items",
    tuple: "write Json", set: "write Json, or an entity of its own for the items",
    bytes: "write File", object: "write Json", Any: "write Json", time: "write datetime or str",
    Id: "write Id[Entity], with the entity whose rows it names",
}


class TypeRefused(Exception):
    """No field has this type; `hint` says what to write."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Resolved:
    """The keys of a field's type, the Python type of its values, and the entity that ids name."""

    keys: dict[str, Any] = field(default_factory=dict)
    python: Any = None
    target: type | None = None


def resolve(annotation: Any, names: Mapping[str, Any], entity: type) -> Resolved:
    """Return what an annotation means.

    Args:
        names: what a text of an annotation may name.
        entity: the base class of entities.

    Raises:
        TypeRefused: no field has this type.
    """
    found = _evaluated(annotation, names)
    is_optional = False
    if get_origin(found) in (Union, types.UnionType):
        members = [arg for arg in get_args(found) if arg is not type(None)]
        is_optional = len(members) < len(get_args(found))
        if len(members) != 1:
            raise TypeRefused(
                f"a field has one type, not {_text(found)}", "X | None makes a field optional"
            )
        found = _evaluated(members[0], names)
    made = _resolve_one(found, names, entity)
    if not is_optional:
        return made
    return Resolved({**made.keys, "optional": True}, made.python, made.target)


def _resolve_one(found: Any, names: Mapping[str, Any], entity: type) -> Resolved:
    try:
        plain = _PLAIN.get(found)
    except TypeError:  # not hashable
        plain = None
    if plain is not None:
        return Resolved(dict(plain), found)
    origin = get_origin(found)
    if origin is Id:
        target = _evaluated(get_args(found)[0], names)
        if isinstance(target, type) and issubclass(target, entity):
            name = target.__pylon_entity__  # type: ignore[attr-defined]
            return Resolved({"type": f"id({name})"}, Id, target)
        raise TypeRefused(
            f"Id[{_text(target)}] names no entity", "write Id[X] with a class X(Entity)"
        )
    if origin is Literal:
        values = list(get_args(found))
        if all(isinstance(value, str) for value in values):
            return Resolved({"type": "enum", "values": values}, str)
        raise TypeRefused(f"{_text(found)} has values that are no texts", "an enum has texts only")
    if isinstance(found, type) and issubclass(found, enum.Enum) and issubclass(found, str):
        return Resolved({"type": "enum", "values": [str(item.value) for item in found]}, found)
    if isinstance(found, type) and issubclass(found, entity):
        raise TypeRefused(
            f"a row of {found.__name__} is no value of a field", f"write Id[{found.__name__}]"
        )
    hint = _REMARKS.get(found if isinstance(found, type) else origin)
    raise TypeRefused(
        f"no field has the type {_text(found)}",
        f"known: {_WORDS}" if hint is None else f"{hint}; known: {_WORDS}",
    )


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Return the annotation of a text, as `from __future__ import annotations` leaves it."""
    text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
    if not isinstance(text, str):
        return annotation
    try:
        return eval(text, dict(names))  # nosec B307 # the app's own source
    except NameError as ex:
        known = {
            *(name for name, value in names.items() if isinstance(value, type)),
            *(name for name, value in vars(builtins).items() if isinstance(value, type)),
            *(name for name in ("Id", "File", "RichText", "Json")),
        }
        raise TypeRefused(
            f'the type "{text}" names "{ex.name}", which does not exist',
            name_hint(str(ex.name), known),
        ) from ex
    except (SyntaxError, TypeError, AttributeError) as ex:
        raise TypeRefused(f'the type "{text}" cannot be read: {ex}', f"known: {_WORDS}") from ex


def _text(annotation: Any) -> str:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("pylon.dsl.types.", "")


