"""Name checks: report names that are empty, malformed, reserved, too long, taken or unknown.

Names of entities, fields and indexes become tables and columns of the store, and SQLite ignores the
case of ASCII letters: two names that differ only in case are equal here. Called by `checks`,
`policy_checks` and `auth_checks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, text_of
from pylon.nearest_names import near_suffix

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# PostgreSQL looks for a table in its catalogue, with tables pg_..., before the app's schema.
_RESERVED = {"ENTITY": ("sqlite_", "pg_"), "FIELD": ("sqlite_",)}


def names_of(nodes: Iterable[Node]) -> set[str]:
    """Return the names that nodes have."""
    return {name.value for node in nodes if (name := text_of(node, "name")) is not None}


def is_called(node: Node, name: str) -> bool:
    """Whether a node has the name."""
    found = text_of(node, "name")
    return found is not None and found.value == name


def list_known(names: Iterable[str], wanted: str | None = None) -> str:
    """Return the hint that lists the names which would be right; with the one that resembles
    `wanted`."""
    known = sorted(names)
    return "known: " + (", ".join(known) or "none") + near_suffix(wanted, known)


def check_name(
    node: Node, noun: str, code: str, taken: set[str], findings: Findings
) -> str | None:
    """Check the name of a table or column, and add it to `taken` in lower case."""
    name = text_of(node, "name")
    if name is None:
        return None
    text: str = name.value
    lower_name = text.lower()
    if not text.strip():
        findings.error(f"{code}_NAME_EMPTY", f"the {noun} has no name", name.at)
        return None
    if not _IDENTIFIER.fullmatch(text):
        findings.error(
            f"{code}_NAME_INVALID",
            f'"{text}" cannot name a {noun}', name.at,
            "letters, digits and _ only, not starting with a digit",
        )
    elif text.startswith("_") or lower_name.startswith(_RESERVED[code]):
        findings.error(
            f"{code}_NAME_RESERVED", f'"{text}" cannot name a {noun}', name.at,
            f"names that start with {' or '.join(('_', *_RESERVED[code]))} are reserved",
        )
    elif lower_name == "id" and noun == "field":
        findings.error(
            f"{code}_NAME_RESERVED", f'"{text}" cannot name a field', name.at,
            "every entity has its id already",
        )
    if lower_name in taken:
        findings.error(
            f"{code}_DUPLICATE", f'the {noun} "{text}" is declared twice', name.at,
            "names that differ only in case are the same",
        )
    taken.add(lower_name)
    return text


def check_plain_name(
    node: Node, noun: str, code: str, taken: set[str], findings: Findings, key: str = "name"
) -> None:
    """Check a name that names no table or column: not empty, and not in `taken`."""
    name = text_of(node, key)
    if name is None:
        return
    if not name.value.strip():
        findings.error(f"{code}_{key.upper()}_EMPTY", f"the {noun} has no {key}", name.at)
        return
    if name.value in taken:
        code = f"{code}_DUPLICATE" if key == "name" else f"{code}_{key.upper()}_DUPLICATE"
        findings.error(code, f'the {noun} "{name.value}" is declared twice', name.at)
    taken.add(name.value)


def check_length(node: Node, noun: str, code: str, name_bytes: int, findings: Findings) -> None:
    """Warn of a name that PostgreSQL would cut. A store there refuses it; SQLite has no limit."""
    name = text_of(node, "name")
    if name is not None and len(name.value.encode()) > name_bytes:
        findings.warning(
            f"{code}_NAME_TOO_LONG",
            f"the name of the {noun} has {len(name.value):,} characters", name.at,
            f"PostgreSQL takes {name_bytes} bytes, SQLite any number",
        )


def check_field_name(
    field: Node, columns: set[str], code: str, noun: str, findings: Findings
) -> None:
    """Check that a field, which another part of the manifest names, exists."""
    if field.value not in columns:
        findings.error(
            code, f'{noun} names the field "{field.value}", which does not exist', field.at,
            list_known(columns, field.value),
        )
