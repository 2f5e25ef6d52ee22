"""Entities: the base class of the entities that an app declares, and of the rows that clients get.

A subclass gathers its fields and declarations when `document` reads it; nothing is resolved
while the module runs, so entities may name each other in any order. An instance is a row: the
Python client makes it of an answer, and its attributes cannot be set.

Invariant: each subclass that is not abstract is in `DECLARED`, in the order of declaration.
Called by apps, through `pylon`; by the Python client (`__pylon_entity__`, `__pylon_from_row__`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar, Final, Self, dataclass_transform

from pylon.dsl.annotations import Resolved, TypeRefused, resolve
from pylon.dsl.fields import NO_DEFAULT, FieldSpec, ServerValue, field
from pylon.dsl.types import Id
from pylon.nearest_names import name_hint

DECLARED: Final[list[type[Entity]]] = []


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Entity:
    """The base of an app's entities. Each annotated attribute is a field; `id` is there already.

    Args of a class statement:
        name: the name of the entity, if Python cannot spell it.
        label: the field whose value names a row to people.
        crdt: whether rows can be documents that several people edit at once.
        abstract: the class is no entity; subclasses have its fields.
        extra: further keys of the manifest.
    """

    __pylon_entity__: ClassVar[str]
    __pylon_label__: ClassVar[str | None]
    __pylon_crdt__: ClassVar[bool]
    __pylon_extra__: ClassVar[Mapping[str, Any]]
    __pylon_abstract__: ClassVar[bool] = True

    id: Id[Self] = field()

    def __init_subclass__(
        cls, *, name: str | None = None, label: str | None = None, crdt: bool = True,
        abstract: bool = False, extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.__pylon_entity__ = cls.__name__ if name is None else name
        cls.__pylon_label__ = label
        cls.__pylon_crdt__ = crdt
        cls.__pylon_extra__ = dict(extra or {})
        cls.__pylon_abstract__ = abstract
        if not abstract:
            DECLARED.append(cls)

    def __init__(self, **values: Any) -> None:
        """Make a row of the values of its fields.

        Raises:
            TypeError: a field that the entity does not have, or a required one is missing.
        """
        fields = fields_of(type(self))
        for name in values:
            if name not in fields and name != "id":
                raise TypeError(
                    f"{type(self).__name__} has no field {name!r}: {name_hint(name, fields)}"
                )
        for name, spec in fields.items():
            if name in values:
                continue
            if isinstance(spec.default, ServerValue) or spec.default is NO_DEFAULT:
                if spec.default is NO_DEFAULT and "on_update" not in spec.options:
                    raise TypeError(f"{type(self).__name__} needs the field {name!r}")
                continue  # the server makes it
            values[name] = spec.default
        self.__dict__.update(values)

    @classmethod
    def __pylon_from_row__(cls, row: Mapping[str, object]) -> Self:
        """Return the instance of a row as the server answers it. Fields that it lacks are unset."""
        made = cls.__new__(cls)
        parsers = _parsers_of(cls)
        for name, value in row.items():
            attribute, parse = parsers.get(name, (name, None))
            made.__dict__[attribute] = value if parse is None or value is None else parse(value)
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a row cannot be changed: update {name} through a client")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), self.__dict__.get("id")))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({values})"


def fields_of(cls: type[Entity]) -> dict[str, FieldSpec]:
    """Return the fields of an entity by attribute, those of its abstract bases first."""
    found: dict[str, FieldSpec] = {}
    for base in (*reversed(cls.__mro__[1:]), cls):
        if base is Entity or not issubclass(base, Entity):
            continue
        for name in inspect.get_annotations(base):
            value = base.__dict__.get(name, NO_DEFAULT)
            if not name.startswith("__"):
                is_spec = isinstance(value, FieldSpec)
                found[name] = value if is_spec else FieldSpec(value, {}, None)
    return found


def home_of(cls: type[Entity], attribute: str) -> type[Entity]:
    """Return the class of the hierarchy that declares an attribute."""
    return next(base for base in cls.__mro__ if attribute in inspect.get_annotations(base))


def resolved_type(cls: type[Entity], attribute: str) -> Resolved:
    """Return the type of a field.

    Raises:
        TypeRefused: no field has this type.
    """
    home = home_of(cls, attribute)
    annotation = inspect.get_annotations(home)[attribute]
    names = {**vars(sys.modules[home.__module__])}
    for entity in DECLARED:
        names.setdefault(entity.__name__, entity)
    return resolve(annotation, names, Entity)


def _parsers_of(cls: type[Entity]) -> dict[str, tuple[str, Any]]:
    """Return the attribute of each field of the wire, and what parses its value."""
    cached: dict[str, tuple[str, Any]] | None = cls.__dict__.get("__pylon_parsers__")
    if cached is None:
        cached = {"id": ("id", Id)}
        for attribute, spec in fields_of(cls).items():
            name = spec.options.get("name", attribute)
            cached[name] = (attribute, _parser(cls, attribute))
        cls.__pylon_parsers__ = cached  # type: ignore[attr-defined]
    return cached


def _parser(cls: type[Entity], attribute: str) -> Any:
    try:
        kind = resolved_type(cls, attribute).python
    except TypeRefused:
        return None
    if kind is datetime:
        return datetime.fromisoformat
    if kind is date:
        return date.fromisoformat
    if kind in (str, int, float, bool) or kind is None:
        return None
    return kind if kind is Decimal or isinstance(kind, type) else None
