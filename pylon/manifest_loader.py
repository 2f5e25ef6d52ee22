"""Reads `pylon.manifest.json`: the one way from a file to a `Manifest`.

All errors of the file are found in one go, each with its line and column: JSON, shape, names and
references, and the policy expressions, which are compiled here to see that they can be. What
this returns needs no further checking anywhere.

Called at start by every process, and by ``pylonctl check``.
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
from pylon.manifest.model import RULE_KEYS, Manifest
from pylon.manifest.shape import check_shape
from pylon.policy.check import Scope, action_scope, check, entity_scope
from pylon.policy.grammar import PolicyInvalid

_CARET_CHARS = 80  # of an expression, shown around the bad character


def load_manifest(path: Path, *, strict: bool = False) -> Manifest:
    """Read and validate the manifest in a file (UTF-8).

    Args:
        strict: unknown keys are errors and not warnings; so it is in dev mode.

    Raises:
        ManifestInvalid: with every diagnostic.
    """
    file = str(path)
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
    return parse_manifest(text, file, strict=strict)


def parse_manifest(text: str, file: str, *, strict: bool = False) -> Manifest:
    """Validate a manifest's text. Warnings are in the manifest's `warnings`.

    Args:
        text: the JSON document; a byte order mark before it is passed over.
        file: its name, for the diagnostics.
        strict: see `load_manifest`.

    Raises:
        ManifestInvalid: with every diagnostic, in the order of the file.
    """
    text = text.removeprefix("\ufeff")
    try:
        root = read_document(text)
    except NotJsonError as error:
        raise _parse_error(text, file, error.at, error.message) from error
    findings = Findings(text, file)
    check_shape(root, findings, strict=strict)
    check_all(root, findings)
    _check_rules(root, findings)
    errors = findings.in_order("error")
    if errors:
        raise ManifestInvalid(errors)
    return replace(build_manifest(root), warnings=tuple(findings.in_order("warning")))


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
    """Compile each rule for whatever its policy is for.

    A policy of an entity or action that has errors of its own is passed over: it would only
    repeat them.
    """
    entities = {
        entity.name: entity_scope(entity)
        for node in items_of(root, "entities")
        if not findings.touch(node)
        for entity in (build_entity(node),)
    }
    actions = {
        action.name: action_scope(action)
        for node in items_of(root, "actions")
        if not findings.touch(node)
        for action in (build_operation(node),)
    }
    for policy in items_of(root, "policies"):
        entity, action = text_of(policy, "entity"), text_of(policy, "action")
        for key in RULE_KEYS:
            rule = text_of(policy, key)
            if rule is None or not rule.value:
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
    """The line of the expression that holds the character, and a caret below it."""
    start = max(expression.rfind("\n", 0, at) + 1, at - _CARET_CHARS // 2)
    line = expression[start:].split("\n", 1)[0][:_CARET_CHARS]
    shown = "".join(char if char.isprintable() else " " for char in line)
    return f"{shown}\n{' ' * (at - start)}^"
