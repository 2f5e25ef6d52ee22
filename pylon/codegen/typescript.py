"""TypeScript: the types of an app for the JavaScript client, ``pylon<Schema>()``.

The file imports nothing. An id is a text with a brand: an `Id<"Room">` is no `Id<"User">`, and a
plain text fits both. Called by `pylonctl codegen ts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

from pylon.codegen.client_fields import is_required, written_fields
from pylon.manifest.model import Entity, Field, FieldType, Manifest

_TYPES: Final = {
    FieldType.STRING: "string", FieldType.RICHTEXT: "string", FieldType.INT: "number",
    FieldType.FLOAT: "number", FieldType.BOOL: "boolean", FieldType.DATETIME: "string",
    FieldType.DATE: "string", FieldType.DECIMAL: "string", FieldType.JSON: "Json",
}
_NUMBERS: Final = (FieldType.INT, FieldType.FLOAT)
_TEXTS: Final = (FieldType.STRING, FieldType.RICHTEXT, FieldType.ID, FieldType.ENUM)
_PLAIN: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_HEAD: Final = """\
/** The id of a row of an entity: a text that is no id of another entity. */
export type Id<E extends string> = string & { readonly __entity?: E };
/** The id of an uploaded file. */
export type FileId = string & { readonly __file?: true };
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

interface Ordered<T> {
  $not?: T | null; $ne?: T | null; $gt?: T; $gte?: T; $lt?: T; $lte?: T;
  $in?: readonly (T | null)[]; $nin?: readonly (T | null)[]; $exists?: boolean;
}
interface Text<T> extends Ordered<T> { $like?: string; $startsWith?: string }
interface Any extends Ordered<Json> { $contains?: Json }
type OrderedCondition<T> = T | null | Ordered<T>;
type TextCondition<T> = T | null | Text<T>;
type AnyCondition = Json | Any;
"""
_TAKEN: Final = ("Id", "FileId", "Json", "Ordered", "Text", "Any", "Schema", "Relations", "Actions",
                 "OrderedCondition", "TextCondition", "AnyCondition", "manifestDigest")


def typescript(manifest: Manifest, digest: str) -> str:
    """Return the module of types.

    Args:
        digest: of the manifest, for the first lines and for the client's comparison.
    """
    names = _type_names(manifest.entities)
    parts = [
        f"// Types of the app {json.dumps(manifest.name)}, by pylonctl codegen ts. Do not edit.\n"
        f"// Manifest sha256:{digest}\n\n"
        f'export const manifestDigest = "{digest}";\n\n{_HEAD}'
    ]
    parts += [_entity(entity, names[entity.name]) for entity in manifest.entities]
    parts.append(_relations(manifest, names))
    parts.append(_block("export interface Actions", (
        f"{_key(action.name)}: {{ "
        + " ".join(f"{_key(f.name)}{'?' if f.optional else ''}: {_value(f)};" for f in action.input)
        + " };" for action in manifest.actions
    )))
    parts.append(_block("export interface Schema", [
        "entities: {", *(
            f"  {_key(entity.name)}: {{ row: {name}; insert: {name}Insert; update: {name}Update; "
            f"where: {name}Where }};"
            for entity in manifest.entities for name in (names[entity.name],)
        ), "};", "actions: Actions;", "relations: Relations;",
    ]))
    return "\n".join(parts)


def _type_names(entities: Iterable[Entity]) -> dict[str, str]:
    """Return a name for each entity whose derived names are all free."""
    taken = set(_TAKEN)
    made: dict[str, str] = {}
    for entity in entities:
        name = entity.name[:1].upper() + entity.name[1:]
        while taken & {name, f"{name}Insert", f"{name}Update", f"{name}Where"}:
            name += "_"
        taken |= {name, f"{name}Insert", f"{name}Update", f"{name}Where"}
        made[entity.name] = name
    return made


def _entity(entity: Entity, name: str) -> str:
    own = f"Id<{json.dumps(entity.name)}>"
    written = written_fields(entity)
    return "\n".join((
        _block(f"export interface {name}", [
            f"readonly id: {own};",
            *(f"readonly {_key(f.name)}: {_value(f)};" for f in entity.public_fields),
        ]),
        _block(f"export interface {name}Insert", [
            "id?: string;",
            *(f"{_key(f.name)}{'' if is_required(f) else '?'}: {_value(f)};" for f in written),
        ]),
        _block(f"export interface {name}Update", [
            f"{_key(f.name)}?: {_value(f)};" for f in written
        ]),
        _block(f"export interface {name}Where", [
            f"id?: TextCondition<{own}>;",
            *(f"{_key(f.name)}?: {_condition(f)};" for f in entity.public_fields),
            f"$and?: readonly {name}Where[];", f"$or?: readonly {name}Where[];",
            *(("$search?: string;",) if entity.search is not None else ()),
            *(f"[element: `{f.name}.${{string}}`]: AnyCondition | undefined;"
              for f in entity.public_fields if f.type is FieldType.JSON),
        ]),
    ))


def _relations(manifest: Manifest, names: dict[str, str]) -> str:
    return _block("export interface Relations", [
        f"{_key(entity.name)}: {{ " + "".join(
            f"{_key(r.name)}: {names[r.target]}{'[]' if r.many else ' | null'}; "
            for r in entity.relations
        ) + "};" for entity in manifest.entities
    ])


def _value(field: Field) -> str:
    return _plain(field) + (" | null" if field.optional and field.type is not FieldType.JSON
                            else "")


def _plain(field: Field) -> str:
    if field.type is FieldType.ID:
        return f"Id<{json.dumps(field.target)}>"
    if field.type is FieldType.ENUM:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in field.values)
    if field.constraints is not None and field.constraints.format == "file":
        return "FileId"
    if field.is_json_text:
        return "string"
    return _TYPES[field.type]


def _condition(field: Field) -> str:
    if field.type is FieldType.JSON:
        return "AnyCondition"
    kind = "TextCondition" if field.type in _TEXTS else "OrderedCondition"
    return f"{kind}<{_plain(field)}>"


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _block(head: str, lines: Iterable[str]) -> str:
    body = "".join(f"  {line}\n" for line in lines)
    return f"{head} {{\n{body}}}\n"
