"""Source: writes the Python that declares the manifest of a JSON document.

The way back from `document`: what it writes declares the same manifest. A name that Python cannot
spell, or that would hide a name of the file, gets another attribute and a `name=`. Keys that no
declaration has go into `extra=`. The order of policies changes: those of entities come first.

Precondition: `pylon.manifest_loader` accepts the document. Called by `pylonctl manifest to-python`
and `pylonctl codegen`.
"""

from __future__ import annotations

import builtins
import io
import keyword
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pylon.dsl.fields import OPTION_KEYS, SERVER_VALUES

_WIDTH: Final = 100
_TYPES: Final = {
    "string": "str", "int": "int", "float": "float", "bool": "bool", "datetime": "datetime",
    "date": "date", "decimal": "Decimal", "richtext": "RichText", "json": "Json",
}
_PYLON_NAMES: Final = (
    "Entity", "File", "Id", "Json", "RichText", "action", "app", "caller", "caller_tenant", "field",
    "index", "new_uuid", "now", "own_id", "policy", "query", "rate_limit", "relation",
    "room_policy", "route", "search",
)
_TAKEN: Final = frozenset(
    (*_PYLON_NAMES, *dir(builtins), "Decimal", "Literal", "annotations", "date", "datetime")
)
# Names that an attribute would hide from the rest of its class.
_BODY_TAKEN: Final = frozenset((
    *_TYPES.values(), "Entity", "File", "Id", "Literal", "caller", "caller_tenant", "field",
    "index", "new_uuid", "now", "own_id", "policy", "relation", "search",
))
_RULES: Final = {
    "allow": "allow", "allowRead": "read", "allowInsert": "insert", "allowUpdate": "update",
    "allowDelete": "delete", "allowWrite": "write", "allowJoin": "join",
    "allowBroadcast": "broadcast", "allowPresence": "presence",
}
_OPERATOR: Final = re.compile(r"(?= (?:\|\||&&) )")
_SERVER_VALUES: Final = {str(dict(value.document)): value.name for value in SERVER_VALUES}


def python_source(document: Mapping[str, Any], header: str = "") -> str:
    """Return the Python file that declares a manifest.

    Args:
        document: a valid manifest.
        header: lines in front of it, such as a comment.
    """
    document = {key: value for key, value in document.items() if value is not None}
    classes = dict(_class_names(document["entities"]))
    body: list[str] = [*_app_lines(document), ""]
    rest = [_without_null(policy) for policy in document.get("policies", ())]
    for entity in document["entities"]:
        own = [policy for policy in rest if policy.get("entity") == entity["name"]
               and not policy.get("action") and not policy.get("room")]
        rest = [policy for policy in rest if policy not in own]
        body += ["", *_entity_lines(_without_null(entity), own, classes), ""]
    body += _statement_lines(document, rest, classes)
    text = "\n".join(body).rstrip() + "\n"
    return f"{header}{_import_lines(text)}\n{text}"


def _import_lines(text: str) -> str:
    words = {
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME
    }
    lines = ["from __future__ import annotations", ""]
    days = [name for name in ("date", "datetime") if name in words]
    if days:
        lines.append(f"from datetime import {', '.join(days)}")
    if "Decimal" in words:
        lines.append("from decimal import Decimal")
    if "Literal" in words:
        lines.append("from typing import Literal")
    if lines[-1]:
        lines.append("")
    used = [name for name in _PYLON_NAMES if name in words]
    line = f"from pylon import {', '.join(used)}"
    if len(line) > _WIDTH:
        line = "from pylon import (\n" + "".join(f"    {name},\n" for name in used) + ")"
    return "\n".join([*lines, line, ""])


def _class_names(entities: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    taken: set[str] = set(_TAKEN)
    for entity in entities:
        name = _free_name(entity["name"], taken)
        taken.add(name)
        yield entity["name"], name


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name as an attribute that hides nothing."""
    made = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name) or "_"
    if made[0].isdigit() or made.startswith("_"):
        made = f"x{made}"
    while made in taken or keyword.iskeyword(made) or made == "id":
        made += "_"
    return made


def _app_lines(document: Mapping[str, Any]) -> list[str]:
    extra = {
        key: value for key, value in document.items() if key not in (
            "manifest_version", "name", "version", "references", "auth", "entities", "routes",
            "queries", "actions", "policies", "rateLimits",
        )
    }
    arguments = [_literal(document["name"])]
    arguments += [f"{key}={_literal(document[key])}" for key in ("version", "references")
                  if document.get(key, "0.0.0") != "0.0.0"]
    if document.get("auth"):
        arguments.append(f"auth={_literal(document['auth'])}")
    if extra:
        arguments.append(f"extra={_literal(extra)}")
    return _call_lines("app", arguments, "")


def _entity_lines(
    entity: Mapping[str, Any], policies: list[dict[str, Any]], classes: Mapping[str, str]
) -> list[str]:
    name = entity["name"]
    heading = ["Entity"]
    if classes[name] != name:
        heading.append(f"name={_literal(name)}")
    if "label" in entity:
        heading.append(f"label={_literal(entity['label'])}")
    if entity.get("crdt") is False:
        heading.append("crdt=False")
    extra = {key: value for key, value in entity.items() if key not in (
        "name", "fields", "indexes", "relations", "search", "crdt", "label")}
    if extra:
        heading.append(f"extra={_literal(extra)}")
    lines = [f"class {classes[name]}({', '.join(heading)}):"]
    taken = {*_BODY_TAKEN, *classes.values()}
    body: list[str] = []
    for raw in entity["fields"]:
        attribute = _free_name(raw["name"], taken)
        taken.add(attribute)
        body += _field_lines(attribute, _without_null(raw), classes)
    parts = [
        *(("index", _without_null(item)) for item in entity.get("indexes", ())),
        *(("relation", _without_null(item)) for item in entity.get("relations", ())),
        *((("search", _without_null(entity["search"])),) if "search" in entity else ()),
        *(("policy", item) for item in policies),
    ]
    for kind, item in parts:
        wanted = item.get("name", "words") if kind != "policy" else "access"
        attribute = _free_name(wanted, taken)
        taken.add(attribute)
        arguments = _part_arguments(kind, item, attribute, f"{name}.{attribute}", classes)
        body += _call_lines(f"{attribute} = {kind}", arguments, "    ")
    return [*lines, *(body or ["    pass"])]


def _part_arguments(
    kind: str, item: dict[str, Any], attribute: str, policy_name: str, classes: Mapping[str, str]
) -> list[str]:
    rest = dict(item)
    name = rest.pop("name", None)
    arguments: list[str] = []
    if kind == "index":
        arguments += [_literal(field) for field in rest.pop("fields")]
        if rest.pop("unique", False):
            arguments.append("unique=True")
        if "where" in rest:
            arguments.append(f"where={_literal(rest.pop('where'))}")
    elif kind == "relation":
        arguments += [_literal(rest.pop("target")), f"field={_literal(rest.pop('field'))}"]
        if rest.pop("many", False):
            arguments.append("many=True")
    elif kind == "search":
        for key in ("text", "facets", "sortable", "language"):
            if rest.get(key):
                arguments.append(f"{key}={_literal(rest[key])}")
            rest.pop(key, None)
    else:
        rest.pop("entity")
        arguments += _rule_arguments(rest)
        attribute = policy_name
    if name is not None and name != attribute:
        arguments.append(f"name={_literal(name)}")
    if rest:
        arguments.append(f"extra={_literal(rest)}")
    return arguments


def _rule_arguments(rest: dict[str, Any]) -> list[str]:
    return [
        f"{argument}={_literal(rest.pop(key))}" for key, argument in _RULES.items() if rest.get(key)
    ] + [f"{key}={_literal(rest.pop(key))}" for key in ("action",) if rest.get(key)]


def _field_lines(attribute: str, raw: dict[str, Any], classes: Mapping[str, str]) -> list[str]:
    annotation, arguments = _typed(raw, classes)
    if attribute != raw["name"]:
        arguments.append(f"name={_literal(raw['name'])}")
    head = f"    {attribute}: {annotation}"
    simple = [argument for argument in arguments if argument.startswith("default=")]
    if not arguments:
        return [head]
    if len(arguments) == 1 and simple and simple[0].split("=", 1)[1] not in _SERVER_VALUES.values():
        return [f"{head} = {simple[0].split('=', 1)[1]}"]
    return _call_lines(f"{head.strip()} = field", arguments, "    ")


def _typed(raw: dict[str, Any], classes: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the annotation of a field or an input, and the arguments of its `field` call."""
    rest = {key: value for key, value in raw.items() if key not in ("name", "type")}
    kind = raw["type"]
    if kind == "string" and rest.get("format") == "file":
        annotation = "File"
        del rest["format"]
    elif kind == "enum":
        annotation = f"Literal[{', '.join(_literal(value) for value in rest.pop('values'))}]"
    elif kind.startswith("id("):
        annotation = f"Id[{classes[kind[3:-1]]}]"
    else:
        annotation = _TYPES[kind]
    is_optional = bool(rest.pop("optional", False))
    arguments = []
    default = rest.pop("default", None)
    if default is not None:
        arguments.append(f"default={_default_text(default)}")
    elif is_optional:
        arguments.append("default=None")
    for option, key in OPTION_KEYS.items():
        value = rest.pop(key, None)
        if value is None or (value is False and key in ("unique", "fixed", "serverOnly")):
            continue
        if key == "onUpdate":
            arguments.append(f"{option}={_SERVER_VALUES[str(value)]}")
        elif key == "wire" and value == "json":
            continue
        else:
            arguments.append(f"{option}={_literal(value)}")
    if rest:
        arguments.append(f"extra={_literal(rest)}")
    return annotation + (" | None" if is_optional else ""), arguments


def _default_text(default: Any) -> str:
    name = _SERVER_VALUES.get(str(default)) if isinstance(default, dict) else None
    if name is not None:
        return name
    return _literal(default)


def _statement_lines(
    document: Mapping[str, Any], policies: list[dict[str, Any]], classes: Mapping[str, str]
) -> list[str]:
    lines: list[str] = []
    for raw in document.get("routes") or ():
        rest = _without_null(raw)
        arguments = [_literal(rest.pop("path"))]
        arguments += [
            f"{key}={_literal(rest.pop(key))}" for key in ("mode", "query", "auth") if key in rest
        ]
        lines += _call_lines("route", [*arguments, *_extra(rest)], "")
    for kind, key in (("query", "queries"), ("action", "actions")):
        for raw in document.get(key) or ():
            rest = _without_null(raw)
            arguments = [_literal(rest.pop("name"))]
            if "input" in rest:
                inputs = [_input_text(_without_null(item), classes) for item in rest.pop("input")]
                arguments.append(f"inputs={{{', '.join(inputs)}}}")
            lines += _call_lines(kind, [*arguments, *_extra(rest)], "")
    for rest in policies:
        name = rest.pop("name")
        if rest.get("room"):
            room = rest.pop("room")
            arguments = [_literal(room), *_rule_arguments(rest)]
            default, call = f"rooms {room}", "room_policy"
        else:
            target = rest.pop("entity", None)
            arguments = [] if not target else [f"entity={_literal(target)}"]
            default, call = f"{target or rest.get('action')} policy", "policy"
            arguments += _rule_arguments(rest)
        if name != default:
            arguments.append(f"name={_literal(name)}")
        rest = {key: value for key, value in rest.items() if value != ""}
        lines += _call_lines(call, [*arguments, *_extra(rest)], "")
    for raw in document.get("rateLimits") or ():
        rest = _without_null(raw)
        arguments = [_literal(rest.pop("name"))]
        arguments += [f"{key}={_literal(rest.pop(key))}" for key in
                      ("match", "limit", "window", "per", "burst") if key in rest]
        lines += _call_lines("rate_limit", [*arguments, *_extra(rest)], "")
    return ["", *lines] if lines else []


def _input_text(raw: dict[str, Any], classes: Mapping[str, str]) -> str:
    annotation, arguments = _typed(raw, classes)
    arguments = [argument for argument in arguments if argument != "default=None"]
    if not arguments:
        return f"{_literal(raw['name'])}: {annotation}"
    return f"{_literal(raw['name'])}: ({annotation}, field({', '.join(arguments)}))"


def _extra(rest: Mapping[str, Any]) -> list[str]:
    return [f"extra={_literal(dict(rest))}"] if rest else []


def _call_lines(call: str, arguments: list[str], indent: str) -> list[str]:
    line = f"{indent}{call}({', '.join(arguments)})"
    if len(line) <= _WIDTH:
        return [line]
    lines = [f"{indent}{call}("]
    for argument in arguments:
        lines += _argument_lines(argument, f"{indent}    ")
    return [*lines, f"{indent})"]


def _argument_lines(argument: str, indent: str) -> list[str]:
    """Return the lines of an argument. A long rule is split in front of its operators."""
    name, _, text = argument.partition("=")
    is_rule = name in _RULES.values() and text.startswith('"')
    if len(indent) + len(argument) < _WIDTH or not is_rule:
        return [f"{indent}{argument},"]
    lines, line = [f"{indent}{name}=("], ""
    for piece in _OPERATOR.split(text[1:-1]):
        if line and len(indent) + len(line) + len(piece) + 6 > _WIDTH:
            lines.append(f'{indent}    "{line}"')
            line = ""
        line += piece
    return [*lines, f'{indent}    "{line}"', f"{indent}),"]


def _literal(value: Any) -> str:
    """Return the Python text of a JSON value, with double quotes where they need no escape."""
    if isinstance(value, str):
        is_plain = value.isprintable() and '"' not in value and "\\" not in value
        return f'"{value}"' if is_plain else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, Mapping):
        items = (f"{_literal(key)}: {_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    return repr(value)


def _without_null(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if value is not None}
