"""Shape: checks the keys of a manifest, and the types of their values (spec/http.md §2.1).

`keys` has the keys of each level. A wrong shape is a MANIFEST_PARSE_ERROR at the value, or at the
object that lacks a key. An optional key may be null, which is as if it were left out. Then `checks`
and `build` rely on the shape of every part without a report.

An unknown key is a warning, since it may be a misspelt one: a policy with `allowDelet` lets all
callers delete. In a strict reading (dev mode) an unknown key is an error. Annotations
(`_ANNOTATIONS`, and keys that begin with `x-`) are ignored. Keys of the published tools that have
no effect here are a warning with the reason. Called by `pylon.manifest_loader`.
"""

from __future__ import annotations

import difflib
from typing import Final

from pylon.manifest.document import Node
from pylon.manifest.findings import Findings
from pylon.manifest.keys import MANIFEST, JsonValue, ListOf, Object, Scalar, Scalars, Shape

_ANNOTATIONS: Final = frozenset({"description", "comment", "title"})
_ANNOTATION_MARKS: Final = ("x-", "X-", "$", "_", "//")
_INTEGERS: Final = range(-(2**63), 2**63)  # those of the store and of the JSON encoder


def check_shape(node: Node, findings: Findings, *, strict: bool = False) -> None:
    """Report every wrong shape in the document.

    Args:
        strict: unknown keys are errors.
    """
    _check(node, MANIFEST, "the manifest", findings, strict)
    _check_integers(node, findings)


def _check(node: Node, shape: Shape, path: str, findings: Findings, strict: bool) -> None:
    if isinstance(shape, Object):
        if not isinstance(node.value, dict):
            findings.shape(node, f"{path} must be an object")
            return
        for key in shape.required:
            if key not in node.value:
                findings.shape(node, f'{path} lacks the key "{key}"')
        for key, member in node.value.items():
            inner = shape.required.get(key) or shape.optional.get(key)
            if inner is None:
                _report_unread_key(key, member, shape, path, findings, strict)
            elif not (key in shape.optional and member.value is None):
                _check(member, inner, f"{key} of {path}", findings, strict)
    elif isinstance(shape, ListOf):
        if not isinstance(node.value, list):
            findings.shape(node, f"{path} must be an array")
            return
        for index, item in enumerate(node.value):
            _check(item, shape.item, f"item {index} of {path}", findings, strict)
    elif isinstance(shape, Scalars):
        if not any(_fits(node.value, scalar) for scalar in shape.shapes):
            findings.shape(node, f"{path} must be {shape.what}")
    elif not isinstance(shape, JsonValue) and not _fits(node.value, shape):
        findings.shape(node, f"{path} must be {shape.what}")


def _report_unread_key(
    key: str, member: Node, shape: Object, path: str, findings: Findings, strict: bool
) -> None:
    if key in _ANNOTATIONS or key.startswith(_ANNOTATION_MARKS):
        return
    if key in shape.inert:
        if shape.inert[key] and member.value not in (None, True):
            findings.warning(
                "MANIFEST_KEY_WITHOUT_EFFECT", f'the key "{key}" of {path} has no effect here',
                member.at, shape.inert[key],
            )
        return
    known = [*shape.required, *shape.optional]
    lower = {name.lower().replace("_", ""): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("_", ""), lower, n=1)
    hint = f"did you mean {lower[near[0]]}?" if near else f"known: {', '.join(sorted(known))}"
    report = findings.error if strict else findings.warning
    report("MANIFEST_KEY_UNKNOWN", f'{path} has the unknown key "{key}"', member.at, hint)


def _check_integers(node: Node, findings: Findings) -> None:
    """Report integers beyond 64 bits in any key, because the API returns the whole document."""
    for inner in node.value.values() if isinstance(node.value, dict) else (
        node.value if isinstance(node.value, list) else ()
    ):
        _check_integers(inner, findings)
    if type(node.value) is int and node.value not in _INTEGERS:
        findings.shape(node, "the whole number does not fit into 64 bits")


def _fits(value: object, shape: Scalar) -> bool:
    # bool is a subclass of int, but true is no number in JSON.
    if not isinstance(value, shape.type) or (shape.type is int and isinstance(value, bool)):
        return False
    if shape.words and value not in shape.words:
        return False
    if not isinstance(value, int):
        return True
    return (shape.minimum is None or value >= shape.minimum) and (
        shape.maximum is None or value <= shape.maximum
    )
