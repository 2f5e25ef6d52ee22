"""Field checks: report faults of the keys of a field that depend on its type.

Called by `checks` for the fields of entities.
"""

from __future__ import annotations

from pylon.manifest.build import field_type
from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, text_of
from pylon.manifest.model import FieldType


def check_reference(field: Node, findings: Findings) -> None:
    """Check the keys `references` and `onDelete` of a field."""
    type_ = text_of(field, "type")
    found = None if type_ is None else field_type(type_.value)
    if type_ is None or found is None:
        return
    given = [(key, node) for key in ("references", "onDelete")
             if (node := text_of(field, key)) is not None]
    if found[0] is not FieldType.ID:
        for key, node in given:
            findings.error(
                "FIELD_REFERENCE_INVALID", f"{key} is for fields of type id(Entity)", node.at
            )
        return
    on_delete, optional = text_of(field, "onDelete"), field.value.get("optional")
    if len(given) == 2 and given[0][1].value == "none":
        findings.error(
            "FIELD_REFERENCE_INVALID", "onDelete needs a checked reference, and references is none",
            given[1][1].at, "remove one of the two",
        )
    elif (
        on_delete is not None and on_delete.value == "setNull"
        and (optional is None or optional.value is not True)
    ):
        findings.error(
            "FIELD_REFERENCE_INVALID", "onDelete is setNull, and the field is required",
            on_delete.at, "make it optional, or write cascade or restrict",
        )


def check_nocase(field: Node, findings: Findings) -> None:
    """Check that `unique` is nocase for texts only."""
    unique, type_ = text_of(field, "unique"), text_of(field, "type")
    if unique is not None and type_ is not None and type_.value not in ("string", "richtext"):
        findings.error(
            "FIELD_UNIQUE_INVALID", "nocase is for fields of type string", unique.at,
            "write true",
        )
