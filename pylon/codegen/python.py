"""Python: the rows of an app as msgspec Structs, and its writes as TypedDicts.

The Python client makes rows of these classes (`app.rows(Message)`). A name that Python cannot spell
has an attribute of another name, and keeps its own on the wire. Called by `pylonctl codegen
python`.
"""

from __future__ import annotations

import builtins
import json
import keyword
import re
from typing import Final

from pylon.codegen.client_fields import is_required, written_fields
from pylon.manifest.model import Entity, Field, FieldType, Manifest

_TYPES: Final = {
    FieldType.STRING: "str", FieldType.RICHTEXT: "str", FieldType.ID: "str", FieldType.INT: "int",
    FieldType.FLOAT: "float", FieldType.BOOL: "bool", FieldType.DATETIME: "datetime",
    FieldType.DATE: "date", FieldType.DECIMAL: "Decimal", FieldType.JSON: "Any",
}
_TAKEN: Final = frozenset((
    "Any", "ClassVar", "Decimal", "Literal", "NotRequired", "TypedDict", "date", "datetime",
    "msgspec", "MANIFEST_DIGEST", *dir(builtins),
))
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def python_structs(manifest: Manifest, digest: str) -> str:
    """Return the module of classes.

    Args:
        digest: of the manifest, for the first lines.
    """
    body = "".join(
        _entity(entity, name) for entity, name in zip(
            manifest.entities, _class_names(manifest), strict=True)
    )
    lines = [
        f'"""Rows of the app {_in_doc(manifest.name)}, by pylonctl codegen python. Do not edit.',
        "", f"Manifest sha256:{digest}", '"""', "", "from __future__ import annotations", "",
    ]
    words = set(_IDENTIFIER.findall(body))
    days = [name for name in ("date", "datetime") if name in words]
    lines += [f"from datetime import {', '.join(days)}"] if days else []
    lines += ["from decimal import Decimal"] if "Decimal" in words else []
    used = ["Any", "ClassVar", "Literal", "NotRequired", "TypedDict"]
    lines += [f"from typing import {', '.join(name for name in used if name in words)}", "",
              "import msgspec", "", f'MANIFEST_DIGEST = "{digest}"']
    return "\n".join(lines) + "\n" + body


def _class_names(manifest: Manifest) -> list[str]:
    taken = set(_TAKEN)
    made = []
    for entity in manifest.entities:
        name = entity.name
        while keyword.iskeyword(name) or taken & {name, f"{name}Insert", f"{name}Update"}:
            name += "_"
        taken |= {name, f"{name}Insert", f"{name}Update"}
        made.append(name)
    return made


def _entity(entity: Entity, name: str) -> str:
    lines = ["", "", f"class {name}(msgspec.Struct, frozen=True, kw_only=True):",
             f"    __pylon_entity__: ClassVar[str] = {json.dumps(entity.name)}", "", "    id: str"]
    taken = {*_TYPES.values(), "Literal", "ClassVar", "msgspec", "id"}
    for field in entity.public_fields:
        attribute = field.name
        while keyword.iskeyword(attribute) or attribute in taken:
            attribute += "_"
        taken.add(attribute)
        default = " = None" if field.optional else ""
        if attribute != field.name:
            inner = f"name={json.dumps(field.name)}"
            default = f" = msgspec.field({'default=None, ' if field.optional else ''}{inner})"
        lines.append(f"    {attribute}: {_value(field)}{default}")
    for kind in ("Insert", "Update"):
        lines += ["", "", f"{name}{kind} = TypedDict(", f'    "{name}{kind}",', "    {"]
        if kind == "Insert":
            lines.append('        "id": "NotRequired[str]",')
        for field in written_fields(entity):
            text = _value(field)
            if kind == "Update" or not is_required(field):
                text = f"NotRequired[{text}]"
            lines.append(f"        {json.dumps(field.name)}: {_quoted(text)},")
        lines += ["    },", ")"]
    return "\n".join(lines) + "\n"


def _quoted(annotation: str) -> str:
    return json.dumps(annotation, ensure_ascii=False) if "'" in annotation else f'"{annotation}"' \
        if '"' not in annotation else repr(annotation)


def _value(field: Field) -> str:
    if field.type is FieldType.ENUM:
        made = f"Literal[{', '.join(repr(value) for value in field.values)}]"
    elif field.is_json_text:
        made = "str"
    else:
        made = _TYPES[field.type]
    return f"{made} | None" if field.optional and made != "Any" else made


def _in_doc(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"') if name.isprintable() else ascii(name)
