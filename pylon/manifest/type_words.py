"""Type words: the right word for a type that SQL, JSON Schema, GraphQL or other backends know.

Called by `checks` for the hint of a type that does not exist.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Final

# The words of one type, lower case, without digits, blanks, - and _.
_WORDS: Final = {
    "string": "text str varchar char character charactervarying nvarchar clob slug email url uri "
    "phone password",
    "int": "integer bigint smallint tinyint mediumint long short serial bigserial",
    "float": "number numeric double doubleprecision real",
    "bool": "boolean bit checkbox",
    "datetime": "timestamp timestamptz timestampwithtimezone timestampwithouttimezone "
    "datetimetz instant time",
    "richtext": "markdown html editor",
    "decimal": "money currency bigdecimal",
    "json": "jsonb object map jsonobject",
    "enum": "enumeration choice select",
}
_RIGHT_WORDS: Final = {other: right for right, texts in _WORDS.items() for other in texts.split()}
_REMARKS: Final = {
    "uuid": "write string; ids of rows are made by the server",
    "guid": "write string; ids of rows are made by the server",
    "file": 'write string with "format": "file", which holds the id of an uploaded file',
    "image": 'write string with "format": "file", which holds the id of an uploaded file',
    "blob": 'write string with "format": "file", or store base64 text in it',
    "bytes": 'write string with "format": "file", or store base64 text in it',
    "binary": 'write string with "format": "file", or store base64 text in it',
    "array": "write an entity of its own for the items, or json",
    "list": "write an entity of its own for the items, or json",
    "set": "write an entity of its own for the items, or json",
    "id": "write id(Entity), with the entity that it refers to",
    "ref": "write id(Entity), with the entity that it refers to",
    "reference": "write id(Entity), with the entity that it refers to",
    "relation": "write id(Entity), with the entity that it refers to",
    "foreignkey": "write id(Entity), with the entity that it refers to",
    "fk": "write id(Entity), with the entity that it refers to",
}
_CALL: Final = re.compile(r"([A-Za-z_ ]+)\(\s*([^()]*?)\s*\)")


def type_hint(text: str, known: Collection[str], entities: Collection[str]) -> str | None:
    """Return the remedy for an unknown type, or None if no type resembles it.

    Args:
        known: the types that a manifest may name, without ``id(...)``.
        entities: the names of the entities.
    """
    if text in entities:
        return f"did you mean id({text})?"
    call = _CALL.fullmatch(text)
    word = re.sub(r"[\d\s_-]+", "", (call[1] if call else text).lower())
    if call is not None and call[2] in entities:
        return f"did you mean id({call[2]})?"
    if word in known:
        return f"did you mean {word}?"
    right = _RIGHT_WORDS.get(word)
    if right is not None:
        return f"did you mean {right}?"
    remark = _REMARKS.get(word)
    if remark is not None:
        return remark
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else None
