"""Manifest loader: reads `pylon.manifest.json`, and checks it completely.

It reports all errors of the file at once, each with its line and column. It checks the JSON, the
shape, names and references, and the policy expressions. Invariant: no other code needs to check the
returned manifest.

Bound: `limits.MANIFEST_BYTES`. Called at the start of each process (`pylon.startup`, `pylon.app`),
and by commands of `pylonctl`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pylon import limits
from pylon.manifest.build import build_entity, build_manifest, build_operation
from pylon.manifest.checks import check_all
from pylon.manifest.diagnostics import Diagnostic, ManifestInvalid, one_line
from pylon.manifest.document import Node, NotJsonError, line_and_column, read_document
from pylon.manifest.findings import Findings, items_of, text_of
from pylon.manifest.model import ROOM_RULE_KEYS, RULE_KEYS, Manifest
from pylon.manifest.org_entities import add_org_entities
from pylon.manifest.places import SourcePlaces
from pylon.manifest.protected import protected_names
from pylon.manifest.protected_checks import check_protected
from pylon.manifest.shape import check_shape
from pylon.policy.check import check
from pylon.policy.grammar import PolicyInvalid
from pylon.policy.scope import Scope, action_scope, entity_scope, room_scope
from pylon.query.index_filters import check_index_filters
from pylon.values.constraint_checks import check_constraints
from pylon.values.default_checks import check_defaults

_CARET_CHARS = 80  # of an expression, shown around the bad character


def load_manifest(
    path: Path, *, strict: bool = False, name: str | None = None,
    places: SourcePlaces | None = None,
) -> Manifest:
    """Read and validate the manifest in a file (UTF-8).

    Args:
        strict: unknown keys are errors, not warnings (dev mode).
        name: the file that diagnostics name, if `path` is a copy of it.
        places: of the parts, if Python has declared the manifest.

    Raises:
        ManifestInvalid: with every diagnostic.
    """
    file = str(path) if name is None else name
    try:
        with path.open("rb") as stream:
            raw = stream.read(limits.MANIFEST_BYTES + 1)
    except OSError as error:
        raise _whole_file(file, f"cannot be read: {error.strerror}") from error
    if len(raw) > limits.MANIFEST_BYTES:
        raise _whole_file(file, f"is larger than {limits.MANIFEST_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        good = raw[: error.start].decode("utf-8")
        raise _parse_error(good, file, len(good), "this byte is not UTF-8") from error
    return parse_manifest(text, file, strict=strict, places=places)


def parse_manifest(
    text: str, file: str, *, strict: bool = False, places: SourcePlaces | None = None
) -> Manifest:
    """Validate a manifest's text. The manifest's `warnings` has the warnings.

    Args:
        text: the JSON document; a leading byte order mark is ignored.
        file: its name, for the diagnostics.
        strict, places: see `load_manifest`.

    Raises:
        ManifestInvalid: with every diagnostic, in file order.
    """
    text = text.removeprefix("\ufeff")
    try:
        root = read_document(text)
    except NotJsonError as error:
        raise _parse_error(text, file, error.at, error.message) from error
    findings = Findings(text, file, root, places)
    check_shape(root, findings, strict=strict)
    if not findings.in_order("error"):
        add_org_entities(root)
    check_all(root, findings)
    check_protected(root, findings)
    check_constraints(root, findings)
    check_defaults(root, findings)
    check_index_filters(root, findings)
    _check_rules(root, findings)
    errors = findings.in_order("error")
    if errors:
        raise ManifestInvalid(errors)
    built = build_manifest(root)
    policies = tuple(
        replace(policy, places=_rule_places(node, findings))
        for policy, node in zip(built.policies, items_of(root, "policies"), strict=True)
    )
    warnings = tuple(findings.in_order("warning"))
    return replace(built, policies=policies, warnings=warnings, text=text)


def _rule_places(policy: Node, findings: Findings) -> dict[str, str]:
    """Return the place in the file of each rule of a policy, by its key."""
    return {
        key: findings.line_of(node) for key, node in policy.value.items()
        if (key in RULE_KEYS or key in ROOM_RULE_KEYS) and node.value
    }


def _parse_error(text: str, file: str, at: int, message: str) -> ManifestInvalid:
    line, column = line_and_column(text, at)
    return ManifestInvalid(
        [Diagnostic("error", "MANIFEST_PARSE_ERROR", one_line(message), file, line, column)]
    )


def _whole_file(file: str, message: str) -> ManifestInvalid:
    return ManifestInvalid(
        [Diagnostic("error", "MANIFEST_PARSE_ERROR", f"the manifest {message}", file)]
    )


def _check_rules(root: Node, findings: Findings) -> None:
    """Check each rule against the entity or action of its policy.

    Skip a policy whose entity or action has errors: its errors would only repeat those.
    """
    declared = items_of(root, "entities")
    protected = protected_names(root.plain())
    known = {
        entity.name: entity
        for node in declared
        if not findings.touch(node)
        for entity in (build_entity(node, protected),)
    }
    entities = {name: entity_scope(entity, known) for name, entity in known.items()}
    is_complete = len(known) == len(declared)
    actions = {
        action.name: action_scope(action, known)
        for node in items_of(root, "actions")
        if not findings.touch(node)
        for action in (build_operation(node),)
    }
    rooms = room_scope(known)
    for policy in items_of(root, "policies"):
        entity, action = text_of(policy, "entity"), text_of(policy, "action")
        room = text_of(policy, "room")
        is_for_rooms = room is not None and bool(room.value)
        for key in ROOM_RULE_KEYS if is_for_rooms else RULE_KEYS:
            rule = text_of(policy, key)
            if rule is None or not rule.value:
                continue
            if not is_complete and "exists" in rule.value:  # it may ask an entity with errors
                continue
            if is_for_rooms:
                _check_rule(rule, key, rooms, findings)
                continue
            if entity is not None and entity.value in entities:
                _check_rule(rule, key, entities[entity.value], findings)
            if action is not None and action.value in actions and key == "allow":
                _check_rule(rule, key, actions[action.value], findings)


def _check_rule(rule: Node, key: str, scope: Scope, findings: Findings) -> None:
    try:
        check(rule.value, scope)
    except PolicyInvalid as invalid:
        findings.error(
            invalid.code, f"{key}: {invalid.message}",
            findings.place_in_string(rule, invalid.at), _with_caret(rule.value, invalid.at),
        )


def _with_caret(expression: str, at: int) -> str:
    """Return the line of the expression with the character, and a caret below it."""
    start = max(expression.rfind("\n", 0, at) + 1, at - _CARET_CHARS // 2)
    line = expression[start:].split("\n", 1)[0][:_CARET_CHARS]
    printable = "".join(char if char.isprintable() else " " for char in line)
    return f"{printable}\n{' ' * (at - start)}^"
