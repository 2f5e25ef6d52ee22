"""Document: builds the JSON manifest of what an app has declared, and the place of each part.

It refuses only what has no form in JSON: an annotation that is no type of a field, two names for
one attribute, an app without `app(...)`. `pylon.manifest_loader` checks the rest, and the places
lead its diagnostics back to the Python source. Called by `emit`.
"""

from __future__ import annotations

import ast
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from pylon.dsl.annotations import Resolved, TypeRefused, resolve
from pylon.dsl.declarations import STATEMENTS, Declaration, Kind
from pylon.dsl.entities import DECLARED, Entity, fields_of, home_of, resolved_type
from pylon.dsl.fields import NO_DEFAULT, OPTION_KEYS, FieldSpec, ServerValue
from pylon.dsl.places import CallPlace, Place, Source, source_of

Path = tuple[str | int, ...]

# The key of the manifest that has the declarations of a kind.
_LIST_KEYS: Final[dict[Kind, str]] = {
    "route": "routes", "query": "queries", "action": "actions", "policy": "policies",
    "rate_limit": "rateLimits",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that has no form in JSON."""

    code: str
    message: str
    place: Place | None
    hint: str | None = None


class DocumentRefused(Exception):
    """The declarations have `problems`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.message for problem in self.problems))


@dataclass(slots=True)
class _Draft:
    """The document so far, with the places and the problems."""

    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def mark(self, path: Path, node: ast.expr | None, source: Source | None) -> None:
        """Note the place of a value and of what it holds."""
        if node is None or source is None:
            return
        self.places[path] = source.place(node)
        if isinstance(node, ast.List | ast.Tuple):
            for at, item in enumerate(node.elts):
                self.mark((*path, at), item, source)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    self.mark((*path, key.value), value, source)


def build_document() -> tuple[dict[str, Any], dict[Path, Place]]:
    """Return the manifest of everything that was declared, and the places of its parts.

    Raises:
        DocumentRefused: with every problem.
    """
    draft = _Draft()
    document: dict[str, Any] = {"manifest_version": 1}
    apps = [item for item in STATEMENTS if item.kind == "app"]
    if len(apps) != 1:
        message = "the app is declared twice" if apps else "no app is declared"
        place = _call(apps[1].place)[2] if apps else None
        hint = None if apps else 'write app("name") in the file that PYLON_APP names'
        draft.problems.append(Problem("MANIFEST_PARSE_ERROR", message, place, hint))
    for item in apps[:1]:
        document |= item.keys
        _mark_call(item, (), draft)
    document.setdefault("version", "0.0.0")
    policies: list[dict[str, Any]] = []
    document["entities"] = [
        _entity(cls, ("entities", at), policies, draft) for at, cls in enumerate(DECLARED)
    ]
    document["routes"] = []
    for item in STATEMENTS:
        key = _LIST_KEYS.get(item.kind)
        if key is None:
            continue
        listed = policies if key == "policies" else document.setdefault(key, [])
        path = (key, len(listed))
        _mark_call(item, path, draft)
        keys = item.keys
        if item.kind in ("query", "action") and "input" in keys:
            keys = {**keys, "input": _inputs(item, path, draft)}
        listed.append(keys)
    if policies:
        document["policies"] = policies
    if draft.problems:
        raise DocumentRefused(draft.problems)
    return _plain(document), draft.places


def _entity(
    cls: type[Entity], path: Path, policies: list[dict[str, Any]], draft: _Draft
) -> dict[str, Any]:
    source, statement = _class_of(cls)
    if source is not None and statement is not None:
        draft.places[path] = draft.places[*path, "name"] = source.class_name_place(statement)
        for keyword in statement.keywords:
            if keyword.arg is not None:
                draft.mark((*path, keyword.arg), keyword.value, source)
    made: dict[str, Any] = {"name": cls.__pylon_entity__, "fields": []}
    for attribute, spec in fields_of(cls).items():
        at = (*path, "fields", len(made["fields"]))
        made["fields"].append(_field(cls, attribute, spec, at, draft))
    made["indexes"] = []
    for attribute, item in _declared_in(cls):
        name = item.keys.get("name", attribute)
        if item.kind == "index":
            _mark_call(item, (*path, "indexes", len(made["indexes"])), draft)
            made["indexes"].append({"name": name, **item.keys})
        elif item.kind == "relation":
            relations = made.setdefault("relations", [])
            _mark_call(item, (*path, "relations", len(relations)), draft)
            relations.append({"name": name, **item.keys})
        elif item.kind == "search":
            if "search" in made:
                draft.problems.append(Problem(
                    "MANIFEST_PARSE_ERROR", f"{cls.__name__} has two searches", _call(item.place)[2]
                ))
            _mark_call(item, (*path, "search"), draft)
            made["search"] = item.keys
        elif item.kind == "policy" and "entity" not in item.keys and "action" not in item.keys:
            _mark_call(item, ("policies", len(policies)), draft)
            name = item.keys.get("name", f"{cls.__pylon_entity__}.{attribute}")
            policies.append({"name": name, "entity": cls.__pylon_entity__, **item.keys})
    if not cls.__pylon_crdt__:
        made["crdt"] = False
    if cls.__pylon_label__ is not None:
        made["label"] = cls.__pylon_label__
    return made | dict(cls.__pylon_extra__)


def _declared_in(cls: type[Entity]) -> list[tuple[str, Declaration]]:
    """Return the declarations of a class and of its abstract bases, by attribute."""
    found: dict[str, Declaration] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Declaration):
                found[name] = value
    return list(found.items())


def _field(
    cls: type[Entity], attribute: str, spec: FieldSpec, path: Path, draft: _Draft
) -> dict[str, Any]:
    home = home_of(cls, attribute)
    source, statement = _class_of(home)
    node = None
    for item in statement.body if statement is not None else ():
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == attribute:
            node = item
    if source is not None and node is not None:
        draft.places[path] = draft.places[*path, "name"] = source.place(node)
        draft.mark((*path, "type"), node.annotation, source)
        draft.mark((*path, "values"), node.annotation, source)
        if node.value is not None and spec.place is None:
            draft.mark((*path, "default"), node.value, source)
    try:
        resolved = resolved_type(cls, attribute)
    except TypeRefused as ex:
        place = draft.places.get((*path, "type"))
        draft.problems.append(Problem(
            "FIELD_TYPE_UNKNOWN", f"{cls.__name__}.{attribute}: {ex.message}", place, ex.hint
        ))
        resolved = Resolved({"type": "string"})
    return _field_keys(spec.options.get("name", attribute), resolved, spec, path, draft)


def _field_keys(
    name: str, resolved: Resolved, spec: FieldSpec, path: Path, draft: _Draft
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name, "type": resolved.keys["type"],
        "optional": bool(resolved.keys.get("optional")), "unique": False,
    }
    made |= {key: value for key, value in resolved.keys.items() if key not in made}
    options: Mapping[str, Any] = spec.options
    for option, key in OPTION_KEYS.items():
        if option in options:
            made[key] = options[option]
    source, call, _ = _call(spec.place)
    if call is not None:
        for keyword in call.keywords:
            key = OPTION_KEYS.get(keyword.arg or "", keyword.arg or "")
            draft.mark((*path, key), keyword.value, source)
    if spec.default is not NO_DEFAULT and not (spec.default is None and made["optional"]):
        made["default"] = spec.default
        if spec.default is None:
            draft.problems.append(Problem(
                "FIELD_DEFAULT_INVALID", f'the default of "{name}" is None, and it is required',
                draft.places.get((*path, "default")), "write X | None to make it optional",
            ))
    return made | dict(options.get("extra", {}))


def _inputs(item: Declaration, path: Path, draft: _Draft) -> list[dict[str, Any]]:
    made = []
    names = {entity.__name__: entity for entity in DECLARED}
    for at, (name, value) in enumerate(item.keys["input"].items()):
        annotation, spec = value if isinstance(value, tuple) else (value, None)
        spec = spec if isinstance(spec, FieldSpec) else FieldSpec(NO_DEFAULT, {}, None)
        here = (*path, "input", at)
        place = draft.places.get((*path, "input", name))
        if place is not None:
            draft.places[here] = place
        try:
            resolved = resolve(annotation, names, Entity)
        except TypeRefused as ex:
            draft.problems.append(Problem("INPUT_FIELD_TYPE_UNKNOWN", ex.message, place, ex.hint))
            continue
        made.append(_field_keys(spec.options.get("name", name), resolved, spec, here, draft))
    return made


def _mark_call(item: Declaration, path: Path, draft: _Draft) -> None:
    """Note the places of a call and of its arguments."""
    source, call, place = _call(item.place)
    if place is not None and path:
        draft.places[path] = place
    if call is None:
        return
    given: dict[str | int, ast.expr] = dict(enumerate(call.args))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    for part, argument in item.arguments.items():
        draft.mark((*path, *part), given.get(argument), source)


def _call(place: CallPlace | None) -> tuple[Source | None, ast.Call | None, Place | None]:
    """Return the source of a call, its node and its place, as far as they are known."""
    if place is None:
        return None, None, None
    source = source_of(place.file)
    call = None if source is None else source.call(place)
    if source is None or call is None:
        return None, None, Place(place.file, place.span[0], 1)
    return source, call, source.place(call)


def _class_of(cls: type[Entity]) -> tuple[Source | None, ast.ClassDef | None]:
    import sys

    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    source = None if file is None else source_of(file)
    return source, None if source is None else source.class_named(cls.__qualname__)


def _plain(value: Any) -> Any:
    """Return the JSON form of a value: of constants of a field's type, and of what holds them."""
    if isinstance(value, ServerValue):
        return dict(value.document)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return value
