"""Fields: what a field of an entity is beyond its annotation, and the values that the server makes.

`field` is a field specifier of `typing.dataclass_transform`: type checkers know from its `default`
which arguments a row needs. Called by apps, through `pylon`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack, overload

from pylon.dsl.places import CallPlace, call_place
from pylon.nearest_names import refuse_unknown

T = TypeVar("T")
Bound = int | float | str


@dataclass(frozen=True, slots=True)
class ServerValue:
    """A value that the server makes: its form in the manifest."""

    name: str
    document: Mapping[str, bool | str]

    def __repr__(self) -> str:
        return self.name


now: Final = ServerValue("now", {"$now": True})
new_uuid: Final = ServerValue("new_uuid", {"$uuid": True})
own_id: Final = ServerValue("own_id", {"$id": True})
caller: Final = ServerValue("caller", {"$auth": "userId"})
caller_tenant: Final = ServerValue("caller_tenant", {"$auth": "tenantId"})
SERVER_VALUES: Final = (now, new_uuid, own_id, caller, caller_tenant)


class FieldOptions(TypedDict, total=False):
    """The keys of a field besides its default."""

    name: str
    unique: bool | Literal["nocase"]
    fixed: bool
    on_update: ServerValue
    server_only: bool
    references: Literal["check", "none"]
    on_delete: Literal["restrict", "cascade", "setNull"]
    crdt: Literal["lww", "text", "counter", "list", "movable-list", "tree"]
    wire: Literal["json", "text"]
    minimum: Bound
    maximum: Bound
    min_chars: int
    max_chars: int
    pattern: str
    format: Literal["email", "url", "file"]
    accept: Sequence[str]
    max_bytes: int
    extra: Mapping[str, Any]


# The key in the manifest of each option that has one.
OPTION_KEYS: Final = {
    "unique": "unique", "fixed": "fixed", "on_update": "onUpdate", "server_only": "serverOnly",
    "references": "references", "on_delete": "onDelete", "crdt": "crdt", "wire": "wire",
    "minimum": "minimum", "maximum": "maximum", "min_chars": "minLength",
    "max_chars": "maxLength", "pattern": "pattern", "format": "format", "accept": "accept",
    "max_bytes": "maxBytes",
}


class _NoDefault:
    def __repr__(self) -> str:
        return "no default"


NO_DEFAULT: Final = _NoDefault()


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """The arguments of a `field`, and the place of the call."""

    default: Any
    options: FieldOptions
    place: CallPlace | None


@overload
def field(*, default: ServerValue, **options: Unpack[FieldOptions]) -> Any: ...
@overload
def field(*, default: T, **options: Unpack[FieldOptions]) -> T: ...
@overload
def field(**options: Unpack[FieldOptions]) -> Any: ...
def field(*, default: Any = NO_DEFAULT, **options: Unpack[FieldOptions]) -> Any:
    """Describe a field of an entity; docs/manifest.md has the meaning of each key.

    Args:
        default: the value of a new row that lacks the field: a constant of the field's type, or a
            value that the server makes (`now`, `caller`, ...).
        name: the name of the field, if Python cannot spell it (`from`).
        unique: no two rows have the same value; `"nocase"`: nor values that differ in case only.
        fixed: clients may not send it.
        on_update: the value that the server sets at each update.
        server_only: no client receives it.
        references, on_delete: whether an id must name a row, and what becomes of this row when
            that one is deleted.
        crdt: the merge of the field in a document.
        wire: `"text"`: clients get a JSON value as a text.
        minimum, maximum, min_chars, max_chars, pattern, format: constraints.
        accept, max_bytes: of a file: its media types, and its largest size in bytes.
        extra: further keys of the manifest.

    Raises:
        TypeError: an argument that is not known.
    """
    refuse_unknown("field", options, FieldOptions.__annotations__)
    return FieldSpec(default, options, call_place())
